from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import Array

from .._custom_types import Key
from .._misc import check_count
from ..geometry.base import AbstractDomain
from .conditions import AbstractCondition, part_of, Periodic, Setting, weighted
from .conservation import Conserved


class AtPoints(eqx.Module):
    """Conditions and conserved quantities, with the points at which they are asked for.

    The points are the same at every step, so these can be a part of the loss of a
    problem whose batches know nothing of a domain.

    **Arguments:**

    - `setting`: what they are a part of.
    - `conditions`, `points`: as many sets of points as conditions.
    - `laws`, `times`: what does not change in time, and when it is asked for.
    """

    setting: Setting
    conditions: tuple[AbstractCondition, ...]
    points: tuple[Array, ...]
    laws: tuple[Conserved, ...] = ()
    times: Array | None = None

    def residuals(self, model: Callable) -> dict[str, Array]:
        """By the name of its term, by how much a model of one point fails each.

        A condition is called `"boundary/left/u"` or, at the first time, `"initial/u"`,
        a law `"times/energy"`.
        """
        setting, out = self.setting, {}
        for condition, points in zip(self.conditions, self.points, strict=True):
            name = term_of(condition, setting.fields)
            residual = condition.residual(setting, model, points)
            out[name] = weighted(condition.weight, residual)
        for law in self.laws:
            assert self.times is not None
            excess = law.residual(setting, model, self.times)
            out[f"times/{law.name}"] = weighted(law.weight, excess)
        return out


def as_type(tree: Any, dtype: Any) -> Any:
    """`tree` with its real arrays in another type."""
    cast = lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x
    return jtu.tree_map(cast, tree)


def term_of(condition: AbstractCondition, fields: tuple[str, ...]) -> str:
    """The name of the term of a condition."""
    label = condition.label(fields)
    known = label.split("/")[0] in ("boundary", "initial")
    return label if known else f"boundary/{label}"


def setting_of(
    domain: AbstractDomain,
    conditions: Iterable[AbstractCondition],
    *,
    fields: tuple[str, ...] = ("u",),
    coords: tuple[str, ...] | None = None,
) -> Setting:
    """What conditions are a part of, where there is no equation to say it.

    **Arguments:**

    - `domain`, `conditions`: the geometry, and all that holds there.
    - `fields`: the names of the outputs of the model.
    - `coords`: of the columns of its inputs; made up, unless given.

    **Raises:** `ValueError` for a field, or a part of the boundary, that does not
    exist.
    """
    if coords is None:
        coords = tuple(f"x{i}" for i in range(domain.dim))
    if len(coords) != domain.dim:
        raise ValueError(
            f"`domain` is of dimension {domain.dim}, but there are the coordinates "
            f"{coords}. Name one a column of the points."
        )
    periodic = [c for c in conditions if isinstance(c, Periodic)]
    axes = tuple((c.boundary, c.axis(domain)) for c in periodic)
    setting = Setting(domain, coords, fields, "auto", axes)
    for condition in conditions:
        part_of(domain, condition.boundary)
        setting.index(condition.field)
    return setting


def at_points(
    setting: Setting,
    conditions: Iterable[AbstractCondition],
    *,
    conserved: Iterable[Conserved] = (),
    num_points: int = 64,
    key: Key,
) -> AtPoints:
    """Draws the points for those of `conditions` that are not exact.

    **Arguments:**

    - `setting`: from [`setting_of`][].
    - `conditions`, `conserved`: what shall hold.
    - `num_points`: for each of them.
    - `key`: of the draw.

    **Raises:** `ValueError` for a law that cannot be stated there, and for two that are
    the same.
    """
    check_count("num_points", num_points)
    soft, laws = tuple(c for c in conditions if not c.exact), tuple(conserved)
    names = [term_of(c, setting.fields) for c in soft] + [law.name for law in laws]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} is prescribed twice. Keep one of them.")
    draw = lambda domain, i: domain.sample(num_points, jr.fold_in(key, i))
    parts = [part_of(setting.domain, c.boundary) for c in soft]
    points = tuple(draw(part, i) for i, part in enumerate(parts))
    times = None
    for law in laws:
        law.check(setting)
        start, end = setting.domain.lower[-1], setting.domain.upper[-1]
        times = jnp.linspace(start, end, num_points + 1, dtype=start.dtype)[1:]
    return AtPoints(setting, soft, points, laws, times)
