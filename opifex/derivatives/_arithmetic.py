"""How jets go through sums, products, quotients, powers and choices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import JaxprEqn
from jaxtyping import Array

from ._algebra import add, Algebra, Coefficients, Jet, scale
from ._elementwise import RECIPROCAL
from ._fallback import nested
from ._functions import compose
from ._values import broadcast, coefficients_of, lift, Rule, Value


def _add(algebra: Algebra, eqn: JaxprEqn, inputs: list[Value]) -> list[Value]:
    a, b = inputs
    value = lift(a) + lift(b)
    return [Jet(value, add(spread(a, value), spread(b, value)))]


def _sub(algebra: Algebra, eqn: JaxprEqn, inputs: list[Value]) -> list[Value]:
    a, b = inputs
    value = lift(a) - lift(b)
    minus = {key: -c for key, c in spread(b, value).items()}
    return [Jet(value, add(spread(a, value), minus))]


def spread(x: Value, like: Array) -> Coefficients:
    """The coefficients of a term of a sum: primitives broadcast axes of length one."""
    shape = like.shape[:-1]
    return {
        key: c if c.shape[:-1] == shape else broadcast(c, (*shape, c.shape[-1]))
        for key, c in coefficients_of(x).items()
    }


def _mul(algebra: Algebra, eqn: JaxprEqn, inputs: list[Value]) -> list[Value]:
    return [_times(algebra, *inputs)]


def _times(algebra: Algebra, a: Value, b: Value) -> Jet:
    u, v = lift(a), lift(b)
    linear = add(scale(v, coefficients_of(a)), scale(u, coefficients_of(b)))
    if not (isinstance(a, Jet) and isinstance(b, Jet)):
        return Jet(u * v, linear)
    return Jet(u * v, add(linear, algebra.product(a.coefficients, b.coefficients)))


def _div(algebra: Algebra, eqn: JaxprEqn, inputs: list[Value]) -> list[Value]:
    a, b = inputs
    if not isinstance(b, Jet) or not b.coefficients:
        divisor = lift(b)
        quotients = {key: c / divisor for key, c in coefficients_of(a).items()}
        return [Jet(lift(a) / divisor, quotients)]
    kept = RECIPROCAL.start(b.value)
    inverse = compose(
        algebra, RECIPROCAL.series(kept, b.value, algebra.order), b.coefficients
    )
    quotient = _times(algebra, a, inverse)
    return [Jet(lift(a) / b.value, quotient.coefficients)]


def _pow(algebra: Algebra, eqn: JaxprEqn, inputs: list[Value]) -> list[Value]:
    base, exponent = inputs
    if isinstance(exponent, Jet):
        return nested(algebra, eqn, inputs)
    x, y = base.value, lift(exponent)
    terms, factor = [_power(x, y)], 1.0
    for n in range(algebra.order):
        factor = factor * (y - n) / (n + 1)
        if not isinstance(factor, Tracer) and not np.any(factor):
            break  # of a whole power nothing is left, not even at zero
        gone = factor == 0
        terms.append(factor * _power(x, jnp.where(gone, 0, y - (n + 1))))
    return [compose(algebra, terms, base.coefficients)]


def _power(x: Array, y: Any) -> Array:
    return jax.lax.pow(*jnp.broadcast_arrays(x, jnp.asarray(y, x.dtype)))


def _abs(algebra: Algebra, eqn: JaxprEqn, inputs: list[Value]) -> list[Value]:
    (x,) = inputs
    if jnp.iscomplexobj(x.value):
        return nested(algebra, eqn, inputs)
    algebra.met_kink = True
    return [Jet(jnp.abs(x.value), scale(jnp.sign(x.value), x.coefficients))]


def _extreme(algebra: Algebra, eqn: JaxprEqn, inputs: list[Value]) -> list[Value]:
    """`max` and `min`: whichever of the two it is, and their mean where they tie."""
    a, b = (lift(x) for x in inputs)
    coefficients = [coefficients_of(x) for x in inputs]
    algebra.met_kink = True
    first = a > b if eqn.primitive.name == "max" else a < b
    half = jnp.asarray(0.5, jnp.result_type(a))
    share = jnp.where(a == b, half, first.astype(half.dtype))
    mine, other = scale(share, coefficients[0]), scale(1 - share, coefficients[1])
    return [Jet(jnp.where(first, a, b), add(mine, other))]


def _select(algebra: Algebra, eqn: JaxprEqn, inputs: list[Value]) -> list[Value]:
    which, *cases = inputs
    coefficients = [coefficients_of(case) for case in cases]
    algebra.met_kink = algebra.met_kink or isinstance(which, Jet)
    which = lift(which)
    value = _pick(which, [lift(c) for c in cases])
    zero = jnp.zeros((), value.dtype)
    keys = {key: None for c in coefficients for key in c}
    picked = {k: _pick(which, [c.get(k, zero) for c in coefficients]) for k in keys}
    return [Jet(value, picked)]


def _pick(which: Array, cases: list[Any]) -> Array:
    if which.dtype == jnp.bool_:
        return jnp.where(which, cases[1], cases[0])
    return jnp.select([which == i for i in range(len(cases))], cases, cases[0])


ARITHMETIC: dict[str, Rule] = {
    "add": _add,
    "add_any": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "pow": _pow,
    "abs": _abs,
    "max": _extreme,
    "min": _extreme,
    "select_n": _select,
}
