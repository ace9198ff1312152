import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from .._custom_types import Scalar
from .base import AbstractDomain
from .estimate import averages, POINTS, ROWS, SCRAMBLINGS
from .pieces import AbstractPiece, Whole
from .rfunctions import fold, join, trim


# A piece's name, the operand it is of (0 or 1), its name there, the share that is left.
Kept = tuple[tuple[str, int, str, float], ...]


class AbstractCombination(AbstractDomain):
    """Two domains made one.

    The pieces of its boundary are those of the operands, each cut to what lies on the
    boundary of the result; what is cut off altogether has no name. A name that both
    have becomes `"a.name"` and `"b.name"`.

    Measures are estimates: over 65536 points for the domain, `measure_error` being the
    standard error, and at least 1024 for a piece. Points are sampled by rejection.
    Where one boundary runs along the other for a while there is no `distance`. Combine
    domains outside of `jit`: their numbers must be known.
    """

    a: AbstractDomain
    b: AbstractDomain
    share: float = eqx.field(static=True)
    share_error: float = eqx.field(static=True)
    kept: Kept = eqx.field(static=True)
    wholes: tuple[float, float] = eqx.field(static=True)
    touching: bool = eqx.field(static=True)
    swap: bool = eqx.field(static=True)

    # Whether the inside of each operand is, at its boundary, that of the result; and
    # on which side of the other operand its boundary is that of the result.
    sides: eqx.AbstractClassVar[tuple[int, int]]
    trims: eqx.AbstractClassVar[tuple[int, int]]

    def _combine(self, a: AbstractDomain, b: AbstractDomain) -> None:
        self.a, self.b = a, b
        # Known numbers stay known, also while JAX is tracing what surrounds this.
        with jax.ensure_compile_time_eval():
            _check_operands(type(self).__name__, a, b)
            self.swap = float(b.mass) < float(a.mass)
            keep = lambda unit: self.propose(unit)[1]
            dtype = a.lower.dtype
            means = averages(keep, self.unit_dim, dtype)
            self.share = float(means.mean())
            self.share_error = float(means.std(ddof=1) / SCRAMBLINGS**0.5)
            if self.share == 0:
                raise ValueError(
                    f"`{type(self).__name__}` is empty: none of {POINTS} points lies "
                    f"in it. Its operands are within {_extent(a)} and {_extent(b)}."
                )
            self.kept, self.wholes, self.touching = _survey(self)

    @property
    def measure(self):
        return self.mass * self.share

    @property
    def measure_error(self) -> Scalar:
        """The standard error of `measure`."""
        return self.mass * self.share_error

    @property
    def acceptance(self):
        return self.share

    @property
    def unit_dim(self):
        return max(self.a.unit_dim, self.b.unit_dim)

    @property
    def boundaries(self):
        return {
            name: Restricted(self, _operands(self)[i].boundary(own), i == 0, share)
            for name, i, own, share in self.kept
        }

    def _distance(self, point, names):
        """Smooth inside, but for corners of one operand inside the other of a union."""
        if self.touching:
            raise ValueError(
                f"`distance` of this {type(self).__name__} would vanish inside, as its "
                "operands' boundaries run along one another. Let the operands overlap, "
                "or use one `Polygon`."
            )
        if names is None:
            return self.signed_distance(point)
        return self._near(point, names, 1)

    def _near(self, point, names, side):
        if names is None:
            return fold(side * self.signed_distance(point), self._tolerance)
        parts = []
        operands = _operands(self)
        for i, operand in enumerate(operands):
            own = tuple(o for n, j, o, _ in self.kept if j == i and n in names)
            if own:
                everything = None if own == operand._names else own
                near = operand._near(point, everything, side * self.sides[i])
                other = operands[1 - i].signed_distance(point)
                parts.append(trim(near, self.trims[i] * other, self._size))
        return join(jnp.stack(parts))

    def _whole(self, pieces):
        del pieces
        return Whole(
            tuple(
                Restricted(self, operand.boundary(), i == 0, share)
                for i, (operand, share) in enumerate(
                    zip(_operands(self), self.wholes, strict=True)
                )
                if share > 0
            )
        )

    @property
    def _names(self):
        return tuple(name for name, *_ in self.kept)


class Restricted(AbstractPiece):
    """What of an operand's boundary lies on the boundary of the result."""

    owner: AbstractCombination
    piece: AbstractDomain
    first: bool = eqx.field(static=True)
    share: float = eqx.field(static=True)

    def __init__(
        self,
        owner: AbstractCombination,
        piece: AbstractDomain,
        first: bool,
        share: float,
    ):
        self.owner, self.piece = owner, piece
        self.first, self.share = first, share

    @property
    def lower(self):
        return self.piece.lower

    @property
    def upper(self):
        return self.piece.upper

    @property
    def measure(self):
        return self.mass * self.share

    @property
    def mass(self):
        return self.piece.mass

    @property
    def acceptance(self):
        return self.share

    @property
    def unit_dim(self):
        return self.piece.unit_dim

    def propose(self, unit):
        points, keep = self.piece.propose(unit)
        return points, keep & _exposed(self.owner, self.piece, self.first, points)

    def signed_distance(self, point):
        """Minus the distance to all of the operand's piece."""
        return self.piece.signed_distance(point)

    def contains(self, points):
        exposed = _exposed(self.owner, self.piece, self.first, points)
        return self.piece.contains(points) & exposed

    def normals(self, points):
        return _outward(self.owner, self.first) * self.piece.normals(points)


