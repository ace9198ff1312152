import abc
import bisect
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from equinox import AbstractVar
from jaxtyping import Array, Bool, Float

from .._custom_types import Key, Scalar
from .._misc import check_count, unknown_name
from .estimate import POINTS, sobol


Names = tuple[str, ...]

# What `|`, `&`, `-` and `*` build. Filled by the files that define it, which are built
# on this one and so cannot be imported here.
COMBINATIONS: dict[str, Callable[[Any, Any], "AbstractDomain"]] = {}


class AbstractDomain(eqx.Module):
    """A closed set of points: it can be sampled evenly, and knows its boundary.

    A domain is a pytree of its numbers. Its points have the type of `lower`. Domains
    of one dimension are combined by `a | b`, `a & b` and `a - b`; `space *
    Interval(t0, t1)` adds a column for time.

    **Attributes:**

    - `lower`, `upper`: opposite corners of a box that holds the domain.
    - `measure`: its length, area or volume. Where there is no closed form it is an
        estimate, and the class says how good a one.
    """

    lower: AbstractVar[Float[Array, " dim"]]
    upper: AbstractVar[Float[Array, " dim"]]
    measure: AbstractVar[Scalar]

    @abc.abstractmethod
    def propose(
        self, unit: Float[Array, "rows unit_dim"]
    ) -> tuple[Float[Array, "rows dim"], Bool[Array, " rows"]]:
        """Maps the unit cube to points, row by row, equal volumes to equal measures.

        **Arguments:**

        - `unit`: points in `[0, 1)^unit_dim`, random or of a low-discrepancy sequence.

        **Returns:** as many points, and which of them lie in the domain.
        """

    @abc.abstractmethod
    def signed_distance(self, point: Float[Array, " dim"]) -> Scalar:
        """About the distance to the boundary: positive inside, negative outside.

        Zero on the boundary, where its gradient is the inward unit normal (but for
        corners). Further away only the sign is exact. For a piece of a boundary, which
        has no inside, minus the distance to it.
        """

    @property
    def dim(self) -> int:
        return self.lower.shape[0]

    @property
    def unit_dim(self) -> int:
        """How many numbers of the unit cube a proposed point takes."""
        return self.dim

    @property
    def acceptance(self) -> float:
        """At least about which share of the proposed points lies in the domain."""
        return 1.0

    @property
    def mass(self) -> Scalar:
        """The measure of what is proposed, were all of it accepted."""
        return self.measure / self.acceptance

    def unit_shape(self, num_points: int) -> tuple[int, int]:
        """The shape of the `unit` that `from_unit` makes `num_points` points of."""
        share = self.acceptance
        if share == 1:
            return num_points, self.unit_dim
        # The share is itself an estimate: lowered by four standard errors. Then enough
        # rows that a binomial variable falls short by six, about once in 1e9 times.
        share = max(share - 4 * math.sqrt(share * (1 - share) / POINTS), share / 4)
        spread = 6 * math.sqrt(1 - share)
        root = (spread + math.sqrt(spread**2 + 4 * num_points)) / 2
        return math.ceil(root**2 / share), self.unit_dim

    def from_unit(
        self, unit: Float[Array, "rows unit_dim"], num_points: int | None = None
    ) -> Float[Array, "points dim"]:
        """Maps the unit cube onto the domain, equal volumes to equal measures.

        The first `num_points` of the proposed points that lie in the domain are taken.
        Should there be fewer, they are taken again, in turn.

        **Arguments:**

        - `unit`: points in `[0, 1)`, random or of a low-discrepancy sequence, of shape
            `unit_shape(num_points)`.
        - `num_points`: how many points to return; unless given, as many as `unit` has
            enough rows for.
        """
        points, keep = self.propose(unit)
        if self.acceptance == 1:
            return points
        if num_points is None:
            rows = unit.shape[0]
            needs = lambda n: self.unit_shape(n)[0]
            num_points = bisect.bisect_right(range(1, rows + 1), rows, key=needs)
            check_count("num_points", num_points)
        index = jnp.nonzero(keep, size=num_points)[0]
        count = jnp.maximum(jnp.sum(keep), 1).astype(index.dtype)
        turn = jnp.arange(num_points, dtype=index.dtype) % count
        return points[index[turn]]

    def sample(self, num_points: int, key: Key) -> Float[Array, "points dim"]:
        """`num_points` independent points, uniform over the domain."""
        shape = self.unit_shape(num_points)
        return self.from_unit(jr.uniform(key, shape, self.lower.dtype), num_points)

    def contains(self, points: Float[Array, "points dim"]) -> Bool[Array, " points"]:
        """Which points lie in the domain, up to rounding (`eps**0.75` of its size)."""
        return jax.vmap(self.signed_distance)(points) >= -self._tolerance

    def quadrature(
        self, num_points: int
    ) -> tuple[Float[Array, "points dim"], Float[Array, " points"]]:
        """Points and weights with `sum(weights * f(points))` about the integral of `f`.

        Gauss-Legendre rules in every coordinate of intervals, boxes and their faces,
        of about `num_points` points in all; elsewhere the equal weights `measure /
        num_points` at points of a Sobol sequence.
        """
        check_count("num_points", num_points)
        unit = sobol(*self.unit_shape(num_points), seed=0)
        points = self.from_unit(jnp.asarray(unit, self.lower.dtype), num_points)
        return points, jnp.full(num_points, self.measure / num_points)

    @property
    def boundaries(self) -> dict[str, "AbstractDomain"]:
        """The named pieces of the boundary, in order; none for a piece itself."""
        return {}

    def boundary(self, name: str = "boundary") -> "AbstractDomain":
        """One piece of the boundary; `"boundary"` is all of it, in due proportion."""
        pieces = self.boundaries
        if name in pieces:
            return pieces[name]
        if name == "boundary" and pieces:
            return self._whole(pieces)
        raise ValueError(unknown_name("name", name, pieces))

    def normals(self, points: Float[Array, "points dim"]) -> Float[Array, "points dim"]:
        """Outward unit normals at points of a piece of the boundary.

        Across time only: their last component is zero except on `"initial"` and
        `"final"`.
        """
        raise ValueError(
            f"`normals` are those of a boundary, got {type(self).__name__}. Ask a "
            'piece of it: `domain.boundary("boundary").normals(points)`.'
        )

    def distance(
        self, point: Float[Array, " dim"], names: Names | None = None
    ) -> Scalar:
        """An approximate distance: zero on the boundary, positive inside, smooth.

        Its gradient on the boundary is the inward unit normal, except where a class
        says otherwise. It has derivatives of every order inside, but not at corners.

        **Arguments:**

        - `point`: one point; use `jax.vmap` for many.
        - `names`: of the pieces on which it is to be zero, and only there. All unless
            given, but for `"final"` of a product with time.

        ??? cite "References"

            N. Sukumar and A. Srivastava, "Exact imposition of boundary conditions with
            distance functions in physics-informed deep neural networks", Computer
            Methods in Applied Mechanics and Engineering 389, 2022.
            V. L. Rvachev, T. I. Sheiko, V. Shapiro and I. Tsukanov, "Transfinite
            interpolation over implicitly defined sets", Computer Aided Geometric
            Design 18(3), 2001.
        """
        if point.shape != (self.dim,):
            raise ValueError(
                f"`point` must be one point of shape {(self.dim,)}, got shape "
                f"{point.shape}. For many points use `jax.vmap(domain.distance)`."
            )
        if names is not None:
            names = self._resolve(names)
        return self._distance(point, names)

    def _resolve(self, names: Names) -> Names | None:
        # None stands for the usual ones, for which there may be a better function.
        known = self._names
        if not names:
            raise ValueError(f"`names` is empty. Known names are {list(known)}.")
        for name in names:
            if name not in known and not (name == "boundary" and known):
                raise ValueError(unknown_name("names", name, known))
        chosen = tuple(n for n in known if n in names or "boundary" in names)
        return None if chosen == self._usual_names else chosen

    @property
    def _names(self) -> Names:
        return tuple(self.boundaries)

    @property
    def _usual_names(self) -> Names:
        return self._names

    def _distance(self, point: Array, names: Names | None) -> Scalar:
        return self._near(point, names, 1)

    def _near(self, point: Array, names: Names | None, side: int) -> Scalar:
        """Zero on the pieces `names` (all if None) and nowhere else in all of space.

        Positive elsewhere, its gradient pointing to the inside (`side=1`) or the
        outside (`side=-1`) on the pieces.
        """
        del point, names, side
        raise ValueError(
            f"There is no distance to a boundary for {type(self).__name__}."
        )

    def _whole(self, pieces: dict[str, "AbstractDomain"]) -> "AbstractDomain":
        return COMBINATIONS["whole"](pieces, None)

    @property
    def _size(self) -> Scalar:
        far = jnp.maximum(jnp.abs(self.lower), jnp.abs(self.upper))
        return jnp.max(far) + jnp.max(self.upper - self.lower)

    @property
    def _tolerance(self) -> Scalar:
        return float(jnp.finfo(self.lower.dtype).eps) ** 0.75 * self._size

    def __or__(self, other: "AbstractDomain") -> "AbstractDomain":
        return COMBINATIONS["|"](self, other)

    def __and__(self, other: "AbstractDomain") -> "AbstractDomain":
        return COMBINATIONS["&"](self, other)

    def __sub__(self, other: "AbstractDomain") -> "AbstractDomain":
        return COMBINATIONS["-"](self, other)

    def __mul__(self, other: "AbstractDomain") -> "AbstractDomain":
        return COMBINATIONS["*"](self, other)
