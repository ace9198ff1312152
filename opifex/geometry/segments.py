import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._custom_types import Scalar
from .pieces import AbstractPiece, pick
from .rfunctions import fold, join, trim


class Segments(AbstractPiece):
    """Edges in the plane, each with the inside on its left."""

    starts: Float[Array, "edges 2"]
    ends: Float[Array, "edges 2"]

    def __init__(self, starts: Array, ends: Array):
        self.starts, self.ends = starts, ends

    @property
    def lower(self):
        return jnp.minimum(jnp.min(self.starts, axis=0), jnp.min(self.ends, axis=0))

    @property
    def upper(self):
        return jnp.maximum(jnp.max(self.starts, axis=0), jnp.max(self.ends, axis=0))

    @property
    def measure(self):
        return jnp.sum(jnp.linalg.norm(self.ends - self.starts, axis=1))

    @property
    def unit_dim(self):
        return 1

    def propose(self, unit):
        lengths = jnp.linalg.norm(self.ends - self.starts, axis=1)
        index, unit = pick(lengths, unit)
        starts = self.starts[index]
        points = starts + unit[:, :1] * (self.ends[index] - starts)
        return points, jnp.ones(unit.shape[0], bool)

    def signed_distance(self, point):
        return -jnp.min(self._gaps(point))

    def normals(self, points):
        along = self.ends - self.starts
        outward = jnp.stack([along[:, 1], -along[:, 0]], axis=1)
        outward = outward / jnp.linalg.norm(outward, axis=1, keepdims=True)
        return outward[jnp.argmin(jax.vmap(self._gaps)(points), axis=1)]

    def _gaps(self, point: Float[Array, " 2"]) -> Float[Array, " edges"]:
        along, from_start = self.ends - self.starts, point[None] - self.starts
        share = jnp.sum(from_start * along, axis=1) / jnp.sum(along**2, axis=1)
        nearest = jnp.clip(share, 0, 1)[:, None] * along
        return jnp.linalg.norm(from_start - nearest, axis=1)


def near_segments(
    point: Float[Array, " 2"],
    segments: Segments,
    side: int,
    tolerance: Scalar,
) -> Scalar:
    """The distance to lines trimmed to segments, joined (Sukumar and Srivastava, 2022).

    Zero on the segments only. Within an edge's length of its middle about the distance;
    further away less.
    """
    along, from_start = segments.ends - segments.starts, point[None] - segments.starts
    length = jnp.linalg.norm(along, axis=1)
    f = along[:, 0] * from_start[:, 1] - along[:, 1] * from_start[:, 0]
    middle = (segments.starts + segments.ends) / 2
    t = length / 4 - jnp.sum((point[None] - middle) ** 2, axis=1) / length
    return join(trim(fold(side * f / length, tolerance), t, length))


def encloses(segments: Segments, point: Float[Array, " 2"]) -> Bool[Array, ""]:
    """Whether a ray from `point` crosses closed chains of edges an odd time."""
    (x0, y0), (x1, y1) = segments.starts.T, segments.ends.T
    crosses = (y0 > point[1]) != (y1 > point[1])
    rise = jnp.where(crosses, y1 - y0, 1)
    x = x0 + (point[1] - y0) * (x1 - x0) / rise
    return jnp.sum(crosses & (x > point[0])) % 2 == 1
