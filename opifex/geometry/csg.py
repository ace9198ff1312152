from typing import ClassVar

import jax.numpy as jnp

from .base import AbstractDomain, COMBINATIONS
from .combination import AbstractCombination, inside
from .pieces import mix
from .rfunctions import both, either


class Union(AbstractCombination):
    """The points of `a` or of `b`."""

    sides: ClassVar[tuple[int, int]] = (1, 1)
    trims: ClassVar[tuple[int, int]] = (-1, -1)

    def __init__(self, a: AbstractDomain, b: AbstractDomain):
        self._combine(a, b)

    @property
    def lower(self):
        return jnp.minimum(self.a.lower, self.b.lower)

    @property
    def upper(self):
        return jnp.maximum(self.a.upper, self.b.upper)

    @property
    def mass(self):
        return self.a.mass + self.b.mass

    def signed_distance(self, point):
        return either(self.a.signed_distance(point), self.b.signed_distance(point))

    def propose(self, unit):
        index, unit, points, keep = mix((self.a, self.b), unit)
        # What lies in both counts as a point of `a`.
        return points, keep & ((index == 0) | ~inside(self.a, points))


class Intersection(AbstractCombination):
    """The points of both `a` and `b`."""

    sides: ClassVar[tuple[int, int]] = (1, 1)
    trims: ClassVar[tuple[int, int]] = (1, 1)

    def __init__(self, a: AbstractDomain, b: AbstractDomain):
        self._combine(a, b)

    @property
    def lower(self):
        return jnp.maximum(self.a.lower, self.b.lower)

    @property
    def upper(self):
        return jnp.minimum(self.a.upper, self.b.upper)

    @property
    def mass(self):
        return (self.b if self.swap else self.a).mass

    def signed_distance(self, point):
        return both(self.a.signed_distance(point), self.b.signed_distance(point))

    def propose(self, unit):
        small, other = (self.b, self.a) if self.swap else (self.a, self.b)
        points, keep = small.propose(unit[:, : small.unit_dim])
        return points, keep & inside(other, points)


class Difference(AbstractCombination):
    """The points of `a` that are not of `b`."""

    sides: ClassVar[tuple[int, int]] = (1, -1)
    trims: ClassVar[tuple[int, int]] = (-1, 1)

    def __init__(self, a: AbstractDomain, b: AbstractDomain):
        self._combine(a, b)

    @property
    def lower(self):
        return self.a.lower

    @property
    def upper(self):
        return self.a.upper

    @property
    def mass(self):
        return self.a.mass

    def signed_distance(self, point):
        return both(self.a.signed_distance(point), -self.b.signed_distance(point))

    def propose(self, unit):
        points, keep = self.a.propose(unit[:, : self.a.unit_dim])
        return points, keep & ~inside(self.b, points)


COMBINATIONS["|"] = Union
COMBINATIONS["&"] = Intersection
COMBINATIONS["-"] = Difference
