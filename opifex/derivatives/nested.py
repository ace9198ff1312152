"""The general ways: one derivative on top of another, for any function at all."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._wanted import Index, terms_of
from .base import AbstractDerivatives


class Nested(AbstractDerivatives):
    """Reverse mode on reverse mode: what nested `jax.grad` does."""

    def __call__(self, function, points, wanted, key=None):
        del key
        return _each(function, points, wanted, jax.jacrev)


class Forward(AbstractDerivatives):
    """Forward mode on forward mode. The best of the general ways for low orders."""

    def __call__(self, function, points, wanted, key=None):
        del key
        return _each(function, points, wanted, _directional)


class ForwardReverse(AbstractDerivatives):
    """Forward mode on one reverse pass, which gives all first derivatives at once.

    For many coordinates of a single field, or where forward mode alone is too slow.
    """

    def __call__(self, function, points, wanted, key=None):
        del key
        gradient = jax.jacrev(function)
        one_point = lambda p: (function(p), gradient(p))
        value, first = jax.vmap(one_point, out_axes=-1)(points)
        first = jnp.moveaxis(first, -2, 0)
        found = {}
        for w in wanted:
            parts = []
            for index, weight in terms_of(w):
                if len(index) == 1:
                    parts.append(weight * first[index[0]])
                    continue
                row = lambda p, i=index[0]: gradient(p)[..., i]
                parts.append(weight * _mapped(row, points, index[1:], _directional))
            found[w] = sum(parts[1:], parts[0])
        return value, found


Step = Callable[[Callable[[Array], Array]], Callable[[Array], Array]]


def _each(function, points, wanted, step):
    value = jax.vmap(function, out_axes=-1)(points)
    found = {}
    for w in wanted:
        parts = [
            weight * _mapped(function, points, index, step)
            for index, weight in terms_of(w)
        ]
        found[w] = sum(parts[1:], parts[0])
    return value, found


def _mapped(function, points: Array, index: Index, step) -> Array:
    for i in index:
        function = _by(function, i, step)
    return jax.vmap(function, out_axes=-1)(points)


def _by(function, i: int, step):
    """The derivative by one coordinate."""
    if step is _directional:
        return _directional(function, i)

    def along(point):
        by_one = lambda x: function(point.at[i].set(x))
        return step(by_one)(point[i])

    return along


def _directional(function, i: int):
    def derivative(point):
        unit = jnp.zeros_like(point).at[i].set(1)
        return jax.jvp(function, (point,), (unit,))[1]

    return derivative
