import functools
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from .._custom_types import Scalar
from .._misc import check_count, check_finite
from .base import AbstractDomain
from .pieces import AbstractPiece
from .rfunctions import both, fold, join, trim


_NODES = 64  # at most of one Gauss-Legendre rule
_SIDES = ("left", "right", "bottom", "top", "back", "front")


class AbstractBox(AbstractDomain):
    """The points between two corners."""

    @property
    def measure(self):
        return _measure(self.lower, self.upper)

    def propose(self, unit):
        points = self.lower[None] + unit * (self.upper - self.lower)[None]
        return points, jnp.ones(unit.shape[0], bool)

    def signed_distance(self, point):
        return functools.reduce(both, self._arches(point))

    def contains(self, points):
        slack = self._tolerance
        inside = (points >= (self.lower - slack)[None]) & (
            points <= (self.upper + slack)[None]
        )
        return jnp.all(inside, axis=1)

    def quadrature(self, num_points):
        return gauss(self.lower, self.upper, num_points)

    @property
    def boundaries(self):
        if _fixed(self.lower, self.upper).any():
            return {}
        faces = [(axis, side) for axis in range(self.dim) for side in (-1, 1)]
        return {
            name: Face(self.lower, self.upper, axis, side)
            for name, (axis, side) in zip(_names(self.dim), faces, strict=True)
        }

    def _arches(self, point: Array) -> list[Scalar]:
        # Along each axis the parabola that vanishes at both ends, with slope one.
        width = self.upper - self.lower
        return list((point - self.lower) * (self.upper - point) / width)

    def _distance(self, point, names):
        """A polynomial, hence smooth up to the corners.

        The product of the parabolas (or of the lines, where one face of two is named)
        that vanish on the faces. Its gradient is one on a face in one dimension; in
        more it falls off along the face towards the corners, from one at the middle of
        the closest faces.
        """
        self._check_full()
        width = self.upper - self.lower
        known, shares, scales = _names(self.dim), [], []
        for axis in range(self.dim):
            sides = [s for s in (0, 1) if names is None or known[2 * axis + s] in names]
            below = (point[axis] - self.lower[axis]) / width[axis]
            factors = [(below, 1 - below)[side] for side in sides]
            if len(sides) == 2:
                factors.append(jnp.asarray(4, point.dtype))
            if sides:
                shares.extend(factors)
                scales.append(width[axis] / len(sides) ** 2)
        return jnp.min(jnp.stack(scales)) * functools.reduce(jnp.multiply, shares)

    def _near(self, point, names, side):
        if names is None:
            return fold(side * self.signed_distance(point), self._tolerance)
        faces = [i for i, name in enumerate(_names(self.dim)) if name in names]
        return join(jnp.stack([self._near_face(point, i, side) for i in faces]))

    def _near_face(self, point: Array, face: int, side: int) -> Scalar:
        axis, end = divmod(face, 2)
        f = self.upper[axis] - point[axis] if end else point[axis] - self.lower[axis]
        f = fold(side * f, self._tolerance)
        others = [g for i, g in enumerate(self._arches(point)) if i != axis]
        if not others:
            return f
        length = jnp.max(self.upper - self.lower)
        return trim(f, functools.reduce(both, others), length)

    def _check_full(self) -> None:
        fixed = _fixed(self.lower, self.upper)
        if fixed.any():
            raise ValueError(
                "`distance` needs a box with an inside, got equal bounds in coordinate "
                f"{int(np.argmax(fixed))}. Ask the box that this is a face of."
            )


class Box(AbstractBox):
    """The points between two corners.

    A coordinate whose bounds are equal is held fixed, so a face, an edge or an initial
    time is a `Box` too: `Box([-1, 0], [1, 0])` is the line `t = 0` over `[-1, 1]`. It
    can be sampled; its `measure` is that of the other coordinates.

    Its faces are `"left"`, `"right"`, then `"bottom"`, `"top"`, then `"back"`,
    `"front"`; from four dimensions on `"x0-"`, `"x0+"`, `"x1-"` and so on.
    """

    lower: Float[Array, " dim"]
    upper: Float[Array, " dim"]

    def __init__(
        self,
        lower: ArrayLike | Sequence[int | float],
        upper: ArrayLike | Sequence[int | float],
        dtype: Any = None,
    ):
        """**Arguments:**

        - `lower`, `upper`: opposite corners, one number a coordinate.
        - `dtype`: of the points; the default float unless given.
        """
        dtype = jnp.result_type(float) if dtype is None else dtype
        # Through NumPy, so that lists of numbers do as well as arrays.
        self.lower = jnp.asarray(np.asarray(lower), dtype)
        self.upper = jnp.asarray(np.asarray(upper), dtype)

    def __check_init__(self):
        if self.lower.shape != self.upper.shape or self.lower.ndim != 1:
            raise ValueError(
                "`lower` and `upper` must be vectors of one length, got shapes "
                f"{self.lower.shape} and {self.upper.shape}."
            )
        check_finite("lower", self.lower)
        check_finite("upper", self.upper)
        traced = isinstance(self.lower, Tracer) or isinstance(self.upper, Tracer)
        if not traced and np.any(np.asarray(self.lower) > np.asarray(self.upper)):
            raise ValueError(
                f"`lower` must not exceed `upper`, got {self.lower} and {self.upper}."
            )


