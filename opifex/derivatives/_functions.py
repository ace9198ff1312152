"""How jets go through elementwise functions of one argument."""

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn
from jaxtyping import Array

from ._algebra import Algebra, Coefficients, Jet
from ._elementwise import (
    Derivatives,
    generic,
    integer_pow,
    Recurrence,
    RECURRENCES,
)
from ._fallback import bind
from ._values import Value
from ._wanted import Wanted


def compose(algebra: Algebra, derivatives: Derivatives, inner: Coefficients) -> Jet:
    value, *rest = derivatives
    return Jet(value, algebra.compose(rest, inner))


def elementwise(algebra: Algebra, eqn: JaxprEqn, inputs: list[Value]) -> list[Value]:
    (x,) = inputs
    return [through(algebra, _recurrence(eqn), x)]


def through(algebra: Algebra, recurrence: Recurrence, x: Jet) -> Jet:
    """A jet through an elementwise function of known derivatives."""
    coefficients = {k: jnp.asarray(c) for k, c in x.coefficients.items()}
    keys: list[Wanted] = []

    def outs(kept: tuple, value: Array, inner: list[Array]) -> list[Array]:
        derivatives = recurrence.series(kept, value, algebra.order)
        jet = compose(algebra, derivatives, dict(zip(coefficients, inner, strict=True)))
        keys[:] = jet.coefficients
        return [jet.value, *jet.coefficients.values()]

    if algebra.order > 2:
        # There is much to save then for the backward pass, and little to do again.
        outs = jax.checkpoint(outs)
    kept = recurrence.start(x.value)
    value, *rest = outs(kept, x.value, list(coefficients.values()))
    return Jet(value, dict(zip(keys, rest, strict=True)))


def _recurrence(eqn: JaxprEqn) -> Recurrence:
    name = eqn.primitive.name
    if name == "integer_pow":
        return integer_pow(eqn.params["y"])
    if name in RECURRENCES:
        return RECURRENCES[name]
    apply = lambda v: bind(eqn, v)
    return Recurrence(lambda x: (), lambda kept, x, order: generic(apply, x, order))


COMPARISONS = "ge gt le lt eq ne not and or sign floor ceil round is_finite".split()
