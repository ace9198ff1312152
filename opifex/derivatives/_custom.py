"""How jets go through functions that have a rule of their own for their derivative."""

import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend.core import Jaxpr, JaxprEqn
from jaxtyping import Array

from ._algebra import add, Algebra, Jet
from ._arithmetic import spread
from ._elementwise import ELEMENTWISE, generic, RECURRENCES, SOFTPLUS
from ._fallback import bind, nested
from ._functions import COMPARISONS, compose, through
from ._values import lift, Value


def custom_function(
    algebra: Algebra, eqn: JaxprEqn, inputs: list[Value]
) -> list[Value]:
    """A function with a rule of its own for its derivative, which is respected."""
    if _name(eqn) == "logaddexp":
        return [_log_add_exp(algebra, *inputs)]
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


def _name(eqn: JaxprEqn) -> str:
    """Of the function, as it was written."""
    return eqn.params["call_jaxpr"].jaxpr.debug_info.func_name.rpartition(".")[2]


def _log_add_exp(algebra: Algebra, a: Value, b: Value) -> Jet:
    """`b + softplus(a - b)`. Softplus, mish and others are written with it."""
    value = jnp.logaddexp(*jnp.broadcast_arrays(lift(a), lift(b)))
    by = spread(b, value)
    minus = {key: -c for key, c in by.items()}
    ratio = Jet(lift(a) - lift(b), add(spread(a, value), minus))
    above = through(algebra, SOFTPLUS, ratio)
    return Jet(value, add(by, above.coefficients))


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
        curved = jnp.any(curvature != 0)
    # Where it cannot be known yet, nothing is said.
    return not isinstance(curved, Tracer) and not bool(curved)


def piecewise_linear() -> None:
    """Says so, where the second derivative of the network is no use."""
    warnings.warn(
        "A derivative of second or higher order is wanted of a network with a "
        "piecewise linear activation (ReLU, abs, max, ...), whose second derivative "
        "is zero wherever it exists. Use a smooth one, such as tanh or softplus.",
        stacklevel=2,
    )


_PER_ELEMENT = {
    *RECURRENCES,
    *ELEMENTWISE,
    *COMPARISONS,
    *"integer_pow add sub mul div neg abs max min pow select_n copy".split(),
    *"stop_gradient convert_element_type".split(),
}