class Interval(AbstractBox):
    """The numbers from `start` to `end`; its ends are `"left"` and `"right"`."""

    lower: Float[Array, " 1"]
    upper: Float[Array, " 1"]

    def __init__(self, start: ArrayLike, end: ArrayLike, dtype: Any = None):
        """**Arguments:**

        - `start`, `end`: numbers, the first the smaller.
        - `dtype`: of the points; the default float unless given.
        """
        dtype = jnp.result_type(float) if dtype is None else dtype
        self.lower = jnp.asarray(start, dtype).reshape(1)
        self.upper = jnp.asarray(end, dtype).reshape(1)

    def __check_init__(self):
        check_finite("start", self.lower)
        check_finite("end", self.upper)
        traced = isinstance(self.lower, Tracer) or isinstance(self.upper, Tracer)
        if not traced and not np.asarray(self.lower) < np.asarray(self.upper):
            raise ValueError(
                f"`start` must be less than `end`, got {self.lower[0]} and "
                f"{self.upper[0]}. Swap them, or move them apart."
            )


class Face(AbstractPiece):
    """Where one coordinate of a box takes its least (`side=-1`) or greatest value."""

    lower: Float[Array, " dim"]
    upper: Float[Array, " dim"]
    axis: int = eqx.field(static=True)
    side: int = eqx.field(static=True)

    def __init__(self, lower: Array, upper: Array, axis: int, side: int):
        at = lower[axis] if side < 0 else upper[axis]
        self.lower, self.upper = lower.at[axis].set(at), upper.at[axis].set(at)
        self.axis, self.side = axis, side

    @property
    def measure(self):
        width = (self.upper - self.lower).at[self.axis].set(1)
        return jnp.prod(width)

    def propose(self, unit):
        points = self.lower[None] + unit * (self.upper - self.lower)[None]
        return points, jnp.ones(unit.shape[0], bool)

    def signed_distance(self, point):
        return -jnp.linalg.norm(point - jnp.clip(point, self.lower, self.upper))

    def normals(self, points):
        return jnp.zeros_like(points).at[:, self.axis].set(self.side)

    def quadrature(self, num_points):
        return gauss(self.lower, self.upper, num_points, self.axis)


def gauss(
    lower: Float[Array, " dim"],
    upper: Float[Array, " dim"],
    num_points: int,
    axis: int | None = None,
) -> tuple[Float[Array, "points dim"], Float[Array, " points"]]:
    """A Gauss-Legendre rule in every coordinate, of about `num_points` in all.

    More than 64 nodes a coordinate are shared out over panels of equal length.
    One point in `axis` and in coordinates whose bounds are equal.
    """
    check_count("num_points", num_points)
    fixed = _fixed(lower, upper)
    if axis is not None:
        fixed[axis] = True
    each = max(1, round(num_points ** (1 / max(1, (~fixed).sum()))))
    nodes, weights = _rule(each)
    rules = [((np.zeros(1), np.ones(1)) if f else (nodes, weights / 2)) for f in fixed]
    grid = np.meshgrid(*[x for x, _ in rules], indexing="ij")
    shares = np.meshgrid(*[w for _, w in rules], indexing="ij")
    unit = jnp.asarray(np.stack([(g.ravel() + 1) / 2 for g in grid], 1), lower.dtype)
    share = jnp.asarray(np.prod([s.ravel() for s in shares], 0), lower.dtype)
    size = jnp.prod(jnp.where(jnp.asarray(fixed), 1, upper - lower))
    return lower[None] + unit * (upper - lower)[None], share * size


def _rule(count: int) -> tuple[np.ndarray, np.ndarray]:
    # To find many nodes at once takes long, so many are shared out over panels.
    panels = -(-count // _NODES)
    nodes, weights = np.polynomial.legendre.leggauss(-(-count // panels))
    starts = 2 * np.arange(panels)[:, None] + 1 - panels
    nodes = (starts + nodes) / panels
    return nodes.ravel(), np.tile(weights / panels, panels)


def _names(dim: int) -> list[str]:
    if dim <= 3:
        return list(_SIDES[: 2 * dim])
    return [f"x{axis}{sign}" for axis in range(dim) for sign in "-+"]


def _measure(lower: Array, upper: Array) -> Scalar:
    return jnp.prod(jnp.where(upper > lower, upper - lower, 1))


def _fixed(lower: Array, upper: Array) -> np.ndarray:
    """The coordinates whose bounds are known to be equal."""
    if isinstance(lower, Tracer) or isinstance(upper, Tracer):
        return np.zeros(lower.shape[0], bool)
    return np.asarray(lower) == np.asarray(upper)
