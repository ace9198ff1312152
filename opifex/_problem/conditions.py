"""What holds on boundaries, at the start, and where something was measured."""

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from equinox import AbstractVar
from jax.core import Tracer
from jaxtyping import Array, Float

from .._misc import check_finite, unknown_name
from ..derivatives import Residual
from ..derivatives.base import AbstractDerivatives
from ..geometry.base import AbstractDomain
from ..geometry.product import Extruded, TimeProduct
from .coefficients import taken


# A number, or a function of the coordinates, each an array, that gives an array. Its
# keyword arguments are coefficients, by name.
Data = Any


class Setting(eqx.Module):
    """What a condition is a part of.

    **Arguments:**

    - `domain`, `coords`, `fields`, `derivatives`: of the equation.
    - `axes`: by a part of the boundary that is one of a periodic pair, the coordinate
        along which the fields repeat.
    - `coefficients`: the values of those that are unknown, by name.
    """

    domain: AbstractDomain
    coords: tuple[str, ...] = eqx.field(static=True)
    fields: tuple[str, ...] = eqx.field(static=True)
    derivatives: AbstractDerivatives | str
    axes: tuple[tuple[str, int], ...] = eqx.field(static=True, default=())
    coefficients: dict[str, Array] = eqx.field(default_factory=dict)

    def evaluate(
        self, function: Callable, model: Callable, points: Float[Array, "points dim"]
    ) -> Float[Array, " points"]:
        """What a function of the fields and the coordinates gives at points."""
        equation = Residual(function, self.coords, self.fields, self.derivatives)
        out = equation(model, points)
        assert not isinstance(out, tuple)
        return out

    def index(self, field: str | None) -> int:
        """The number of a field; the only one, if it is not named."""
        if field is None and len(self.fields) == 1:
            return 0
        if field is None or field not in self.fields:
            raise ValueError(unknown_name("field", str(field), self.fields))
        return self.fields.index(field)

    def data(self, value: Data, points: Float[Array, "points dim"]) -> Any:
        """What is prescribed at points."""
        return data_at(value, points, self.coefficients)


def pieces_of(domain: AbstractDomain, name: str) -> tuple[str, ...]:
    """The parts of the boundary that a name stands for. `"boundary"` is that of space:
    the first and the last time go by their own names."""
    if name != "boundary":
        return (name,)
    return tuple(n for n in domain.boundaries if n not in ("initial", "final"))


def part_of(domain: AbstractDomain, name: str) -> AbstractDomain:
    """A part of the boundary, as a set of points."""
    if name == "boundary" and isinstance(domain, TimeProduct):
        return Extruded(domain.space.boundary(name), domain.time)
    return domain.boundary(name)


class AbstractCondition(eqx.Module):
    """Something that the fields satisfy on a part of the boundary.

    **Attributes:**

    - `boundary`: the name of that part, which is also that of the set of points.
    - `field`: of which field; may be `None` where there is only one.
    - `weight`: of its mean square in the loss.
    - `exact`: whether the model meets it by construction, see [`PDE`][]`.impose`. Then
        there is no term in the loss.
    """

    boundary: AbstractVar[str]
    field: AbstractVar[str | None]
    weight: AbstractVar[float | int]
    exact: AbstractVar[bool]

    @property
    @abc.abstractmethod
    def kind(self) -> str:
        """What is prescribed, as a word: `"u"` is a value, `"u_n"` a normal slope."""

    @abc.abstractmethod
    def residual(
        self, setting: Setting, model: Callable, points: Float[Array, "points dim"]
    ) -> Float[Array, " points"]:
        """By how much the model fails it at points of the boundary."""

    def label(self, fields: Sequence[str]) -> str:
        """Its name in the loss: the set of points, and what is prescribed there."""
        field = self.field or fields[0]
        return f"{self.boundary}/{self.kind.replace('u', field)}"


class Dirichlet(AbstractCondition):
    """The field has this value: `u = value`.

    **Arguments:**

    - `boundary`: a name out of `domain.boundaries`, or `"boundary"` for all of it.
    - `value`: a number, or a function of the coordinates, each an array.
    - `field`, `weight`, `exact`: see [`AbstractCondition`][].
    """

    boundary: str = eqx.field(static=True)
    value: Data = 0.0
    field: str | None = eqx.field(static=True, default=None, kw_only=True)
    weight: float | int = eqx.field(static=True, default=1.0, kw_only=True)
    exact: bool = eqx.field(static=True, default=False, kw_only=True)

    def __check_init__(self):
        check_condition(self, self.value)

    @property
    def kind(self):
        return "u"

    def residual(self, setting, model, points):
        i = setting.index(self.field)
        take = lambda *fields_and_coords: fields_and_coords[i].value
        return setting.evaluate(take, model, points) - setting.data(self.value, points)


