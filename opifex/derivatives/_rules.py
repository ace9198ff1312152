"""How jets go through the primitives of JAX.

A rule maps the inputs of an equation to its outputs. An input is a [`Jet`][], with the
points last, or an array that is the same at all points.
"""

import logging
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import Jaxpr, JaxprEqn
from jaxtyping import Array

from ._algebra import add, Algebra, Coefficient, Coefficients, Jet, scale
from ._elementwise import (
    Derivatives,
    ELEMENTWISE,
    generic,
    integer_pow,
    RECIPROCAL,
    Recurrence,
    RECURRENCES,
)
from ._fallback import bind as _bind, nested
from ._matmul import apply_weights, laid_out
from ._wanted import Wanted


_log = logging.getLogger("opifex")

Value: TypeAlias = Any  # a Jet or an array
Rule: TypeAlias = Callable[[Algebra, JaxprEqn, list[Value]], list[Value]]


def apply_rule(algebra: Algebra, eqn: JaxprEqn, inputs: list[Value]) -> list[Value]:
    """The outputs of one equation, at least one of its inputs being a jet."""
    name = eqn.primitive.name
    if not any(isinstance(x, Jet) and x.coefficients for x in inputs):
        return _values_only(algebra, eqn, inputs)
    if name in RULES:
        return RULES[name](algebra, eqn, inputs)
    _log.debug("No rule for %s: differentiating it by nested forward mode.", name)
    return nested(algebra, eqn, inputs)


def value_of(x: Value) -> Any:
    return x.value if isinstance(x, Jet) else x


def lift(x: Value) -> Any:
    """The value of `x`, with an axis for the points unless it is a number."""
    if isinstance(x, Jet):
        return x.value
    return x[..., None] if np.ndim(x) else x


def _coefficients(x: Value) -> Coefficients:
    return x.coefficients if isinstance(x, Jet) else {}


def _values_only(algebra: Algebra, eqn: JaxprEqn, inputs: list[Value]) -> list[Value]:
    """Without derivatives: the primitive at each point."""
    del algebra
    axes = [-1 if isinstance(x, Jet) else None for x in inputs]
    values = [value_of(x) for x in inputs]
    out = jax.vmap(lambda *v: _bind(eqn, *v), in_axes=axes, out_axes=-1)(*values)
    outs = out if eqn.primitive.multiple_results else [out]
    return [Jet(v, {}) for v in outs]


# Elementwise functions


def compose(algebra: Algebra, derivatives: Derivatives, inner: Coefficients) -> Jet:
    value, *rest = derivatives
    return Jet(value, algebra.compose(rest, inner))


def _elementwise(algebra: Algebra, eqn: JaxprEqn, inputs: list[Value]) -> list[Value]:
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
    apply = lambda v: _bind(eqn, v)
    return Recurrence(lambda x: (), lambda kept, x, order: generic(apply, x, order))


def custom_function(
    algebra: Algebra, eqn: JaxprEqn, inputs: list[Value]
) -> list[Value]:
    """A function with a rule of its own for its derivative, which is respected."""
    jets = [i for i, x in enumerate(inputs) if isinstance(x, Jet)]
    if len(jets) > 1 or not _is_elementwise(eqn.params["call_jaxpr"].jaxpr):
        return nested(algebra, eqn, inputs)

    def call(x: Array) -> Array:
        at = lambda v: _bind(eqn, *(v if i == jets[0] else y for i, y in others))[0]
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


def _add(algebra: Algebra, eqn: JaxprEqn, inputs: list[Value]) -> list[Value]:
    a, b = inputs
    value = lift(a) + lift(b)
    return [Jet(value, add(_spread(a, value), _spread(b, value)))]


def _sub(algebra: Algebra, eqn: JaxprEqn, inputs: list[Value]) -> list[Value]:
    a, b = inputs
    value = lift(a) - lift(b)
    minus = {key: -c for key, c in _spread(b, value).items()}
    return [Jet(value, add(_spread(a, value), minus))]


def _spread(x: Value, like: Array) -> Coefficients:
    """The coefficients of a term of a sum: primitives broadcast axes of length one."""
    shape = like.shape[:-1]
    return {
        key: c if c.shape[:-1] == shape else _broadcast(c, (*shape, c.shape[-1]))
        for key, c in _coefficients(x).items()
    }


