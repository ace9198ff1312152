"""What an equation conserves: integrals that stay the same in time."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._misc import check_count, unknown_name
from ..derivatives import Residual
from ..geometry.base import AbstractDomain
from ..geometry.product import TimeProduct
from .coefficients import taken
from .conditions import check_weight, Setting


class Conserved(eqx.Module):
    """An integral over space that keeps its value in time.

    At each time of the set `"times"` the integral `Q(t)` of `density` is worked out by
    quadrature, and the term of the loss is the mean square of `max(0, |Q(t) - Q0| -
    tolerance)`, which vanishes where the law holds. With the weighting
    [`AugmentedLagrangian`][] on the term it becomes a constraint.

    **Arguments:**

    - `density`: from [`residual`][], of the coordinates and fields of the equation:
        what is integrated. It may use derivatives, and coefficients as keyword
        arguments.
    - `name`: of the law; its term is `"times/<name>"`.
    - `reference`: `Q0`; that of the model at the first time, unless given.
    - `tolerance`: how far `Q` may stray, in its own unit.
    - `num_points`: about how many nodes the quadrature has.
    - `weight`: of the mean square in the loss.
    """

    density: Residual
    name: str = eqx.field(static=True, kw_only=True)
    reference: float | int | None = eqx.field(static=True, default=None, kw_only=True)
    tolerance: float | int = eqx.field(static=True, default=0.0, kw_only=True)
    num_points: int = eqx.field(static=True, default=64, kw_only=True)
    weight: float | int = eqx.field(static=True, default=1.0, kw_only=True)

    def __check_init__(self):
        check_weight(self.weight)
        check_count("num_points", self.num_points)
        if not (self.tolerance >= 0 and math.isfinite(self.tolerance)):
            raise ValueError(
                f"`tolerance` must not be negative, got {self.tolerance!r}."
            )
        if self.reference is not None and not math.isfinite(self.reference):
            raise ValueError(f"`reference` must be finite, got {self.reference!r}.")

    def check(self, setting: Setting) -> None:
        """Raises unless the law can be stated there."""
        if not isinstance(setting.domain, TimeProduct):
            raise ValueError(
                f"`conserved` law {self.name!r} needs a domain with time, such as "
                f"`Box(...) * Interval(0, 1)`, got {type(setting.domain).__name__}."
            )
        for what in ("coords", "fields"):
            own, others = getattr(self.density, what), getattr(setting, what)
            if own != others:
                raise ValueError(
                    f"`density` of {self.name!r} must have the {what} of the equation, "
                    f"{others}, got {own}."
                )

    def quantity(
        self,
        domain: AbstractDomain,
        model: Callable,
        times: Float[Array, " times"],
        coefficients: Mapping[str, Array] = MappingProxyType({}),
    ) -> Float[Array, " times"]:
        """The integral at each of some times."""
        nodes, weights = _nodes(domain, self.num_points)
        given = taken(self.density.function, coefficients)

        def at(time):
            column = jnp.full((nodes.shape[0], 1), time, nodes.dtype)
            points = jnp.concatenate([nodes, column], axis=1)
            density = self.density(model, points, **given)
            if isinstance(density, tuple):
                raise ValueError(
                    f"`density` of {self.name!r} must return one number a point, got "
                    f"{len(density)}. State each as a law of its own."
                )
            return jnp.sum(weights * density)

        return jax.vmap(at)(times)

    def drift(
        self,
        domain: AbstractDomain,
        model: Callable,
        times: Float[Array, " times"],
        coefficients: Mapping[str, Array] = MappingProxyType({}),
    ) -> Float[Array, " times"]:
        """By how much the integral differs from its reference."""
        start = domain.lower[-1:]
        both = jnp.concatenate([start, times])
        quantity = self.quantity(domain, model, both, coefficients)
        first = quantity[0] if self.reference is None else self.reference
        return quantity[1:] - first

    def residual(
        self, setting: Setting, model: Callable, times: Float[Array, " times"]
    ) -> Float[Array, " times"]:
        """The drift beyond the tolerance, with its sign."""
        drift = self.drift(setting.domain, model, times, setting.coefficients)
        return jnp.sign(drift) * jax.nn.relu(jnp.abs(drift) - self.tolerance)


def mass(
    coords: str, fields: str = "u", *, of: str | None = None, **options: Any
) -> Conserved:
    """That the integral of a field is conserved.

    **Arguments:**

    - `coords`, `fields`: those of the equation, see [`residual`][].
    - `of`: which field; the first, unless given.
    - `options`: of [`Conserved`][].
    """
    i = _index(fields, of)
    return _law("mass", coords, fields, lambda *args: args[i].value, options)


def momentum(
    coords: str, fields: str, *, of: str | None = None, **options: Any
) -> tuple[Conserved, ...]:
    """That the integral of each component of a velocity is conserved; the laws are
    called `"momentum_<component>"`.

    **Arguments:**

    - `coords`, `fields`: those of the equation, see [`residual`][].
    - `of`: the fields that are the components; all, unless given.
    - `options`: of [`Conserved`][].
    """
    laws = []
    for name in (fields if of is None else of).split():
        take = lambda *args, i=_index(fields, name): args[i].value
        laws.append(_law(f"momentum_{name}", coords, fields, take, options))
    return tuple(laws)


def energy(
    coords: str, fields: str = "u", *, of: str | None = None, **options: Any
) -> Conserved:
    """That half the integral of the square of some fields is conserved.

    That is the kinetic energy of a velocity. The energy of a wave has derivatives too:
    give [`Conserved`][] its density.

    **Arguments:**

    - `coords`, `fields`: those of the equation, see [`residual`][].
    - `of`: which fields; all, unless given.
    - `options`: of [`Conserved`][].
    """
    chosen = [_index(fields, name) for name in (of or fields).split()]
    half_square = lambda *args: 0.5 * sum(args[i].value ** 2 for i in chosen)
    return _law("energy", coords, fields, half_square, options)


def symmetry(
    model: Callable,
    points: Float[Array, "points dim"],
    of_points: Callable[[Array], Array] = jnp.negative,
    of_fields: Callable[[Array], Array] = lambda fields: fields,
) -> Float[Array, " points"]:
    """How far a model is from a symmetry `S`: the distance of `f(S x)` from `S f(x)`.

    **Arguments:**

    - `model`: maps a point to the fields.
    - `points`: where.
    - `of_points`: what `S` makes of a point; the reflection `-x`, unless given.
    - `of_fields`: what it makes of the fields; they stay what they are (the model is
        even), unless given. `jnp.negative` asks for an odd one.
    """
    moved = jax.vmap(lambda x: jnp.ravel(model(of_points(x))))(points)
    expected = jax.vmap(lambda x: jnp.ravel(of_fields(model(x))))(points)
    return jnp.linalg.norm(moved - expected, axis=1)


def _law(
    name: str, coords: str, fields: str, density: Callable, options: dict[str, Any]
) -> Conserved:
    names = tuple(coords.split()), tuple(fields.split())
    options = {"name": name} | options
    return Conserved(Residual(density, *names), **options)


def _index(fields: str, name: str | None) -> int:
    names = fields.split()
    if name is not None and name not in names:
        raise ValueError(unknown_name("of", name, names))
    return 0 if name is None else names.index(name)


def _nodes(domain: Any, num_points: int) -> tuple[Array, Array]:
    return domain.space.quadrature(num_points)