class Neumann(AbstractCondition):
    """The field has this slope along the outward normal: `du/dn = value`.

    **Arguments:** those of [`Dirichlet`][]; it cannot be imposed exactly.
    """

    boundary: str = eqx.field(static=True)
    value: Data = 0.0
    field: str | None = eqx.field(static=True, default=None, kw_only=True)
    weight: float | int = eqx.field(static=True, default=1.0, kw_only=True)
    exact: bool = eqx.field(static=True, default=False, init=False)

    def __check_init__(self):
        check_condition(self, self.value)

    @property
    def kind(self):
        return "u_n"

    def residual(self, setting, model, points):
        slope = normal_slope(setting, self.boundary, self.field, points)
        return setting.evaluate(slope, model, points) - setting.data(self.value, points)


class Robin(AbstractCondition):
    """`a u + b du/dn = value`, with the outward normal.

    **Arguments:**

    - `a`, `b`: numbers or functions of the coordinates.
    - the others: those of [`Dirichlet`][]; it cannot be imposed exactly.
    """

    boundary: str = eqx.field(static=True)
    a: Data = 1.0
    b: Data = 1.0
    value: Data = 0.0
    field: str | None = eqx.field(static=True, default=None, kw_only=True)
    weight: float | int = eqx.field(static=True, default=1.0, kw_only=True)
    exact: bool = eqx.field(static=True, default=False, init=False)

    def __check_init__(self):
        check_condition(self, self.value)
        check_data("a", self.a)
        check_data("b", self.b)

    @property
    def kind(self):
        return "u+u_n"

    def residual(self, setting, model, points):
        i = setting.index(self.field)
        slope = normal_slope(setting, self.boundary, self.field, points)
        a, b = setting.data(self.a, points), setting.data(self.b, points)
        both = lambda *args: a * args[i].value + b * slope(*args)
        return setting.evaluate(both, model, points) - setting.data(self.value, points)


class Periodic(AbstractCondition):
    """The field, or a derivative, is the same on two opposite parts of the boundary.

    **Arguments:**

    - `boundary`, `partner`: two parts that are shifts of each other.
    - `order`: which derivative across them is compared; 0 is the value.
    - the others: those of [`Dirichlet`][]. An exact one makes the model periodic in
        that coordinate, with all derivatives.
    """

    boundary: str = eqx.field(static=True)
    partner: str = eqx.field(static=True)
    order: int = eqx.field(static=True, default=0, kw_only=True)
    field: str | None = eqx.field(static=True, default=None, kw_only=True)
    weight: float | int = eqx.field(static=True, default=1.0, kw_only=True)
    exact: bool = eqx.field(static=True, default=False, kw_only=True)

    def __check_init__(self):
        check_condition(self, 0.0)
        if self.order not in range(4):
            raise ValueError(f"`order` must be 0, 1, 2 or 3, got {self.order!r}.")

    @property
    def kind(self):
        return "periodic u" + f"_{self.order}" * bool(self.order)

    def residual(self, setting, model, points):
        i, axis = setting.index(self.field), dict(setting.axes)[self.boundary]
        across = (setting.coords[axis],) * self.order
        here = lambda *args: args[i].d(*across) if across else args[i].value
        there = points + self.shift(setting.domain)[None]
        values = setting.evaluate(here, model, points)
        return values - setting.evaluate(here, model, there)

    def shift(self, domain: AbstractDomain) -> Float[Array, " dim"]:
        """What leads from the one part to the other."""
        here, there = part_of(domain, self.boundary), part_of(domain, self.partner)
        return there.lower - here.lower

    def axis(self, domain: AbstractDomain) -> int:
        """The coordinate along which the field repeats, if its numbers are known."""
        here, there = part_of(domain, self.boundary), part_of(domain, self.partner)
        low, high = there.lower - here.lower, there.upper - here.upper
        along = [i for i in range(domain.dim) if abs(float(low[i])) > 0]
        if len(along) != 1 or not jnp.allclose(low, high):
            raise ValueError(
                f"`partner` must be a shift of `boundary` along one coordinate, got "
                f"{self.boundary!r} and {self.partner!r}."
            )
        return along[0]


