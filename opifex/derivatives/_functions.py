"""How jets go through elementwise functions of one argument."""

import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend.core import Jaxpr, JaxprEqn
from jaxtyping import Array

from ._algebra import Algebra, Coefficients, Jet
from ._elementwise import (
    Derivatives,
    ELEMENTWISE,
    generic,
    integer_pow,
    Recurrence,
    RECURRENCES,
)
from ._fallback import bind, nested
from ._values import Value
from ._wanted import Wanted


def compose(algebra: Algebra, derivatives: Derivatives, inner: Coefficients) -> Jet:
    value, *rest = derivatives
    return Jet(value, algebra.compose(rest, inner))


def elementwise(algebra: Algebra, eqn: JaxprEqn, inputs: list[Value]) -> list[Value]:
    (x,) = inputs
    recurrence = _recurrence(eqn)
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
    return [Jet(value, dict(zip(keys, rest, strict=True)))]


def _recurrence(eqn: JaxprEqn) -> Recurrence:
    name = eqn.primitive.name
    if name == "integer_pow":
        return integer_pow(eqn.params["y"])
    if name in RECURRENCES:
        return RECURRENCES[name]
    apply = lambda v: bind(eqn, v)
    return Recurrence(lambda x: (), lambda kept, x, order: generic(apply, x, order))


def custom_function(
    algebra: Algebra, eqn: JaxprEqn, inputs: list[Value]
) -> list[Value]:
    """A function with a rule of its own for its derivative, which is respected."""
    jets = [i for i, x in enumerate(inputs) if isinstance(x, Jet)]
    if len(jets) > 1 or not _is_elementwise(eqn.params["call_jaxpr"].jaxpr):
        return nested(algebra, eqn, inputs)

    def call(x: Array) -> Array:
        at = lambda v: bind(eqn, *(v if i == jets[0] else y for i, y in others))[0]
        return jax.vmap(at, in_axes=-1, out_axes=-1)(x)

    others = list(enumerate(inputs))
    x = inputs[jets[0]]
    derivatives = generic(call, x.value, algebra.order)
    constant = not any(isinstance(v, Tracer) for i, v in others if i != jets[0])
    if constant and algebra.order > 1 and _is_piecewise_linear(call, x.value):
        piecewise_linear()
    return [compose(algebra, derivatives, x.coefficients)]


def _is_elementwise(jaxpr: Jaxpr) -> bool:
    return all(
        _is_elementwise(called.jaxpr)
        if (called := e.params.get("jaxpr") or e.params.get("call_jaxpr"))
        else e.primitive.name in _PER_ELEMENT
        for e in jaxpr.eqns
    )


def _is_piecewise_linear(call: Callable, like: Array) -> bool:
    """Whether no curvature is seen where activations live, to warn of it."""
    with jax.ensure_compile_time_eval():
        probe = jnp.linspace(-4.0, 4.0, 64).astype(like.dtype)
        curvature = generic(call, jnp.broadcast_to(probe, (*like.shape[:-1], 64)), 2)[2]
        return not bool(jnp.any(curvature != 0))


def piecewise_linear() -> None:
    """Says so, where the second derivative of the network is no use."""
    warnings.warn(
        "A derivative of second or higher order is wanted of a network with a "
        "piecewise linear activation (ReLU, abs, max, ...), whose second derivative "
        "is zero wherever it exists. Use a smooth one, such as tanh or softplus.",
        stacklevel=2,
    )


COMPARISONS = "ge gt le lt eq ne not and or sign floor ceil round is_finite".split()

_PER_ELEMENT = {
    *RECURRENCES,
    *ELEMENTWISE,
    *COMPARISONS,
    *"integer_pow add sub mul div neg abs max min pow select_n copy".split(),
    *"stop_gradient convert_element_type".split(),
}
