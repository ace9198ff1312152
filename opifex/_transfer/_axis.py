import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


class AxisMap(NamedTuple):
    """How one axis of an array grows: `fine[j] = value[j] * coarse[index[j]]`.

    The gradient with respect to `fine[j]` is then `grad[j]` times that with respect to
    `coarse[index[j]]`, and the products `value * grad` of the copies of one entry,
    their shares, add up to one: the chain rule for a function that did not change.
    An entry that is new has no share, and nothing is known of its gradient.
    """

    index: Int[np.ndarray, " fine"]
    value: Float[np.ndarray, " fine"]
    grad: Float[np.ndarray, " fine"]
    first: Int[np.ndarray, " coarse"]
    """For each coarse entry a copy whose `value` and `grad` are powers of two, so that
    the entry can be read off it without rounding."""

    @property
    def share(self) -> Float[np.ndarray, " fine"]:
        return self.value * self.grad

    @property
    def is_identity(self) -> bool:
        same = len(self.index) == len(self.first)
        return same and bool(np.all(self.index == self.first) and self.is_plain)

    @property
    def is_plain(self) -> bool:
        return bool(np.all(self.value == 1) and np.all(self.grad == 1))


def identity(size: int) -> AxisMap:
    """An axis that stays what it is."""
    each, ones = np.arange(size), np.ones(size)
    return AxisMap(each, ones, ones, each)


def pad(coarse: int, fine: int, offset: int = 0) -> AxisMap:
    """New entries that are zero, `offset` of them before the old ones."""
    index = np.arange(fine) - offset
    old = (index >= 0) & (index < coarse)
    ones = old.astype(float)
    return AxisMap(np.where(old, index, 0), ones, ones, np.arange(coarse) + offset)


def split(coarse: int, fine: int, *, outgoing: bool) -> AxisMap:
    """Units of a layer that become several each, the first of them in the old place.

    What comes in is copied; what goes out is shared among the copies. So the gradient
    of what comes in is shared, and that of what goes out is copied.

    **Arguments:**

    - `outgoing`: whether the axis is that of the layer that reads these units.
    """
    index = np.arange(fine) % coarse
    share = np.empty(fine)
    for k in range(coarse):
        share[index == k] = _shares(int(np.sum(index == k)))
    ones = np.ones(fine)
    value, grad = (share, ones) if outgoing else (ones, share)
    return AxisMap(index, value, grad, np.arange(coarse))


def _shares(copies: int) -> Float[np.ndarray, " copies"]:
    """Unequal positive numbers that add up to one, without rounding in single
    precision; the first is a power of two."""
    odd = 2.0 * np.arange(copies) + 1
    first = 2.0 ** -round(2 * math.log2(copies))
    unit = 2.0 ** -(10 + math.ceil(2 * math.log2(copies)))
    shares = np.concatenate([[first], odd[1:] / max(copies**2 - 1, 1) * (1 - first)])
    shares = np.round(shares / unit) * unit
    shares[-1] = 1 - np.sum(shares[:-1])
    return shares


def flat(arrays: Sequence[tuple[Sequence[AxisMap], bool]]) -> AxisMap:
    """The map of several arrays that are flattened and joined end to end.

    **Arguments:**

    - `arrays`: of each the maps of its axes, and whether it is there before.
    """
    parts, end = [], 0
    for maps, is_old in arrays:
        part = _flat(maps)
        if not is_old:
            part = pad(0, len(part.index))
        parts.append(part._replace(index=part.index + end))
        end += len(part.first)
    ends = np.cumsum([0, *(len(part.index) for part in parts)])
    first = [part.first + start for part, start in zip(parts, ends, strict=False)]
    joined = [np.concatenate([part[i] for part in parts]) for i in range(3)]
    index = np.where(joined[1] * joined[2] > 0, joined[0], 0)
    return AxisMap(index, joined[1], joined[2], np.concatenate(first))


def _flat(maps: Sequence[AxisMap]) -> AxisMap:
    result = identity(1)
    for m in maps:
        coarse, fine = len(m.first), len(m.index)
        result = AxisMap(
            np.add.outer(result.index * coarse, m.index).ravel(),
            np.multiply.outer(result.value, m.value).ravel(),
            np.multiply.outer(result.grad, m.grad).ravel(),
            np.add.outer(result.first * fine, m.first).ravel(),
        )
    return result


Scale = Callable[[AxisMap], Float[np.ndarray, " fine"]]


def prolongate_array(x: Array, axes: Sequence[AxisMap], scale: Scale) -> Array:
    """`x` with every axis grown; what is copied is multiplied by `scale`."""
    for i, m in enumerate(axes):
        if not m.is_identity:
            x = _gathered(x, i, m.index, scale(m))
    return x


def restrict_array(x: Array, axes: Sequence[AxisMap], scale: Scale) -> Array:
    """The inverse: the mean of what the copies say, weighted by their shares.

    Of what `prolongate_array` made it is the inverse to the last bit: the first copy is
    read off, and the others correct it by what they differ from its prolongation.
    """
    for i, m in reversed(list(enumerate(axes))):
        if not m.is_identity:
            x = _averaged(x, i, m, scale(m))
    return x


def _gathered(x: Array, axis: int, index: np.ndarray, scale: np.ndarray) -> Array:
    y = jnp.take(x, index, axis=axis)
    return y if np.all(scale == 1) else y * _along(scale, axis, y)


def _averaged(x: Array, axis: int, m: AxisMap, scale: np.ndarray) -> Array:
    first = _gathered(x, axis, m.first, 1 / scale[m.first])
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return first
    # Behind a barrier, lest the product be fused with the subtraction, unrounded.
    again = jax.lax.optimization_barrier(_gathered(first, axis, m.index, scale))
    weight = np.divide(m.share, scale, out=np.zeros_like(scale), where=m.share != 0)
    rest = jnp.moveaxis((x - again) * _along(weight, axis, x), axis, 0)
    rest = jnp.zeros((len(m.first), *rest.shape[1:]), x.dtype).at[m.index].add(rest)
    return first + jnp.moveaxis(rest, 0, axis)


def _along(vector: np.ndarray, axis: int, like: Array) -> Array:
    shape = [1] * like.ndim
    shape[axis] = len(vector)
    return jnp.asarray(vector.reshape(shape), like.dtype)


def is_new(axes: Sequence[AxisMap], shape: Sequence[int]) -> Bool[np.ndarray, "..."]:
    """Where an array of this shape has no coarse entry behind it."""
    new = np.zeros(shape, bool)
    for i, m in enumerate(axes):
        new |= (m.share == 0).reshape([-1 if i == j else 1 for j in range(len(shape))])
    return new
