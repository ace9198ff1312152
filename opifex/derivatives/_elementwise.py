"""The higher derivatives of elementwise functions, by their own recurrences.

The recurrences are those of A. Griewank and A. Walther, "Evaluating derivatives", 2nd
ed., SIAM 2008, chapter 13: they follow from the differential equation that each
function solves.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array


# g(x), g'(x), g''(x)/2!, ... A list that is shorter than asked says the rest is zero.
Derivatives = list[Array]


class Recurrence(NamedTuple):
    """An elementwise function `g`, and its derivatives from little arithmetic.

    The two are apart so that a backward pass can keep the former and do the latter
    again.
    """

    start: Callable[[Array], tuple[Array, ...]]
    """What is dear to compute, at `x`."""
    series: Callable[..., Derivatives]
    """The derivatives up to an order, from what `start` gave, `x`, and the order."""


def _riccati(
    slope: Callable[[Array], Array], square: int, linear: int
) -> Callable[..., Derivatives]:
    """Of the solution of `y' = constant + linear y + square y^2`."""

    def series(kept, x, order):
        del x
        (y,) = kept
        terms = [y, slope(y)]
        for n in range(1, order):
            # The square has every product but that of the middle twice.
            total = sum(2 * terms[i] * terms[n - i] for i in range((n + 1) // 2))
            if n % 2 == 0:
                total = total + terms[n // 2] * terms[n // 2]
            new = square * total + linear * terms[n] if linear else square * total
            terms.append(new / (n + 1))
        return terms

    return series


def _cyclic(*signs: int) -> Callable[..., Derivatives]:
    """Where each derivative is one of the two kept, up to its sign."""

    def series(kept, x, order):
        del x
        terms = [
            kept[n % len(kept)] * (signs[n % len(signs)] / math.factorial(n))
            if n > 1 or signs[n % len(signs)] < 0
            else kept[n % len(kept)]
            for n in range(order + 1)
        ]
        return terms

    return series


def _expm1(kept, x, order):
    value, e = kept
    del x
    return [value, *(e / math.factorial(n) for n in range(1, order + 1))]


def _logarithmic(kept, x, order):
    """Of a logarithm, with the reciprocal of its argument kept."""
    del x
    value, r = kept
    power, terms = r, [value]
    for n in range(1, order + 1):
        terms.append(power / n if n % 2 else -power / n)
        power = power * r
    return terms


def _power(exponent: float) -> Callable[..., Derivatives]:
    """Of `x^exponent`, with the reciprocal of `x` kept."""

    def series(kept, x, order):
        del x
        value, r = kept
        terms = [value]
        for n in range(order):
            terms.append((exponent - n) / (n + 1) * terms[-1] * r)
        return terms

    return series


def _gaussian(sign: int) -> Callable[..., Derivatives]:
    """Of the integral of `e = 2/sqrt(pi) exp(-x^2)`, which solves `e' = -2 x e`."""

    def series(kept, x, order):
        value, e = kept
        terms = [sign * e]
        for n in range(order - 1):
            before = terms[-2] if n else 0.0
            terms.append(-2 * (x * terms[-1] + before) / (n + 1))
        return [value, *(t / (n + 1) if n else t for n, t in enumerate(terms))]

    return series


def _softplus(kept, x, order):
    """Of the integral of the logistic function, which is kept."""
    del x
    value, s = kept
    slopes = _LOGISTIC((s,), s, order - 1) if order else []
    return [value, *(t / (n + 1) if n else t for n, t in enumerate(slopes[:order]))]


def _gauss(x: Array) -> Array:
    return 2 / math.sqrt(math.pi) * jnp.exp(-x * x)


def _square(kept, x, order):
    del kept
    return [x * x, 2 * x, jnp.ones_like(x)][: order + 1]


def integer_pow(y: int) -> Recurrence:
    """`x^y`, for a whole number of either sign."""
    if y < 0:
        start = lambda x: (jax.lax.integer_pow(x, y), 1 / x)
        return Recurrence(start, _power(float(y)))

    def series(kept, x, order):
        del kept
        powers = [jnp.ones_like(x), x]
        for _ in range(y - 1):
            powers.append(powers[-1] * x)
        return [math.comb(y, n) * powers[y - n] for n in range(min(order, y) + 1)]

    return Recurrence(lambda x: (), series)


def generic(function: Callable[[Array], Array], x: Array, order: int) -> Derivatives:
    """Of any elementwise function, by forward mode on forward mode."""
    chain = [function]
    for _ in range(order):
        chain.append(_slope(chain[-1]))
    return [f(x) if n < 2 else f(x) / math.factorial(n) for n, f in enumerate(chain)]


def _slope(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda x: jax.jvp(function, (x,), (jnp.ones_like(x),))[1]


_LOGISTIC = _riccati(lambda s: s * (1 - s), -1, 1)
SOFTPLUS = Recurrence(lambda x: (jax.nn.softplus(x), jax.nn.sigmoid(x)), _softplus)
RECIPROCAL = Recurrence(lambda x: (1 / x, 1 / x), _power(-1.0))

# By the name of the primitive.
RECURRENCES: dict[str, Recurrence] = {
    "tanh": Recurrence(lambda x: (jnp.tanh(x),), _riccati(lambda t: 1 - t * t, -1, 0)),
    "logistic": Recurrence(lambda x: (jax.nn.sigmoid(x),), _LOGISTIC),
    "tan": Recurrence(lambda x: (jnp.tan(x),), _riccati(lambda t: 1 + t * t, 1, 0)),
    "exp": Recurrence(lambda x: (jnp.exp(x),), _cyclic(1)),
    "expm1": Recurrence(lambda x: (jnp.expm1(x), jnp.exp(x)), _expm1),
    "sin": Recurrence(lambda x: (jnp.sin(x), jnp.cos(x)), _cyclic(1, 1, -1, -1)),
    "cos": Recurrence(lambda x: (jnp.cos(x), jnp.sin(x)), _cyclic(1, -1, -1, 1)),
    "sinh": Recurrence(lambda x: (jnp.sinh(x), jnp.cosh(x)), _cyclic(1)),
    "cosh": Recurrence(lambda x: (jnp.cosh(x), jnp.sinh(x)), _cyclic(1)),
    "log": Recurrence(lambda x: (jnp.log(x), 1 / x), _logarithmic),
    "log1p": Recurrence(lambda x: (jnp.log1p(x), 1 / (1 + x)), _logarithmic),
    "sqrt": Recurrence(lambda x: (jnp.sqrt(x), 1 / x), _power(0.5)),
    "rsqrt": Recurrence(lambda x: (jax.lax.rsqrt(x), 1 / x), _power(-0.5)),
    "cbrt": Recurrence(lambda x: (jnp.cbrt(x), 1 / x), _power(1 / 3)),
    "square": Recurrence(lambda x: (), _square),
    "erf": Recurrence(lambda x: (jax.lax.erf(x), _gauss(x)), _gaussian(1)),
    "erfc": Recurrence(lambda x: (jax.lax.erfc(x), _gauss(x)), _gaussian(-1)),
}

# These have none that is worth it.
ELEMENTWISE = (
    "acos acosh asin asinh atan atanh bessel_i0e bessel_i1e digamma erf_inv exp2 lgamma"
).split()
