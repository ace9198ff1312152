"""How jets go through functions that move numbers about: linear ones of one input.

The axis of the points stays last, unseen.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import JaxprEqn
from jaxtyping import Array

from ._algebra import Algebra, Coefficient, Jet
from ._fallback import bind, nested
from ._values import coefficients_of, Rule, Value, values_only, widened


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
        return values_only(algebra, eqn, inputs)
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
    return jax.vmap(lambda v: bind(eqn, v), in_axes=-1, out_axes=-1)(x)


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
    go = jax.vmap(lambda v: bind(eqn, v, *rest), in_axes=-1, out_axes=-1)
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
        return jax.vmap(lambda v: bind(eqn, v, fill), in_axes=-1, out_axes=-1)(a)

    zero = jnp.zeros((), x.value.dtype)
    coefficients = {key: go(c, zero) for key, c in x.coefficients.items()}
    return [Jet(go(x.value, filling), coefficients)]


def _concatenate(algebra: Algebra, eqn: JaxprEqn, inputs: list[Value]) -> list[Value]:
    # With an axis for the points, for numbers as well: they may be stacked.
    full = lambda x: x.value if isinstance(x, Jet) else jnp.asarray(x)[..., None]
    values = [full(x) for x in inputs]
    keys = {key: None for x in inputs for key in coefficients_of(x)}

    def piece(x: Value, value: Array, key) -> Any:
        zero = np.zeros((*value.shape[:-1], 1), value.dtype)
        return coefficients_of(x).get(key, zero)

    pieces = list(zip(inputs, values, strict=True))
    coefficients = {k: _joined(eqn, [piece(x, v, k) for x, v in pieces]) for k in keys}
    return [Jet(_joined(eqn, values), coefficients)]


def _joined(eqn: JaxprEqn, pieces: list[Any]) -> Any:
    """The pieces next to each other, for `concatenate` and for `stack`."""
    width = max(p.shape[-1] for p in pieces)
    same = [p if p.shape[-1] == width else widened(p, width) for p in pieces]
    known = all(isinstance(p, np.ndarray) for p in same)
    stacked = "axis" in eqn.params
    function = getattr(np if known else jnp, "stack" if stacked else "concatenate")
    return function(same, eqn.params["axis" if stacked else "dimension"])


STRUCTURE: dict[str, Rule] = {
    **{name: _linear(function) for name, function in _ON_LAST.items()},
    "convert_element_type": _convert,
    "gather": _indexed,
    "dynamic_slice": _indexed,
    "pad": _pad,
    "concatenate": _concatenate,
    "stack": _concatenate,
}
