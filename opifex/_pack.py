import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree


Packed = tuple[dict[str, Array], list[Array]]


def is_small(x: Array) -> bool:
    """Whether it is cheaper to move an array along with others than by itself."""
    return x.size <= 128 and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def is_small_vector(x: Array) -> bool:
    """The same of the biases of a network, and of their moments: no counters."""
    return 8 < x.size and jnp.issubdtype(x.dtype, jnp.inexact) and is_small(x)


def pack(
    tree: PyTree, select: Callable[[Any], bool] = is_small
) -> tuple[Packed, Callable[[Packed], PyTree]]:
    """Gathers the arrays of `tree` that `select` picks into one vector a dtype.

    **Returns:** the vectors and the other leaves, and the inverse, which takes vectors
    with further leading axes too.
    """
    # Plain numbers and the NumPy scalars of an enumeration are leaves too.
    leaves, treedef = jtu.tree_flatten(jtu.tree_map(jnp.asarray, tree))
    places: dict[str, list[int]] = {}
    for i in sorted(range(len(leaves)), key=lambda i: leaves[i].ndim):
        if select(leaves[i]):
            places.setdefault(leaves[i].dtype.name, []).append(i)
    vectors = {
        name: _join([leaves[i] for i in group]) for name, group in places.items()
    }
    shapes = [jnp.shape(leaf) for leaf in leaves]
    small = {i for group in places.values() for i in group}
    others = [leaf for i, leaf in enumerate(leaves) if i not in small]

    def unpack(values: Packed) -> PyTree:
        vectors, others = values
        new: dict[int, Array] = {}
        for name, group in places.items():
            end = 0
            for i in group:
                start, end = end, end + math.prod(shapes[i])
                part = vectors[name][..., start:end]
                new[i] = part.reshape(*part.shape[:-1], *shapes[i])
        rest = iter(others)
        filled = [new[i] if i in small else next(rest) for i in range(len(leaves))]
        return jtu.tree_unflatten(treedef, filled)

    return (vectors, others), unpack


def stack_scalars(scalars: Sequence[Array]) -> Array:
    """`jnp.stack`, of scalars. Unlike a concatenation, XLA fuses this with what
    computes them."""
    index, vector = jnp.arange(len(scalars), dtype=jnp.int32), scalars[-1]
    for i, scalar in reversed(list(enumerate(scalars[:-1]))):
        vector = jnp.where(index == i, scalar, vector)
    return jnp.broadcast_to(vector, index.shape)


def _join(arrays: list[Array]) -> Array:
    scalars = [x for x in arrays if x.ndim == 0]
    parts = [stack_scalars(scalars)] if scalars else []
    parts += [x.reshape(-1) for x in arrays if x.ndim]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)