def _broadcast(x: Any, shape: tuple[int, ...]) -> Any:
    """By NumPy what is known, for it to stay known."""
    return (np if isinstance(x, np.ndarray) else jnp).broadcast_to(x, shape)


def _mul(algebra: Algebra, eqn: JaxprEqn, inputs: list[Value]) -> list[Value]:
    return [_times(algebra, *inputs)]


def _times(algebra: Algebra, a: Value, b: Value) -> Jet:
    u, v = lift(a), lift(b)
    linear = add(scale(v, _coefficients(a)), scale(u, _coefficients(b)))
    if not (isinstance(a, Jet) and isinstance(b, Jet)):
        return Jet(u * v, linear)
    return Jet(u * v, add(linear, algebra.product(a.coefficients, b.coefficients)))


def _div(algebra: Algebra, eqn: JaxprEqn, inputs: list[Value]) -> list[Value]:
    a, b = inputs
    if not isinstance(b, Jet) or not b.coefficients:
        divisor = lift(b)
        quotients = {key: c / divisor for key, c in _coefficients(a).items()}
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
        terms.append(factor * _power(x, y - (n + 1)))
    return [compose(algebra, terms, base.coefficients)]


def _power(x: Array, y: Any) -> Array:
    return jax.lax.pow(x, jnp.broadcast_to(jnp.asarray(y, x.dtype), x.shape))


def _abs(algebra: Algebra, eqn: JaxprEqn, inputs: list[Value]) -> list[Value]:
    (x,) = inputs
    if jnp.iscomplexobj(x.value):
        return nested(algebra, eqn, inputs)
    algebra.met_kink = True
    return [Jet(jnp.abs(x.value), scale(jnp.sign(x.value), x.coefficients))]


def _extreme(algebra: Algebra, eqn: JaxprEqn, inputs: list[Value]) -> list[Value]:
    """`max` and `min`: whichever of the two it is, and their mean where they tie."""
    a, b = (lift(x) for x in inputs)
    coefficients = [_coefficients(x) for x in inputs]
    algebra.met_kink = True
    first = a > b if eqn.primitive.name == "max" else a < b
    half = jnp.asarray(0.5, jnp.result_type(a))
    share = jnp.where(a == b, half, first.astype(half.dtype))
    mine, other = scale(share, coefficients[0]), scale(1 - share, coefficients[1])
    return [Jet(jnp.where(first, a, b), add(mine, other))]


def _select(algebra: Algebra, eqn: JaxprEqn, inputs: list[Value]) -> list[Value]:
    which, *cases = inputs
    coefficients = [_coefficients(case) for case in cases]
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


# Linear functions of one input. The axis of the points stays last, unseen.


def _linear(function: Callable[[JaxprEqn, Array], Array]) -> Rule:
    def rule(algebra, eqn, inputs):
        x = inputs[0]
        if any(isinstance(other, Jet) for other in inputs[1:]):
            return nested(algebra, eqn, inputs)
        go = lambda a: function(eqn, a)
        coefficients = {k: _maybe_known(go, c) for k, c in x.coefficients.items()}
        kept = {k: c for k, c in coefficients.items() if c is not None}
        return [Jet(go(x.value), kept)]

    return rule


def _maybe_known(go: Callable[[Any], Any], x: Coefficient) -> Coefficient | None:
    """`go(x)`; evaluated at once if `x` is known, and `None` if it comes to zero: then
    the input does not depend on that coordinate."""
    if not isinstance(x, np.ndarray):
        return go(x)
    with jax.ensure_compile_time_eval():
        out = np.asarray(go(jnp.asarray(x)))
    return out if out.any() else None


def _convert(algebra: Algebra, eqn: JaxprEqn, inputs: list[Value]) -> list[Value]:
    dtype = eqn.params["new_dtype"]
    if not jnp.issubdtype(dtype, jnp.inexact):
        return _values_only(algebra, eqn, inputs)
    return _linear(lambda e, x: x.astype(dtype))(algebra, eqn, inputs)


def _broadcast_in_dim(eqn: JaxprEqn, x: Array) -> Array:
    shape = (*eqn.params["shape"], x.shape[-1])
    dims = (*eqn.params["broadcast_dimensions"], len(shape) - 1)
    return jax.lax.broadcast_in_dim(x, shape, dims)


