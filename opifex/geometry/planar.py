"""Polygons on the host: are they simple, which way around, and in which triangles."""

import numpy as np


def signed_areas(triangles: np.ndarray) -> np.ndarray:
    """The area of each of `(..., 3, 2)`, positive if its corners run anticlockwise."""
    a, b, c = np.moveaxis(triangles, -2, 0)
    u, v = b - a, c - a
    return (u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]) / 2


def area(corners: np.ndarray) -> float:
    """The area of a polygon, positive if its corners run anticlockwise (shoelace)."""
    (x, y), (x1, y1) = (corners - corners[0]).T, np.roll(corners - corners[0], -1, 0).T
    return float(np.sum(x * y1 - x1 * y) / 2)


def oriented(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The edges' starts and ends, in the given order, with the inside on their left."""
    following = np.roll(corners, -1, axis=0)
    return (corners, following) if area(corners) > 0 else (following, corners)


def check_simple(corners: np.ndarray) -> None:
    """Raises if edges cross or touch, have no length, or enclose no area."""
    following = np.roll(corners, -1, axis=0)
    size = np.ptp(corners, axis=0).max()
    short = np.linalg.norm(following - corners, axis=1) <= 1e-12 * size
    if short.any():
        at = int(np.argmax(short))
        raise ValueError(
            f"`vertices` {at} and {(at + 1) % len(corners)} are the same point, "
            f"{corners[at]}. Leave one out."
        )
    crossing = _crossing(corners, following)
    if crossing is not None:
        raise ValueError(
            f"`vertices` make edges that cross or touch: those from vertex "
            f"{crossing[0]} and from vertex {crossing[1]}. Put the vertices in the "
            "order in which they lie around the polygon."
        )
    if abs(area(corners)) <= 1e-14 * size**2:
        raise ValueError("`vertices` lie on a line, and enclose no area. Move one.")


def _crossing(starts: np.ndarray, ends: np.ndarray) -> tuple[int, int] | None:
    n, size = len(starts), np.ptp(starts, axis=0).max()
    tiny = 1e-14 * size**2

    def turn(a, b, c):
        twice = 2 * signed_areas(np.stack(np.broadcast_arrays(a, b, c), axis=-2))
        return np.where(np.abs(twice) <= tiny, 0, np.sign(twice))

    i, j = np.triu_indices(n, 1)
    a, b, c, d = starts[i], ends[i], starts[j], ends[j]
    meet = (turn(a, b, c) * turn(a, b, d) <= 0) & (turn(c, d, a) * turn(c, d, b) <= 0)
    for axis in (0, 1):
        low, high = np.sort(np.stack([a, b])[..., axis], 0)
        low2, high2 = np.sort(np.stack([c, d])[..., axis], 0)
        meet &= (low <= high2) & (low2 <= high)
    # Neighbours share a vertex; they overlap only where one turns back on the other.
    forth = j == i + 1
    neighbours = forth | ((i == 0) & (j == n - 1))
    first, second = np.where(forth, i, j), np.where(forth, j, i)
    u, v = ends[first] - starts[first], ends[second] - starts[second]
    back = (turn(starts[first], ends[first], ends[second]) == 0) & (
        np.sum(u * v, axis=1) < 0
    )
    bad = np.flatnonzero(np.where(neighbours, back, meet))
    return (int(i[bad[0]]), int(j[bad[0]])) if bad.size else None


def ear_clipping(corners: np.ndarray) -> np.ndarray:
    """Triangles that make up a simple polygon, `(vertices - 2, 3)` indices.

    An ear is three corners in a row whose triangle holds no other corner; every simple
    polygon has two (G. H. Meisters, "Polygons have ears", American Mathematical Monthly
    82(6), 1975). Of the ears, the one nearest to equilateral is cut.
    """
    left = list(range(len(corners)))
    if area(corners) < 0:
        left.reverse()
    triangles = []
    while len(left) > 3:
        at = _best_ear(corners[left])
        triangles.append([left[at - 1], left[at], left[(at + 1) % len(left)]])
        del left[at]
    return np.array([*triangles, left])


def _best_ear(chain: np.ndarray) -> int:
    ears = np.stack([np.roll(chain, 1, 0), chain, np.roll(chain, -1, 0)], axis=1)
    areas = signed_areas(ears)
    sides = np.sum((ears - np.roll(ears, 1, axis=1)) ** 2, axis=(1, 2))
    quality = areas / sides
    convex = np.flatnonzero(quality > 1e-12)
    for at in convex[np.argsort(-quality[convex])]:
        others = np.delete(chain, [at - 1, at, (at + 1) % len(chain)], axis=0)
        if not _holds(ears[at], others).any():
            return int(at)
    # Only a straight corner is in the way: a triangle without area does no harm.
    return int(np.argmin(np.abs(quality)))


def _holds(triangle: np.ndarray, points: np.ndarray) -> np.ndarray:
    inside = np.ones(len(points), bool)
    for i in range(3):
        a, b = np.broadcast_arrays(triangle[i], triangle[(i + 1) % 3])
        wedge = np.stack(np.broadcast_arrays(a, b, points), axis=-2)
        inside &= signed_areas(wedge) >= 0
    return inside


def boundary_edges(triangles: np.ndarray) -> np.ndarray:
    """The directed edges `(edges, 2)` that one anticlockwise triangle alone has."""
    edges = np.concatenate([triangles[:, [i, (i + 1) % 3]] for i in range(3)])
    distinct, counts = np.unique(edges, axis=0, return_counts=True)
    if counts.max() > 1:
        pair = distinct[np.argmax(counts)]
        raise ValueError(
            f"`triangles` lie on one another: two have the edge {pair} on the same "
            "side. Leave one out."
        )
    there = {tuple(edge) for edge in edges}
    alone = [tuple(edge[::-1]) not in there for edge in edges]
    return edges[np.array(alone)]
