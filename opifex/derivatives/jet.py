"""The Taylor mode that comes with JAX."""

import jax
import jax.numpy as jnp
from jax.experimental.jet import jet as jax_jet
from jaxtyping import Array

from ._wanted import terms_of
from .base import AbstractDerivatives
from .nested import Forward


class Jet(AbstractDerivatives):
    """`jax.experimental.jet` for repeated derivatives by one coordinate.

    Mixed ones are left to [`Forward`][]. It has rules for few functions (none for
    softplus, scan, sort, ...) and raises for the others.
    """

    def __call__(self, function, points, wanted, key=None):
        wanted = list(wanted)
        indices = {index for w in wanted for index, _ in terms_of(w)}
        mixed = [index for index in indices if len(set(index)) > 1]
        value, found = Forward()(function, points, mixed, key)
        for i in sorted({index[0] for index in indices if len(set(index)) == 1}):
            order = max(len(x) for x in indices if set(x) == {i})
            series = _series(function, points, i, order)
            found |= {(i,) * (n + 1): c for n, c in enumerate(series)}
        total = lambda w: sum(weight * found[index] for index, weight in terms_of(w))
        return value, {w: total(w) for w in wanted}


def _series(function, points: Array, i: int, order: int) -> list[Array]:
    """The derivatives by one coordinate, of order one and up."""

    def at(point):
        unit = jnp.zeros_like(point).at[i].set(1)
        zeros = [jnp.zeros_like(point)] * (order - 1)
        return jax_jet(function, (point,), ([unit, *zeros],))[1]

    return jax.vmap(at, out_axes=-1)(points)
