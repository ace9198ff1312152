import equinox as eqx
import jax
import jax.numpy as jnp

from .._custom_types import Scalar
from .base import AbstractDomain, COMBINATIONS
from .box import AbstractBox, Face, gauss, Interval
from .pieces import AbstractPiece, Whole
from .rfunctions import both, fold, join, trim


class TimeProduct(AbstractDomain):
    """A domain of space over an interval of time: the last column is time.

    Its boundary has the pieces of `space`, at all times, and `"initial"` and `"final"`,
    all of space at the first and the last time.
    """

    space: AbstractDomain
    time: Interval

    def __init__(self, space: AbstractDomain, time: AbstractDomain):
        """**Arguments:**

        - `space`: a domain with an inside.
        - `time`: an `Interval`.
        """
        if not isinstance(time, Interval):
            raise ValueError(
                "`time` must be an `Interval`, as in `space * Interval(0, 1)`, got "
                f"{type(time).__name__}. For more coordinates use `Box`."
            )
        self.space, self.time = space, time

    def __check_init__(self):
        if isinstance(self.space, AbstractPiece | TimeProduct):
            raise ValueError(
                "`space` must be a domain of space with an inside, got "
                f"{type(self.space).__name__}."
            )
        if self.space.lower.dtype != self.time.lower.dtype:
            raise ValueError(
                f"`space` and `time` must have one type, got {self.space.lower.dtype} "
                f"and {self.time.lower.dtype}. Give both the same `dtype`."
            )

    @property
    def lower(self):
        return jnp.concatenate([self.space.lower, self.time.lower])

    @property
    def upper(self):
        return jnp.concatenate([self.space.upper, self.time.upper])

    @property
    def measure(self):
        return self.space.measure * self.time.measure

    @property
    def mass(self):
        return self.space.mass * self.time.measure

    @property
    def acceptance(self):
        return self.space.acceptance

    @property
    def unit_dim(self):
        return self.space.unit_dim + 1

    def propose(self, unit):
        points, keep = self.space.propose(unit[:, :-1])
        times, _ = self.time.propose(unit[:, -1:])
        return jnp.concatenate([points, times], axis=1), keep

    def signed_distance(self, point):
        space = self.space.signed_distance(point[:-1])
        return both(space, self.time.signed_distance(point[-1:]))

    def contains(self, points):
        inside = self.space.contains(points[:, :-1])
        return inside & self.time.contains(points[:, -1:])

    def quadrature(self, num_points):
        if isinstance(self.space, AbstractBox):
            return gauss(self.lower, self.upper, num_points)
        return AbstractDomain.quadrature(self, num_points)

    @property
    def boundaries(self):
        pieces = {
            name: Extruded(piece, self.time)
            for name, piece in self.space.boundaries.items()
        }
        return pieces | self._ends()

    def _ends(self) -> dict[str, AbstractDomain]:
        return {
            "initial": Slice(self.space, self.time, -1),
            "final": Slice(self.space, self.time, 1),
        }

    def _distance(self, point, names):
        """The distance in space times the share of time: as smooth as the former.

        In pieces of space and of time at once, its gradient on the boundary falls off
        towards the corners between them.
        """
        names = self._usual_names if names is None else names
        ends = [end for end in ("initial", "final") if end in names]
        spatial = tuple(name for name in names if name not in ends)
        width = self.time.upper[0] - self.time.lower[0]
        passed = (point[-1] - self.time.lower[0]) / width
        shares = {"initial": passed, "final": 1 - passed}
        result = self.space.distance(point[:-1], spatial) if spatial else width
        for end in ends:
            # The parabola at the scale where it is one in the middle.
            result = result * shares[end]
        if len(ends) == 2 and spatial:
            result = 4 * result
        return result

    def _near(self, point, names, side):
        if names is None:
            return fold(side * self.signed_distance(point), self._tolerance)
        parts = []
        spatial = tuple(n for n in self.space._names if n in names)
        if spatial:
            everything = None if spatial == self.space._names else spatial
            near = self.space._near(point[:-1], everything, side)
            times = self.time.signed_distance(point[-1:])
            parts.append(trim(near, times, self._size))
        for end in ("initial", "final"):
            if end in names:
                parts.append(self._near_end(point, end, side))
        return join(jnp.stack(parts))

    def _near_end(self, point, end: str, side: int) -> Scalar:
        start, stop = self.time.lower[0], self.time.upper[0]
        f = point[-1] - start if end == "initial" else stop - point[-1]
        inside = self.space.signed_distance(point[:-1])
        return trim(fold(side * f, self._tolerance), inside, self._size)

    def _whole(self, pieces):
        if len(pieces) == 2:
            return Whole(tuple(self._ends().values()))
        sides = Extruded(self.space.boundary(), self.time)
        return Whole((sides, *self._ends().values()))

    @property
    def _names(self):
        return (*self.space._names, "initial", "final")

    @property
    def _usual_names(self):
        return (*self.space._names, "initial")


