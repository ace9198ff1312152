from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jaxtyping import Array, Float, PyTree

from .._custom_types import Count
from .._misc import check_count, squared


class SOAPState(eqx.Module):
    """Momenta, and the second moments in the basis of the preconditioner.

    `factors` and `bases` hold for each parameter one matrix an axis: the average of the
    gradient times itself over all other axes, and its eigenvectors; `None` where there
    is none.
    """

    count: Count
    momentum: PyTree
    second: PyTree
    factors: PyTree
    bases: PyTree


def soap(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.95,
    b2: float = 0.95,
    eps: float = 1e-8,
    *,
    weight_decay: float = 0.0,
    every: int = 10,
    max_size: int = 1024,
) -> optax.GradientTransformationExtraArgs:
    """SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

    Each axis of a matrix (or of an array of more axes) has a basis, in which the second
    moments of the gradient are taken. It follows the averaged outer products of the
    gradient by a step of power iteration every few steps. Vectors and numbers are left
    to Adam. The first step moves nothing: it finds the first bases.

    **Arguments:**

    - `learning_rate`: a number or a schedule.
    - `b1`, `b2`: the decay of the averages of the gradient and of its squares; `b2`
        also of the outer products.
    - `eps`: what is added to the root of the second moment.
    - `weight_decay`: how much of the parameters is taken away, times the learning rate.
    - `every`: steps between two renewals of the bases.
    - `max_size`: an axis that is longer has no basis.

    ??? cite "Reference"

        N. Vyas, D. Morwani, R. Zhao, M. Kwun, I. Shapira, D. Brandfonbrener, L. Janson
        and S. Kakade, "SOAP: improving and stabilizing Shampoo using Adam", ICLR 2025,
        arXiv:2409.11321 (algorithms 3 and 4).
    """
    return optax.chain(
        scale_by_soap(b1, b2, eps, every=every, max_size=max_size),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


def scale_by_soap(
    b1: float = 0.95,
    b2: float = 0.95,
    eps: float = 1e-8,
    *,
    every: int = 10,
    max_size: int = 1024,
) -> optax.GradientTransformation:
    """The direction of [`soap`][], without its learning rate and weight decay."""
    check_count("every", every)
    check_count("max_size", max_size)
    for name, decay in (("b1", b1), ("b2", b2)):
        if not 0 <= decay < 1:
            raise ValueError(f"`{name}` must be at least 0 and below 1, got {decay!r}.")

    def init(params) -> Any:
        matrices = lambda make: jtu.tree_map(lambda x: _each(x, max_size, make), params)
        zeros = jtu.tree_map(jnp.zeros_like, params)
        return SOAPState(
            jnp.zeros((), jnp.int32),
            zeros,
            jtu.tree_map(lambda x: jnp.zeros_like(squared(x)), params),
            matrices(lambda n, dtype: jnp.zeros((n, n), dtype)),
            matrices(lambda n, dtype: jnp.eye(n, dtype=dtype)),
        )

    def update(updates, state, params=None) -> tuple[Any, Any]:
        del params
        grads, tree = jtu.tree_flatten(updates)
        leaves = lambda part: tree.flatten_up_to(part)
        begins = state.count == 0
        renews = state.count % every == 0

        def one(grad, momentum, second, factors, bases):
            turned = _turn(grad, bases)
            new_momentum = b1 * momentum + (1 - b1) * grad
            new_second = b2 * second + (1 - b2) * squared(turned)
            first = _unbiased(_turn(new_momentum, bases), b1, state.count)
            root = jnp.sqrt(_unbiased(new_second, b2, state.count))
            step = _turn(first / (root + eps), bases, back=True)
            factors = _averaged(factors, grad, b2)
            bases = jax.lax.cond(
                renews, lambda: _renewed(factors, bases, begins), lambda: bases
            )
            # The first gradient only finds the bases.
            keep = lambda new, old: jnp.where(begins, old, new)
            return (
                keep(step, jnp.zeros_like(step)).astype(grad.dtype),
                keep(new_momentum, momentum).astype(momentum.dtype),
                keep(new_second, second).astype(second.dtype),
                factors,
                bases,
            )

        parts = (state.momentum, state.second, state.factors, state.bases)
        results = [one(*args) for args in zip(grads, *map(leaves, parts), strict=True)]
        step, *rest = (tree.unflatten(list(x)) for x in zip(*results, strict=True))
        return step, SOAPState(state.count + 1, *rest)

    return optax.GradientTransformation(init, update)


def _each(x: Array, max_size: int, make: Any) -> tuple[Array | None, ...]:
    """A matrix for each axis that has a basis."""
    real = jnp.issubdtype(x.dtype, jnp.floating)
    if x.ndim < 2 or not real:
        return (None,) * x.ndim
    return tuple(make(n, x.dtype) if 1 < n <= max_size else None for n in x.shape)


def _unbiased(x: Array, b: float, count: Count) -> Array:
    # The averages begin at zero, with the second gradient.
    times = jnp.maximum(count, 1).astype(squared(x).dtype)
    return x / (1 - b**times)


def _turn(x: Array, bases: tuple[Array | None, ...], *, back: bool = False) -> Array:
    """`x` in the bases of its axes, or back from them."""
    for axis, basis in enumerate(bases):
        if basis is not None:
            turned = jnp.tensordot(x, basis, axes=(axis, 1 if back else 0))
            x = jnp.moveaxis(turned, -1, axis)
    return x


def _averaged(
    factors: tuple[Array | None, ...], grad: Array, b2: float
) -> tuple[Array | None, ...]:
    def one(axis, factor):
        if factor is None:
            return None
        rows = jnp.moveaxis(grad, axis, 0).reshape(grad.shape[axis], -1)
        return b2 * factor + (1 - b2) * (rows @ rows.T)

    return tuple(one(axis, factor) for axis, factor in enumerate(factors))


def _renewed(
    factors: tuple[Array | None, ...], bases: tuple[Array | None, ...], begins: Any
) -> tuple[Float[Array, "n n"] | None, ...]:
    """The eigenvectors, from scratch at first, and later by a step of power iteration
    from those that there are."""

    def one(factor, basis):
        if factor is None:
            return None
        return jax.lax.cond(
            begins,
            lambda: jnp.linalg.eigh(factor)[1],
            lambda: jnp.linalg.qr(factor @ basis)[0],
        )

    return tuple(one(*pair) for pair in zip(factors, bases, strict=True))