def _slice(eqn: JaxprEqn, x: Array) -> Array:
    p = eqn.params
    strides = p["strides"] or (1,) * len(p["start_indices"])
    ends = (*p["limit_indices"], x.shape[-1])
    return jax.lax.slice(x, (*p["start_indices"], 0), ends, (*strides, 1))


def _reshape(eqn: JaxprEqn, x: Array) -> Array:
    if eqn.params["dimensions"] is not None:
        x = jnp.transpose(x, (*eqn.params["dimensions"], x.ndim - 1))
    return jnp.reshape(x, (*eqn.params["new_sizes"], x.shape[-1]))


def _each_point(eqn: JaxprEqn, x: Array) -> Array:
    return jax.vmap(lambda v: _bind(eqn, v), in_axes=-1, out_axes=-1)(x)


_ON_LAST: dict[str, Callable[[JaxprEqn, Array], Array]] = {
    "neg": lambda e, x: -x,
    "copy": lambda e, x: x,
    "copy_p": lambda e, x: x,
    "real": lambda e, x: jnp.real(x),
    "imag": lambda e, x: jnp.imag(x),
    "conj": lambda e, x: jnp.conj(x),
    "transpose": lambda e, x: jnp.transpose(x, (*e.params["permutation"], x.ndim - 1)),
    "reshape": _reshape,
    "broadcast_in_dim": _broadcast_in_dim,
    "slice": _slice,
    "squeeze": lambda e, x: jnp.squeeze(x, e.params["dimensions"]),
    "expand_dims": lambda e, x: jnp.expand_dims(x, e.params["dimensions"]),
    "reduce_sum": lambda e, x: jnp.sum(x, tuple(e.params["axes"])),
    "rev": lambda e, x: jnp.flip(x, e.params["dimensions"]),
    "cumsum": _each_point,
    "fft": _each_point,
    "reduce_window_sum": _each_point,
}


def _indexed(algebra: Algebra, eqn: JaxprEqn, inputs: list[Value]) -> list[Value]:
    """`gather` and `dynamic_slice`: linear in what is indexed."""
    x, *rest = inputs
    if any(isinstance(other, Jet) for other in rest):
        return nested(algebra, eqn, inputs)
    go = jax.vmap(lambda v: _bind(eqn, v, *rest), in_axes=-1, out_axes=-1)
    known = not any(isinstance(r, Tracer) for r in rest)
    out = {
        key: _maybe_known(go, c) if known else go(jnp.asarray(c))
        for key, c in x.coefficients.items()
    }
    return [Jet(go(x.value), {k: c for k, c in out.items() if c is not None})]


def _pad(algebra: Algebra, eqn: JaxprEqn, inputs: list[Value]) -> list[Value]:
    x, filling = inputs
    if isinstance(filling, Jet):
        return nested(algebra, eqn, inputs)

    def go(a, fill):
        return jax.vmap(lambda v: _bind(eqn, v, fill), in_axes=-1, out_axes=-1)(a)

    zero = jnp.zeros((), x.value.dtype)
    coefficients = {key: go(c, zero) for key, c in x.coefficients.items()}
    return [Jet(go(x.value, filling), coefficients)]


def _concatenate(algebra: Algebra, eqn: JaxprEqn, inputs: list[Value]) -> list[Value]:
    # With an axis for the points, for numbers as well: they may be stacked.
    full = lambda x: x.value if isinstance(x, Jet) else jnp.asarray(x)[..., None]
    values = [full(x) for x in inputs]
    keys = {key: None for x in inputs for key in _coefficients(x)}

    def piece(x: Value, value: Array, key) -> Any:
        zero = np.zeros((*value.shape[:-1], 1), value.dtype)
        return _coefficients(x).get(key, zero)

    pieces = list(zip(inputs, values, strict=True))
    coefficients = {k: _joined(eqn, [piece(x, v, k) for x, v in pieces]) for k in keys}
    return [Jet(_joined(eqn, values), coefficients)]