COMBINATIONS["*"] = TimeProduct


class Extruded(AbstractPiece):
    """A piece of the boundary of space, at all times."""

    piece: AbstractDomain
    time: Interval

    def __init__(self, piece: AbstractDomain, time: Interval):
        self.piece, self.time = piece, time

    @property
    def lower(self):
        return jnp.concatenate([self.piece.lower, self.time.lower])

    @property
    def upper(self):
        return jnp.concatenate([self.piece.upper, self.time.upper])

    @property
    def measure(self):
        return self.piece.measure * self.time.measure

    @property
    def mass(self):
        return self.piece.mass * self.time.measure

    @property
    def acceptance(self):
        return self.piece.acceptance

    @property
    def unit_dim(self):
        return self.piece.unit_dim + 1

    def propose(self, unit):
        points, keep = self.piece.propose(unit[:, :-1])
        times, _ = self.time.propose(unit[:, -1:])
        return jnp.concatenate([points, times], axis=1), keep

    def signed_distance(self, point):
        outside = jnp.maximum(-self.time.signed_distance(point[-1:]), 0)
        return self.piece.signed_distance(point[:-1]) - outside

    def contains(self, points):
        on = self.piece.contains(points[:, :-1])
        return on & self.time.contains(points[:, -1:])

    def normals(self, points):
        normals = self.piece.normals(points[:, :-1])
        return jnp.concatenate([normals, jnp.zeros_like(points[:, -1:])], axis=1)

    def quadrature(self, num_points):
        if isinstance(self.piece, Face):
            return gauss(self.lower, self.upper, num_points, self.piece.axis)
        return AbstractPiece.quadrature(self, num_points)


class Slice(AbstractPiece):
    """All of space at the first (`side=-1`) or the last time."""

    space: AbstractDomain
    time: Interval
    side: int = eqx.field(static=True)

    def __init__(self, space: AbstractDomain, time: Interval, side: int):
        self.space, self.time, self.side = space, time, side

    @property
    def lower(self):
        return jnp.concatenate([self.space.lower, self._at()])

    @property
    def upper(self):
        return jnp.concatenate([self.space.upper, self._at()])

    @property
    def measure(self):
        return self.space.measure

    @property
    def mass(self):
        return self.space.mass

    @property
    def acceptance(self):
        return self.space.acceptance

    @property
    def unit_dim(self):
        return self.space.unit_dim

    def propose(self, unit):
        points, keep = self.space.propose(unit)
        times = jnp.broadcast_to(self._at()[None], (unit.shape[0], 1))
        return jnp.concatenate([points, times], axis=1), keep

    def signed_distance(self, point):
        outside = jnp.maximum(-self.space.signed_distance(point[:-1]), 0)
        return -jnp.abs(point[-1] - self._at()[0]) - outside

    def contains(self, points):
        gap = jnp.abs(points[:, -1] - self._at()[0])
        return self.space.contains(points[:, :-1]) & (gap <= self._tolerance)

    def normals(self, points):
        return jnp.zeros_like(points).at[:, -1].set(self.side)

    def quadrature(self, num_points):
        if isinstance(self.space, AbstractBox):
            return gauss(self.lower, self.upper, num_points, self.space.dim)
        return AbstractPiece.quadrature(self, num_points)

    def _at(self) -> jax.Array:
        return self.time.lower if self.side < 0 else self.time.upper