class Initial(AbstractCondition):
    """At the first time the field, or its slope in time, has this value.

    **Arguments:**

    - `value`: a number, or a function of the coordinates.
    - `order`: 0 for the field, 1 for its first derivative in time.
    - the others: those of [`Dirichlet`][].
    """

    value: Data = 0.0
    order: int = eqx.field(static=True, default=0, kw_only=True)
    field: str | None = eqx.field(static=True, default=None, kw_only=True)
    weight: float | int = eqx.field(static=True, default=1.0, kw_only=True)
    exact: bool = eqx.field(static=True, default=False, kw_only=True)
    boundary: str = eqx.field(static=True, default="initial", init=False)

    def __check_init__(self):
        check_condition(self, self.value)
        if self.order not in (0, 1):
            raise ValueError(f"`order` must be 0 or 1, got {self.order!r}.")

    @property
    def kind(self):
        return "u_t" if self.order else "u"

    def residual(self, setting, model, points):
        i, time = setting.index(self.field), setting.coords[-1]
        take = lambda *args: args[i].d(time) if self.order else args[i].value
        return setting.evaluate(take, model, points) - setting.data(self.value, points)


class Measured(eqx.Module):
    """What was measured at some points: they are all used, at every step.

    **Arguments:**

    - `points`: `(points, dim)`.
    - `values`: `(points,)`.
    - `field`, `weight`: see [`AbstractCondition`][].
    - `name`: of its term in the loss.
    """

    points: Float[Array, "points dim"] = eqx.field(converter=jnp.asarray)
    values: Float[Array, " points"] = eqx.field(converter=jnp.asarray)
    field: str | None = eqx.field(static=True, default=None, kw_only=True)
    weight: float | int = eqx.field(static=True, default=1.0, kw_only=True)
    name: str = eqx.field(static=True, default="data", kw_only=True)

    def __check_init__(self):
        check_finite("points", self.points)
        check_finite("values", self.values)
        check_weight(self.weight)
        if self.points.ndim != 2 or self.values.shape != self.points.shape[:1]:
            raise ValueError(
                "`values` must hold one number a row of `points`, got shapes "
                f"{self.values.shape} and {self.points.shape}."
            )

    def residual(self, setting: Setting, model: Callable) -> Float[Array, " points"]:
        i = setting.index(self.field)
        take = lambda *args: args[i].value
        return setting.evaluate(take, model, self.points) - self.values


def normal_slope(
    setting: Setting, boundary: str, field: str | None, points: Array
) -> Callable:
    """The derivative along the outward normal, as a function of fields."""
    i = setting.index(field)
    normals = part_of(setting.domain, boundary).normals(points)
    # Time is no direction in space: normals have no part along it but at its ends.
    has_time = isinstance(setting.domain, TimeProduct)
    coords = setting.coords[:-1] if has_time else setting.coords

    def slope(*args):
        parts = [normals[:, n] * args[i].d(name) for n, name in enumerate(coords)]
        return sum(parts[1:], parts[0])

    return slope


def data_at(
    value: Data,
    points: Float[Array, "points dim"],
    coefficients: Mapping[str, Array] = MappingProxyType({}),
) -> Any:
    """A number, or what a function of the coordinates gives."""
    if not callable(value):
        return value
    given: Any = value(*points.T, **taken(value, coefficients))
    if jnp.shape(given) not in ((), points.shape[:1]):
        name = getattr(value, "__name__", repr(value))
        raise ValueError(
            f"`{name}` must give one number a point, of shape {points.shape[:1]}, got "
            f"shape {jnp.shape(given)}. Its arguments are the coordinates, each an "
            "array of that shape."
        )
    return given


def weighted(weight: float | int, residual: Array) -> Array:
    """A residual whose mean square counts `weight` times."""
    return residual if weight == 1 else math.sqrt(weight) * residual


def check_condition(condition: AbstractCondition, value: Data) -> None:
    check_data("value", value)
    check_weight(condition.weight)


def check_weight(weight: float | int) -> None:
    if not (weight > 0 and math.isfinite(weight)):
        raise ValueError(f"`weight` must be positive and finite, got {weight!r}.")


def check_data(name: str, value: Data) -> None:
    """Raises unless `value` is a finite number or a function."""
    if callable(value) or isinstance(value, Tracer):
        return
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"`{name}` must be a finite number or a function of the coordinates, got "
            f"{value!r}."
        )