def _joined(eqn: JaxprEqn, pieces: list[Any]) -> Any:
    """The pieces next to each other, for `concatenate` and for `stack`."""
    width = max(p.shape[-1] for p in pieces)
    same = [p if p.shape[-1] == width else _widened(p, width) for p in pieces]
    known = all(isinstance(p, np.ndarray) for p in same)
    stacked = "axis" in eqn.params
    function = getattr(np if known else jnp, "stack" if stacked else "concatenate")
    return function(same, eqn.params["axis" if stacked else "dimension"])


def _widened(x: Any, width: int) -> Any:
    return _broadcast(x, (*x.shape[:-1], width))


# Products of matrices


def _dot_general(algebra: Algebra, eqn: JaxprEqn, inputs: list[Value]) -> list[Value]:
    a, b = inputs
    if isinstance(a, Jet) and isinstance(b, Jet):
        return [_dot_of_two(algebra, eqn, a, b)]
    x = a if isinstance(a, Jet) else b
    arrays = [x.value, *map(jnp.asarray, x.coefficients.values())]
    value, *coefficients = _dot_with_constant(eqn, a, b, arrays)
    return [Jet(value, dict(zip(x.coefficients, coefficients, strict=True)))]


def _dot_with_constant(
    eqn: JaxprEqn, a: Value, b: Value, arrays: list[Array]
) -> list[Array]:
    """The product for each array of the jet. The matrix of weights comes first: then
    the points stay last by themselves, and no array is transposed."""
    contract, batch = eqn.params["dimension_numbers"]
    first = isinstance(a, Jet)
    weights, mine, theirs = (b, *contract[::-1]) if first else (a, *contract)
    free = weights.ndim - len(mine)
    out_dtype = np.dtype(eqn.params["preferred_element_type"] or weights.dtype)
    usual = eqn.params["precision"] is None and weights.dtype == out_dtype
    if len(mine) == free == 1 and usual and not batch[0]:
        weights = weights if mine == (1,) else laid_out(weights)
        moved = [jnp.moveaxis(x, theirs[0], 0) for x in arrays]
        outs = apply_weights(weights, moved)
    elif not batch[0]:
        dims = ((mine, theirs), batch)
        options = {k: eqn.params[k] for k in ("precision", "preferred_element_type")}
        outs = [jax.lax.dot_general(weights, x, dims, **options) for x in arrays]
    else:
        product = jax.vmap(lambda x: _bind(eqn, *((x, b) if first else (a, x))), -1, -1)
        return [product(x) for x in arrays]
    if not first:
        return outs
    # The axes of the weights belong at the end, where the jet came first.
    at_end = range(outs[0].ndim - 1 - free, outs[0].ndim - 1)
    return [jnp.moveaxis(x, range(free), at_end) for x in outs]


def _dot_of_two(algebra: Algebra, eqn: JaxprEqn, a: Jet, b: Jet) -> Jet:
    product = jax.vmap(lambda u, v: _bind(eqn, u, v), -1, -1)

    def times(u, v):
        width = max(u.shape[-1], v.shape[-1])
        return product(_widened(jnp.asarray(u), width), _widened(jnp.asarray(v), width))

    linear = add(
        {k: times(c, b.value) for k, c in a.coefficients.items()},
        {k: times(a.value, c) for k, c in b.coefficients.items()},
    )
    both = algebra.product(a.coefficients, b.coefficients, times)
    return Jet(times(a.value, b.value), add(linear, both))


def _each(names, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names, rule)


_COMPARISONS = "ge gt le lt eq ne not and or sign floor ceil round is_finite".split()

_PER_ELEMENT = {
    *RECURRENCES,
    *ELEMENTWISE,
    *_COMPARISONS,
    *"integer_pow add sub mul div neg abs max min pow select_n copy".split(),
    *"stop_gradient convert_element_type".split(),
}

RULES: dict[str, Rule] = {
    **_each([*RECURRENCES, *ELEMENTWISE, "integer_pow"], _elementwise),
    **_each(["add", "add_any"], _add),
    **{name: _linear(function) for name, function in _ON_LAST.items()},
    **_each(["max", "min"], _extreme),
    **_each(["gather", "dynamic_slice"], _indexed),
    **_each([*_COMPARISONS, "stop_gradient", "argmax", "argmin"], _values_only),
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "pow": _pow,
    "abs": _abs,
    "select_n": _select,
    "pad": _pad,
    "convert_element_type": _convert,
    **_each(["concatenate", "stack"], _concatenate),
    "dot_general": _dot_general,
}
