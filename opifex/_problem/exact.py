"""Conditions that a model meets by construction."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._misc import check_count, Frozen, unknown_name
from ..geometry.base import AbstractDomain
from .conditions import (
    AbstractCondition,
    Data,
    data_at,
    Dirichlet,
    Initial,
    Periodic,
    pieces_of,
    Setting,
)


class Constrained(eqx.Module):
    """A network inside a formula that meets conditions whatever the network gives.

    For each field, at the point `x` and the time `t` since the start,

        u = E(x, t) + (u0(x) - E(x, 0)) + t (v0(x) - dE/dt(x, 0)) + t^k D(x) N

    where `E` continues the boundary values into the domain, `D` is the approximate
    distance to the boundary, `u0` and `v0` are the initial value and slope, and `k`
    says how many of these are prescribed; parts for which there is no exact condition
    are left out. Different values on different pieces of the boundary are continued by
    inverse distance weighting. In a coordinate in which the fields are periodic, the
    network is given sines and cosines; the others are scaled to `[-1, 1]`.

    ??? cite "References"

        N. Sukumar and A. Srivastava, "Exact imposition of boundary conditions with
        distance functions in physics-informed deep neural networks", Computer Methods
        in Applied Mechanics and Engineering 389, 2022. V. L. Rvachev et al.,
        "Transfinite interpolation over implicitly defined sets", Computer Aided
        Geometric Design 18(3), 2001. S. Dong and N. Ni, "A method for representing
        periodic functions and enforcing exactly periodic boundary conditions with deep
        neural networks", Journal of Computational Physics 435, 2021.
    """

    network: Callable
    ansatz: "Frozen"

    def __call__(self, point: Float[Array, " dim"]) -> Float[Array, " fields"]:
        ansatz = self.ansatz.value
        return ansatz(self.network, point)


class Ansatz(eqx.Module):
    """The formula of [`Constrained`][], without the network."""

    setting: Setting
    conditions: tuple[AbstractCondition, ...]
    harmonics: tuple[tuple[int, int], ...] = eqx.field(static=True)
    scaled: bool = eqx.field(static=True, default=True)
    """Whether the network is given coordinates that are scaled to `[-1, 1]`."""

    @property
    def features(self) -> int:
        """How many numbers the network is given."""
        plain = self.setting.domain.dim - len(self.harmonics)
        return plain + 2 * sum(count for _, count in self.harmonics)

    def __call__(self, network: Callable, point: Array) -> Array:
        return self.around(jnp.atleast_1d(network(self.embed(point))), point)

    def around(self, raw: Array, point: Array) -> Float[Array, " fields"]:
        """The fields, where the network gave `raw` for a point."""
        fields = self.setting.fields
        if raw.shape != (len(fields),):
            raise ValueError(
                f"`network` must give {len(fields)} numbers, the fields {fields}, got "
                f"shape {raw.shape}."
            )
        return jnp.stack([self._field(i, raw[i], point) for i in range(len(fields))])

    def embed(self, point: Array) -> Float[Array, " features"]:
        """What the network is given for a point."""
        domain = self.setting.domain
        width = domain.upper - domain.lower
        share = (point - domain.lower) / width
        parts, harmonics = [], dict(self.harmonics)
        for i in range(domain.dim):
            if i not in harmonics:
                own = 2 * share[i : i + 1] - 1 if self.scaled else point[i : i + 1]
                parts.append(own)
                continue
            waves = np.arange(1, harmonics[i] + 1, dtype=point.dtype)
            phase = 2 * np.pi * waves * share[i]
            parts += [jnp.cos(phase), jnp.sin(phase)]
        return jnp.concatenate(parts)

    def _field(self, i: int, raw: Array, point: Array) -> Array:
        mine = [c for c in self.conditions if self.setting.index(c.field) == i]
        walls = [c for c in mine if isinstance(c, Dirichlet)]
        starts = {c.order: c for c in mine if isinstance(c, Initial)}
        result = raw
        if walls:
            result = result * self._distance(walls, point)
        if not starts:
            return result + self._continued(walls, point)
        begin = _start_of(self.setting.domain)
        passed = point[-1] - begin
        result = result * passed ** (max(starts) + 1)
        # Put together, so that no derivative by the time is taken of the start values.
        at_start = jnp.concatenate([point[:-1], begin[None]])
        first = _value(starts[0], at_start) - self._continued(walls, at_start)
        result = result + self._continued(walls, point) + first
        if 1 in starts:
            slope = jax.grad(lambda t: self._continued(walls, point.at[-1].set(t)))
            moving = slope(begin) if walls else jnp.zeros((), point.dtype)
            result = result + passed * (_value(starts[1], at_start) - moving)
        return result

    def _distance(self, walls: Sequence[Dirichlet], point: Array) -> Array:
        domain = self.setting.domain
        names = [name for c in walls for name in pieces_of(domain, c.boundary)]
        return domain.distance(point, tuple(names))

    def _continued(self, walls: Sequence[Dirichlet], point: Array) -> Array:
        """A function that has the values of the walls on the walls."""
        values = [_value(c, point) for c in walls]
        if not walls:
            return jnp.zeros((), point.dtype)
        if all(_same(c.value, walls[0].value) for c in walls):
            return values[0]
        near = [self._distance([c], point) for c in walls]
        # The product over the others, so that nothing is divided by a distance; the
        # little number makes a mean of what meets in a corner.
        others = [
            functools.reduce(jnp.multiply, near[:i] + near[i + 1 :])
            + jnp.finfo(point.dtype).tiny ** 0.5
            for i in range(len(walls))
        ]
        terms = [share * value for share, value in zip(others, values, strict=True)]
        return sum(terms[1:], terms[0]) / sum(others[1:], others[0])


def make_ansatz(
    setting: Setting,
    conditions: Sequence[AbstractCondition],
    harmonics: int | tuple[tuple[str, int], ...],
    *,
    scaled: bool = True,
) -> Ansatz:
    """The formula for those of `conditions` that are exact."""
    exact = tuple(c for c in conditions if c.exact)
    axes = dict(setting.axes)
    found = sorted({axes[c.boundary] for c in exact if isinstance(c, Periodic)})
    known = {setting.coords[i]: i for i in found}
    if isinstance(harmonics, int):
        named = dict.fromkeys(known, harmonics)
    else:
        named = dict.fromkeys(known, 1) | dict(harmonics)
    for name, count in named.items():
        if name not in known:
            raise ValueError(unknown_name("harmonics", name, known))
        check_count(f"harmonics[{name!r}]", count)
    counts = tuple((known[name], count) for name, count in sorted(named.items()))
    for i in range(len(setting.fields)):
        orders = {
            c.order
            for c in exact
            if isinstance(c, Initial) and setting.index(c.field) == i
        }
        if orders == {1}:
            raise ValueError(
                "`exact` initial slopes need an exact initial value beside them: make "
                "that condition exact too, or this one not."
            )
    return Ansatz(setting, exact, counts, scaled)


def _start_of(domain: AbstractDomain) -> Array:
    return domain.lower[-1]


def _same(one: Data, other: Data) -> bool:
    """Whether two values are known to be the same; arrays may be traced."""
    numbers = all(isinstance(x, int | float) for x in (one, other))
    return one is other or (numbers and one == other)


def _value(condition: Any, point: Array) -> Array:
    value = data_at(condition.value, point[None])
    return jnp.asarray(value, point.dtype).reshape(())
