"""Truncated Taylor polynomials in several variables, as far as they are wanted."""

from collections.abc import Callable, Iterable
from operator import mul
from typing import Any, NamedTuple, TypeAlias

from jaxtyping import Array

from ._wanted import closed, Collapsed, factorial, order_of, shares, Wanted


# An array; a NumPy one, if it is known before the program runs.
Coefficient: TypeAlias = Any

# The coefficients of a polynomial without its constant; one that is missing is zero.
# A coefficient is a derivative over the factorial of its index.
Coefficients: TypeAlias = dict[Wanted, Coefficient]


class Jet(NamedTuple):
    """A function along the points: its values, and its Taylor coefficients there.

    Points come last: `value` is `(*shape, points)`, a coefficient the same or, if it is
    equal at all points, `(*shape, 1)`.
    """

    value: Array
    coefficients: Coefficients


class Algebra:
    """Multiplication and composition of the polynomials that `wanted` spans.

    A product is a sum over the ways to share out each index, and these are listed once.
    A [`Collapsed`][] coefficient of the highest order never enters a product of two
    others; that is what makes it possible. One of the order below meets slopes only.
    """

    def __init__(self, wanted: Iterable[Wanted]):
        self.keys = closed(wanted)
        self.order = order_of(self.keys)
        self.met_kink = False
        self._plan = {key: shares(key) for key in self.keys}

    def product(
        self,
        a: Coefficients,
        b: Coefficients,
        times: Callable[[Any, Any], Any] = mul,
    ) -> Coefficients:
        """What two polynomials without constants have for a product."""
        out: Coefficients = {}
        for key, ways in self._plan.items():
            for (i, j), weight in ways.items():
                if i in a and j in b:
                    part = _scaled(times(a[i], b[j]), weight)
                    out[key] = out[key] + part if key in out else part
        return out

    def square(self, a: Coefficients) -> Coefficients:
        """`product(a, a)`, with every pair multiplied once."""
        out: Coefficients = {}
        for key, ways in self._plan.items():
            for (i, j), weight in ways.items():
                if i in a and j in a and (i == j or i < j):
                    weight = weight if i == j else weight + ways[j, i]
                    part = _scaled(a[i] * a[j], weight)
                    out[key] = out[key] + part if key in out else part
        return out

    def compose(self, derivatives: list[Array], inner: Coefficients) -> Coefficients:
        """The coefficients of `g(f)` (the formula of Faa di Bruno).

        **Arguments:**

        - `derivatives`: `g^(n) / n!` at the value of `f`, from `n = 1` on. May be
            shorter than the order, where all that follow are zero.
        - `inner`: the coefficients of `f`.
        """
        out: Coefficients = {}
        power = inner
        for n, g in enumerate(derivatives):
            if n == 1:
                power = self.square(inner)
            elif n > 1:
                power = self.product(power, inner)
            out = add(out, {key: g * c for key, c in power.items()})
        return out


def add(a: Coefficients, b: Coefficients) -> Coefficients:
    both = {key: a[key] + b[key] for key in a if key in b}
    return a | b | both


def scale(factor: Any, a: Coefficients) -> Coefficients:
    return {key: factor * c for key, c in a.items()}


def _scaled(x: Coefficient, weight: float) -> Coefficient:
    return x if weight == 1 else weight * x


def multiplicity(key: Wanted) -> int:
    """What a coefficient is to be multiplied with to give the derivative."""
    return 1 if isinstance(key, Collapsed) else factorial(key)
