import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .base import AbstractDomain, COMBINATIONS


class AbstractPiece(AbstractDomain):
    """A part of a boundary: a set of lower dimension that has normals."""

    def distance(self, point, names=None):
        del point, names
        raise ValueError(
            "A piece of a boundary has no boundary of its own here. Ask the domain for "
            "the distance to it: `domain.distance(point, (name,))`."
        )


class Whole(AbstractPiece):
    """Several pieces as one, each met in proportion to its measure."""

    pieces: tuple[AbstractDomain, ...]

    def __init__(self, pieces: tuple[AbstractDomain, ...]):
        self.pieces = pieces

    @property
    def lower(self):
        return jnp.min(jnp.stack([p.lower for p in self.pieces]), axis=0)

    @property
    def upper(self):
        return jnp.max(jnp.stack([p.upper for p in self.pieces]), axis=0)

    @property
    def measure(self):
        return jnp.sum(jnp.stack([p.measure for p in self.pieces]))

    @property
    def mass(self):
        return jnp.sum(jnp.stack([p.mass for p in self.pieces]))

    @property
    def unit_dim(self):
        return max(p.unit_dim for p in self.pieces)

    @property
    def acceptance(self):
        return min(p.acceptance for p in self.pieces)

    def propose(self, unit):
        index, unit, points, keep = mix(self.pieces, unit)
        return points, keep

    def signed_distance(self, point):
        return jnp.max(jnp.stack([p.signed_distance(point) for p in self.pieces]))

    def contains(self, points):
        return jnp.any(jnp.stack([p.contains(points) for p in self.pieces]), axis=0)

    def normals(self, points):
        near = [jax.vmap(p.signed_distance)(points) for p in self.pieces]
        normals = jnp.stack([p.normals(points) for p in self.pieces])
        return _take(normals, jnp.argmax(jnp.stack(near), axis=0))


COMBINATIONS["whole"] = lambda pieces, _: Whole(tuple(pieces.values()))


def mix(
    parts: tuple[AbstractDomain, ...], unit: Float[Array, "rows unit_dim"]
) -> tuple[
    Int[Array, " rows"],
    Float[Array, "rows unit_dim"],
    Float[Array, "rows dim"],
    Bool[Array, " rows"],
]:
    """Points of several sets, each in proportion to what it proposes.

    **Returns:** the set that each row is of, what is left of `unit`, the points, and
    which of them are accepted.
    """
    index, unit = pick(jnp.stack([p.mass for p in parts]), unit)
    proposed = [p.propose(unit[:, : p.unit_dim]) for p in parts]
    points = _take(jnp.stack([points for points, _ in proposed]), index)
    keep = _take(jnp.stack([keep for _, keep in proposed])[..., None], index)[:, 0]
    return index, unit, points, keep


def pick(
    masses: Float[Array, " parts"], unit: Float[Array, "rows unit_dim"]
) -> tuple[Int[Array, " rows"], Float[Array, "rows unit_dim"]]:
    """Chooses a part in proportion to its mass, by the first column of `unit`.

    What is left of that column is stretched to the unit interval again, so an even
    sequence stays even within every part.
    """
    ends = jnp.cumsum(masses) / jnp.sum(masses)
    index = jnp.searchsorted(ends, unit[:, 0], side="right")
    index = jnp.minimum(index, masses.shape[0] - 1)
    starts = jnp.concatenate([jnp.zeros_like(ends[:1]), ends[:-1]])
    width = jnp.maximum(ends - starts, jnp.finfo(ends.dtype).tiny)
    left = (unit[:, 0] - starts[index]) / width[index]
    below_one = 1 - float(jnp.finfo(ends.dtype).epsneg)
    return index, unit.at[:, 0].set(jnp.clip(left, 0, below_one))


def _take(x: Array, index: Int[Array, " rows"]) -> Array:
    return jnp.take_along_axis(x, index[None, :, None], axis=0)[0]
