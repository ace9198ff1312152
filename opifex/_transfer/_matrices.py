"""The matrices that some optimizers keep: inverse Hessians and bases."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._axis import AxisMap


def complemented(h: Float[Array, "n n"], m: AxisMap) -> Float[Array, "m m"]:
    """The inverse Hessian `P H P^T + gamma (I - P R) (I - P R)^T`.

    `P` prolongates values and `R` restricts them. On the directions that the coarse
    model has it acts as `H` did, for the coarse gradient is `P^T` times the fine one;
    on all others as a multiple of the identity, `gamma` being the mean eigenvalue of
    `H`. It is positive definite if `H` is, and `R` makes it `H` again.
    """
    value = jnp.asarray(np.where(m.share > 0, m.value, 0.0), h.dtype)
    grown = jnp.take(jnp.take(h, m.index, axis=0), m.index, axis=1)
    grown = value[:, None] * grown * value[None]
    gamma = jnp.trace(h) / len(m.first)
    return grown + gamma * jnp.asarray(_complement(m), h.dtype)


def _complement(m: AxisMap) -> Float[np.ndarray, "m m"]:
    old = m.share > 0
    value, weight = np.where(old, m.value, 0.0), _weights(m)
    squares = np.bincount(m.index, weight**2, len(m.first))
    same = (m.index[:, None] == m.index[None]) & old[:, None] & old[None]
    cross = np.outer(value, weight)
    joint = cross + cross.T - np.outer(value * squares[m.index], value)
    return np.eye(len(m.index)) - np.where(same, joint, 0)


def _weights(m: AxisMap) -> Float[np.ndarray, " m"]:
    """What restriction multiplies values by: the share over the value."""
    return np.where(m.share > 0, m.grad, 0.0)


def restricted_inverse(h: Float[Array, "m m"], m: AxisMap) -> Float[Array, "n n"]:
    """`R H R^T`."""
    weight = jnp.asarray(_weights(m), h.dtype)
    size = len(m.first)
    h = jnp.zeros((size, h.shape[1]), h.dtype).at[m.index].add(weight[:, None] * h)
    new = jnp.zeros((size, size), h.dtype)
    return new.at[:, m.index].add(h * weight[None])


def _embedding(m: AxisMap) -> Float[np.ndarray, "m n"]:
    """What makes of coarse unit vectors the fine ones with the same gradient: columns
    that are orthonormal."""
    old = m.share > 0
    columns = np.zeros((len(m.index), len(m.first)))
    columns[np.flatnonzero(old), m.index[old]] = m.grad[old]
    return columns / np.linalg.norm(columns, axis=0)


def completed(q: Float[Array, "n n"], m: AxisMap) -> Float[Array, "m m"]:
    """The embedded basis, followed by an orthonormal basis of all else."""
    embedding = _embedding(m)
    rest = np.linalg.svd(embedding)[0][:, len(m.first) :]
    embedded = jnp.asarray(embedding, q.dtype) @ q
    return jnp.concatenate([embedded, jnp.asarray(rest, q.dtype)], axis=1)


def restricted_basis(q: Float[Array, "m m"], m: AxisMap) -> Float[Array, "n n"]:
    """The orthonormal basis that is nearest to those vectors that lie most among the
    embedded ones; zero if `q` is."""
    size = len(m.first)
    inside = jnp.asarray(_embedding(m).T, q.dtype) @ q
    lengths = jnp.round(jnp.sum(inside**2, axis=0), 4)
    chosen = jnp.sort(jnp.argsort(-lengths, stable=True)[:size])
    inside = jnp.take(inside, chosen, axis=1)
    left, _, right = jnp.linalg.svd(inside)
    return jnp.where(jnp.any(inside != 0), left @ right, jnp.zeros_like(inside))


def rotated(m: AxisMap) -> AxisMap:
    """The map of an axis along which an array is written in such a basis."""
    size = len(m.first)
    old = (np.arange(len(m.index)) < size).astype(float)
    power = np.mean(np.bincount(m.index, m.grad**2 * (m.share > 0), size))
    index = np.where(old > 0, np.arange(len(m.index)), 0)
    root = np.sqrt(power)
    return AxisMap(index, old / root, old * root, np.arange(size))