def inside(
    domain: AbstractDomain, points: Float[Array, "points dim"]
) -> Bool[Array, " points"]:
    """Which points lie strictly inside, by the sign of the distance."""
    return jax.vmap(domain.signed_distance)(points) > 0


def _operands(whole: AbstractCombination) -> tuple[AbstractDomain, AbstractDomain]:
    return whole.a, whole.b


def _outward(whole: AbstractCombination, first: bool) -> int:
    return whole.sides[0 if first else 1]


def _exposed(
    whole: AbstractCombination,
    piece: AbstractDomain,
    first: bool,
    points: Float[Array, "points dim"],
) -> Bool[Array, " points"]:
    """Which points of an operand's boundary are on the boundary of the result.

    Those from which a small step inwards leads into the result, and one outwards out of
    it: right also where the operands' boundaries coincide. There the piece of the
    first operand counts, that of the second does not.
    """
    step = float(jnp.finfo(points.dtype).eps) ** 0.5 * whole._size
    outward = step * _outward(whole, first) * piece.normals(points)
    exposed = inside(whole, points - outward) & ~inside(whole, points + outward)
    return exposed if first else exposed & ~_on(whole.a, points)


def _on(
    domain: AbstractDomain, points: Float[Array, "points dim"]
) -> Bool[Array, " points"]:
    return jnp.abs(jax.vmap(domain.signed_distance)(points)) <= domain._tolerance


def _survey(whole: AbstractCombination) -> tuple[Kept, tuple[float, float], bool]:
    """Which share of each piece and boundary is kept, and do boundaries coincide?"""
    operands = _operands(whole)
    pieces = [operand.boundaries for operand in operands]
    clash = set(pieces[0]) & set(pieces[1])
    rows = ROWS if len(pieces[0]) + len(pieces[1]) <= 16 else ROWS // 8
    kept, wholes, touching = [], [], any(_touches(operand) for operand in operands)
    for i, (letter, own) in enumerate(zip("ab", pieces, strict=True)):
        masses, shares = [], []
        for name, piece in own.items():
            share, along = _shares(whole, piece, i, rows)
            touching |= along > 1e-3
            masses.append(float(piece.mass))
            shares.append(share)
            if share > 0:
                full = f"{letter}.{name}" if name in clash else name
                kept.append((full, i, name, share))
        total = sum(masses)
        wholes.append(float(np.dot(masses, shares)) / total if total else 0.0)
    return tuple(kept), (wholes[0], wholes[1]), touching


def _shares(
    whole: AbstractCombination, piece: AbstractDomain, i: int, rows: int
) -> tuple[float, float]:
    other = _operands(whole)[1 - i]

    def exposed(unit: Array) -> Array:
        points, keep = piece.propose(unit)
        return keep & _exposed(whole, piece, i == 0, points)

    def along(unit: Array) -> Array:
        return _on(other, piece.propose(unit)[0])

    dtype = whole.a.lower.dtype
    share = averages(exposed, piece.unit_dim, dtype, 1, rows)
    shared = averages(along, piece.unit_dim, dtype, 1, rows)
    return float(share[0]), float(shared[0])


def _touches(domain: AbstractDomain) -> bool:
    return isinstance(domain, AbstractCombination) and domain.touching


def _check_operands(what: str, a: AbstractDomain, b: AbstractDomain) -> None:
    for name, domain in (("a", a), ("b", b)):
        if not isinstance(domain, AbstractDomain) or isinstance(domain, AbstractPiece):
            raise ValueError(
                f"`{name}` of {what} must be a domain with an inside, got "
                f"{type(domain).__name__}."
            )
        if isinstance(domain.lower, Tracer):
            raise ValueError(
                f"`{name}` of {what} must be known, got a traced domain: its measure "
                "is estimated on the host. Combine domains outside of `jit`."
            )
        if np.any(np.asarray(domain.lower) >= np.asarray(domain.upper)):
            raise ValueError(
                f"`{name}` of {what} must have an inside, but is flat: it lies within "
                f"{_extent(domain)}."
            )
    if a.dim != b.dim:
        raise ValueError(
            f"`a` and `b` of {what} must have one dimension, got {a.dim} and {b.dim}."
        )
    if a.lower.dtype != b.lower.dtype:
        raise ValueError(
            f"`a` and `b` of {what} must have one type, got {a.lower.dtype} and "
            f"{b.lower.dtype}. Give both the same `dtype`."
        )


def _extent(domain: AbstractDomain) -> str:
    return f"{np.asarray(domain.lower)} to {np.asarray(domain.upper)}"
