"""Any primitive at all: nested forward mode of that primitive alone."""

from collections import Counter
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn
from jaxtyping import Array

from ._algebra import Algebra, Coefficients, Jet
from ._wanted import cofactors, Collapsed, factorial, Index, terms_of


def bind(eqn: JaxprEqn, *values: Any) -> Any:
    """What an equation comes to for these inputs."""
    bound: Any = eqn.primitive.get_bind_params(eqn.params)
    # Until JAX 0.9 the functions among the parameters were kept apart.
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    return eqn.primitive.bind(*functions, *values, **params)


def nested(algebra: Algebra, eqn: JaxprEqn, inputs: list[Any]) -> list[Any]:
    """The outputs of an equation, differentiated along the paths that its inputs take.

    The inputs are polynomials in a few variables (the coordinates); so the output is a
    function of these alone, and its Taylor coefficients are found by as many nested
    directional derivatives as the order.
    """
    where = [i for i, x in enumerate(inputs) if isinstance(x, Jet)]
    at = [inputs[i] for i in where]
    batched = jax.vmap(_primitive(eqn, inputs, where), in_axes=-1, out_axes=-1)
    outs = batched(*(x.value for x in at))
    inexact = [i for i, o in enumerate(outs) if jnp.issubdtype(o.dtype, jnp.inexact)]
    jets: list[Any] = [Jet(o, {}) for o in outs]
    if not inexact or not any(x.coefficients for x in at):
        return jets
    function = lambda *values: [batched(*values)[i] for i in inexact]
    for key, coefficients in _along(algebra, function, at).items():
        for i, c in zip(inexact, coefficients, strict=True):
            jets[i].coefficients[key] = c
    return jets


def _primitive(eqn: JaxprEqn, inputs: list[Any], where: list[int]):
    def primitive(*values):
        full = list(inputs)
        for i, value in zip(where, values, strict=True):
            full[i] = value
        out = bind(eqn, *full)
        return list(out) if eqn.primitive.multiple_results else [out]

    return primitive


def _along(algebra: Algebra, function, at: list[Jet]) -> dict[Any, list[Array]]:
    """The Taylor coefficients of `function` along the polynomials `at`."""
    values = [x.value for x in at]
    full = [_widened(x) for x in at]
    reached = {key for coefficients in full for key in coefficients}
    indices = {index for key in algebra.keys for index, _ in terms_of(key)}
    variables = sorted({i for index in indices for i in index})
    # Time is real, whatever the dtypes of the inputs (indices are among them).
    real = next(jnp.real(x.value).dtype for x in at if x.coefficients)

    def path(below: int):
        known = [_lower(x, below) for x in full]
        along = lambda time: map(partial(_at, time), values, known)
        return lambda time: function(*along(time))

    out: dict[Any, list[Any]] = {}
    for key in algebra.keys:
        parts: list[Any] = []
        for index, weight in terms_of(key):
            # In a collapsed sum the terms of its own order come below, all at once,
            # and those of the order below where they are collapsed themselves.
            below = len(index) + (not isinstance(key, Collapsed))
            below -= bool(cofactors(key))
            derivative = _derivative(path(below), index, variables, real)
            share = weight if isinstance(key, Collapsed) else 1 / factorial(index)
            parts.append([share * d for d in derivative])
        if isinstance(key, Collapsed) and key in reached:
            parts.append(_collapsed_part(function, values, full, key, real))
        for i, cofactor in cofactors(key).items():
            parts.append(_mixed_part(function, values, full, ((i,), cofactor), real))
        out[key] = [sum(p[1:], p[0]) for p in zip(*parts, strict=True)]
    return out


def _collapsed_part(
    function, values: list[Array], full: list[Coefficients], key: Collapsed, real
) -> list[Array]:
    """What the collapsed coefficients of the inputs give: they enter linearly."""

    def path(time: Array) -> list[Array]:
        return function(
            *(
                v + c[key] * time.astype(v.dtype) if key in c else v
                for v, c in zip(values, full, strict=True)
            )
        )

    return jax.jvp(path, (jnp.zeros((), real),), (jnp.ones((), real),))[1]


def _mixed_part(
    function,
    values: list[Array],
    full: list[Coefficients],
    keys: tuple[Index, Collapsed],
    real,
) -> list[Array]:
    """What a slope and its cofactor give together: the second derivative along both."""

    def path(times: tuple[Array, Array]) -> list[Array]:
        at = list(values)
        for key, time in zip(keys, times, strict=True):
            for n, c in enumerate(full):
                if key in c:
                    at[n] = at[n] + c[key] * time.astype(at[n].dtype)
        return function(*at)

    zero, one = jnp.zeros((), real), jnp.ones((), real)
    along = lambda t: jax.jvp(path, ((zero, t),), ((one, zero),))[1]
    return jax.jvp(along, (zero,), (one,))[1]


def _widened(x: Jet) -> Coefficients:
    return {k: jnp.broadcast_to(c, x.value.shape) for k, c in x.coefficients.items()}


def _lower(x: Coefficients, order: int) -> dict[Index, Array]:
    """The coefficients of single derivatives below an order."""
    return {
        k: c for k, c in x.items() if not isinstance(k, Collapsed) and len(k) < order
    }


def _at(time: dict[int, Array], value: Array, known: dict[Index, Array]) -> Array:
    """The polynomial at small displacements of the coordinates."""
    for index, c in known.items():
        monomial = jnp.ones((), value.dtype)
        for i, power in Counter(index).items():
            monomial = monomial * time[i].astype(value.dtype) ** power
        value = value + c * monomial
    return value


def _derivative(path, index: Index, variables: list[int], real) -> list[Array]:
    """The derivative of `path` at zero by each coordinate of `index` in turn."""
    zeros = {i: jnp.zeros((), real) for i in variables}

    def by(function, i):
        def derivative(time):
            one = {j: jnp.asarray(1.0 if j == i else 0.0, real) for j in time}
            return jax.jvp(function, (time,), (one,))[1]

        return derivative

    for i in index:
        path = by(path, i)
    return path(zeros)
