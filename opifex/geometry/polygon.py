from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .._misc import check_finite
from .base import AbstractDomain
from .pieces import pick
from .planar import boundary_edges, check_simple, ear_clipping, oriented, signed_areas
from .segments import encloses, near_segments, Segments


class AbstractPolygonal(AbstractDomain):
    """A region of the plane made of triangles, within edges."""

    triangles: eqx.AbstractVar[Float[Array, "triangles 3 2"]]
    edges: eqx.AbstractVar[Segments]
    pieces: eqx.AbstractVar[tuple[tuple[str, tuple[int, ...]], ...]]

    @property
    def lower(self):
        return self.edges.lower

    @property
    def upper(self):
        return self.edges.upper

    @property
    def measure(self):
        return jnp.sum(self._areas())

    def propose(self, unit):
        index, unit = pick(self._areas(), unit)
        a, b, c = jnp.moveaxis(self.triangles[index], 1, 0)
        # A square to a triangle, equal areas to equal areas.
        root = jnp.sqrt(unit[:, :1])
        points = (
            (1 - root) * a + root * (1 - unit[:, 1:2]) * b + root * unit[:, 1:2] * c
        )
        return points, jnp.ones(unit.shape[0], bool)

    def signed_distance(self, point):
        near = self._near(point, None, 1)
        # Within rounding of the boundary the sign is already that of the nearest edge.
        outside = (near > self._tolerance) & ~encloses(self.edges, point)
        return jnp.where(outside, -near, near)

    @property
    def boundaries(self):
        return {name: self._some((name,)) for name, _ in self.pieces}

    def _distance(self, point, names):
        """Smooth inside and on the edges; at the vertices it has no gradient.

        Its gradient on an edge is the inward unit normal. Away from the edges it is
        less than the distance, the more so the more edges there are.
        """
        if names is None:
            return self.signed_distance(point)
        return self._near(point, names, 1)

    def _near(self, point, names, side):
        edges = self.edges if names is None else self._some(names)
        return near_segments(point, edges, side, self._tolerance)

    def _some(self, names: tuple[str, ...]) -> Segments:
        index = np.array([i for name, own in self.pieces if name in names for i in own])
        return Segments(self.edges.starts[index], self.edges.ends[index])

    def _whole(self, pieces):
        return self.edges

    @property
    def _names(self):
        return tuple(name for name, _ in self.pieces)

    def _areas(self) -> Float[Array, " triangles"]:
        (a, b, c) = jnp.moveaxis(self.triangles, 1, 0)
        u, v = b - a, c - a
        return jnp.abs(u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]) / 2


class Polygon(AbstractPolygonal):
    """The inside of a closed chain of edges that do not cross.

    Edge `i` leads from vertex `i` to the next. The pieces of the boundary are
    `"edge0"`, `"edge1"` and so on, or as `names` says; edges of one name are one piece.
    """

    triangles: Float[Array, "triangles 3 2"]
    edges: Segments
    pieces: tuple[tuple[str, tuple[int, ...]], ...] = eqx.field(static=True)

    def __init__(
        self,
        vertices: ArrayLike | Sequence[Any],
        names: Sequence[str] | None = None,
        dtype: Any = None,
    ):
        """**Arguments:**

        - `vertices`: `(vertices, 2)`, in order, either way around; the last is joined
            to the first.
        - `names`: of the edges, as many as there are vertices.
        - `dtype`: of the points; the default float unless given.
        """
        corners = plane_points("vertices", vertices, least=3)
        check_simple(corners)
        if names is None:
            names = [f"edge{i}" for i in range(len(corners))]
        if len(names) != len(corners):
            raise ValueError(
                f"`names` must hold one name an edge, {len(corners)} in all, got "
                f"{len(names)}: {list(names)}."
            )
        starts, ends = oriented(corners)
        dtype = jnp.result_type(float) if dtype is None else dtype
        self.triangles = jnp.asarray(corners[ear_clipping(corners)], dtype)
        self.edges = Segments(jnp.asarray(starts, dtype), jnp.asarray(ends, dtype))
        self.pieces = tuple(
            (name, tuple(i for i, own in enumerate(names) if own == name))
            for name in dict.fromkeys(names)
        )


class TriangleMesh(AbstractPolygonal):
    """A region of the plane, given by triangles that share whole edges.

    The boundary is made of the edges that only one triangle has. Each closed chain of
    them is a piece, the longest `"loop0"`, the next `"loop1"` and so on. Triangles that
    overlap are not noticed.
    """

    triangles: Float[Array, "triangles 3 2"]
    edges: Segments
    pieces: tuple[tuple[str, tuple[int, ...]], ...] = eqx.field(static=True)

    def __init__(
        self,
        vertices: ArrayLike | Sequence[Any],
        triangles: ArrayLike | Sequence[Any],
        dtype: Any = None,
    ):
        """**Arguments:**

        - `vertices`: `(vertices, 2)`.
        - `triangles`: `(triangles, 3)`, the vertices of each, in either order.
        - `dtype`: of the points; the default float unless given.
        """
        corners = plane_points("vertices", vertices, least=3)
        index = _mesh_index(triangles, corners)
        pairs = boundary_edges(index)
        dtype = jnp.result_type(float) if dtype is None else dtype
        starts, ends = (jnp.asarray(corners[pairs[:, i]], dtype) for i in (0, 1))
        self.triangles = jnp.asarray(corners[index], dtype)
        self.edges = Segments(starts, ends)
        self.pieces = _loops(pairs, corners)


def plane_points(name: str, value: Any, least: int) -> np.ndarray:
    """`value` as `(points, 2)` finite numbers on the host."""
    points = np.asarray(value, float)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < least:
        raise ValueError(
            f"`{name}` must be at least {least} points of the plane, `(points, 2)`, "
            f"got shape {points.shape}."
        )
    check_finite(name, jnp.asarray(points))
    return points


def _mesh_index(triangles: Any, corners: np.ndarray) -> np.ndarray:
    index = np.asarray(triangles)
    if index.ndim != 2 or index.shape[1] != 3 or index.dtype.kind not in "iu":
        raise ValueError(
            "`triangles` must be whole numbers of shape `(triangles, 3)`, got shape "
            f"{index.shape} and dtype {index.dtype}."
        )
    if index.size == 0 or index.min() < 0 or index.max() >= len(corners):
        raise ValueError(
            f"`triangles` must index the {len(corners)} vertices, from 0, got numbers "
            f"{index.min(initial=0)} to {index.max(initial=0)} in {len(index)} rows."
        )
    areas = signed_areas(corners[index])
    if np.any(np.abs(areas) <= 1e-14 * np.max(np.abs(areas))):
        flat = int(np.argmin(np.abs(areas)))
        raise ValueError(
            f"`triangles` has one without area, {index[flat]} in row {flat}. Leave it "
            "out, or move its vertices."
        )
    return np.where((areas > 0)[:, None], index, index[:, ::-1])


def _loops(
    pairs: np.ndarray, corners: np.ndarray
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    size = (len(corners),) * 2
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=size)
    labels = connected_components(graph, directed=False)[1][pairs[:, 0]]
    lengths = np.linalg.norm(corners[pairs[:, 1]] - corners[pairs[:, 0]], axis=1)
    found = [np.flatnonzero(labels == label) for label in dict.fromkeys(labels)]
    found.sort(key=lambda own: -lengths[own].sum())
    return tuple((f"loop{i}", tuple(map(int, own))) for i, own in enumerate(found))
