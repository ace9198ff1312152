import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float
from scipy.special import elliprg

from .ball import (
    AbstractRound,
    ball_measure,
    check_positive,
    sphere_unit_dim,
    to_sphere,
    Vector,
    vector,
)
from .estimate import averages
from .pieces import AbstractPiece


_ARCS = 4096  # of the table of arc lengths; the error falls with its square


class Ellipsoid(AbstractRound):
    """The points with `sum(((x - center) / semi_axes)**2) <= 1`, in the plane or more.

    Its boundary is `"surface"`. The length (in the plane) and the area (in space) of
    the surface are exact; in more dimensions it is an average over 65536 points.
    """

    center: Float[Array, " dim"]
    semi_axes: Float[Array, " dim"]
    share: float = eqx.field(static=True)  # accepted of the points on the surface

    def __init__(self, center: Vector, semi_axes: Vector, dtype: Any = None):
        """**Arguments:**

        - `center`: one number a coordinate.
        - `semi_axes`: half the width along each coordinate.
        - `dtype`: of the points; the default float unless given.
        """
        self.center = vector("center", center, dtype)
        self.semi_axes = vector("semi_axes", semi_axes, dtype)
        check_positive("semi_axes", self.semi_axes)
        if self.center.shape != self.semi_axes.shape:
            raise ValueError(
                "`center` and `semi_axes` must have one length, got shapes "
                f"{self.center.shape} and {self.semi_axes.shape}."
            )
        self.share = _surface_share(self.semi_axes)

    @property
    def reach(self):
        return self.semi_axes

    def signed_distance(self, point):
        # f / sqrt(|grad f|^2 + f^2 / length^2) is normalised, and smooth everywhere:
        # f = 1 where its gradient vanishes (Rvachev et al., 2001).
        scaled = (point - self.center) / self.semi_axes
        f = 1 - jnp.sum(scaled**2)
        square = jnp.sum((2 * scaled / self.semi_axes) ** 2)
        return f / jnp.sqrt(square + (f / jnp.min(self.semi_axes)) ** 2)

    @property
    def boundaries(self):
        if self.dim == 2:
            return {"surface": EllipseCurve(self.center, self.semi_axes)}
        return {"surface": EllipsoidSurface(self.center, self.semi_axes, self.share)}


class AbstractEllipsoidSurface(AbstractPiece):
    """What the surfaces have in common, however they are sampled."""

    center: eqx.AbstractVar[Float[Array, " dim"]]
    semi_axes: eqx.AbstractVar[Float[Array, " dim"]]

    @property
    def lower(self):
        return self.center - self.semi_axes

    @property
    def upper(self):
        return self.center + self.semi_axes

    def signed_distance(self, point):
        # To first order: |f| / |grad f|, kept finite at the centre.
        scaled = (point - self.center) / self.semi_axes
        f = 1 - jnp.sum(scaled**2)
        square = jnp.sum((2 * scaled / self.semi_axes) ** 2)
        return -jnp.abs(f) / jnp.sqrt(square + (f / jnp.min(self.semi_axes)) ** 2)

    def normals(self, points):
        outward = (points - self.center[None]) / self.semi_axes[None] ** 2
        return outward / jnp.linalg.norm(outward, axis=1, keepdims=True)


class EllipseCurve(AbstractEllipsoidSurface):
    """An ellipse as a curve, sampled by a table of its arc length."""

    center: Float[Array, " dim"]
    semi_axes: Float[Array, " dim"]

    def __init__(self, center: Array, semi_axes: Array):
        self.center, self.semi_axes = center, semi_axes

    @property
    def measure(self):
        return self._table()[1][-1]

    @property
    def unit_dim(self):
        return 1

    def propose(self, unit):
        angles, lengths = self._table()
        angle = jnp.interp(unit[:, 0] * lengths[-1], lengths, angles)
        circle = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
        points = self.center[None] + self.semi_axes[None] * circle
        return points, jnp.ones(unit.shape[0], bool)

    def _table(self) -> tuple[Array, Array]:
        # Simpson's rule an arc. Around all of it, that is as exact as rounding allows.
        step = 2 * math.pi / _ARCS
        half = jnp.arange(2 * _ARCS + 1, dtype=self.lower.dtype) * (step / 2)
        a, b = self.semi_axes
        speed = jnp.sqrt((a * jnp.sin(half)) ** 2 + (b * jnp.cos(half)) ** 2)
        arcs = (speed[:-2:2] + 4 * speed[1::2] + speed[2::2]) * (step / 6)
        lengths = jnp.concatenate([jnp.zeros_like(arcs[:1]), jnp.cumsum(arcs)])
        return half[::2], lengths


class EllipsoidSurface(AbstractEllipsoidSurface):
    """The surface of an ellipsoid, sampled by rejection from that of a ball."""

    center: Float[Array, " dim"]
    semi_axes: Float[Array, " dim"]
    share: float = eqx.field(static=True)

    def __init__(self, center: Array, semi_axes: Array, share: float):
        self.center, self.semi_axes, self.share = center, semi_axes, share

    @property
    def measure(self):
        return self.mass * self.share

    @property
    def mass(self):
        stretch = jnp.prod(self.semi_axes) / jnp.min(self.semi_axes)
        return self.dim * ball_measure(self.dim) * stretch

    @property
    def acceptance(self):
        return self.share

    @property
    def unit_dim(self):
        return 1 + sphere_unit_dim(self.dim)

    def propose(self, unit):
        sphere = to_sphere(unit[:, 1:], self.dim)
        keep = unit[:, 0] < _stretch(sphere, self.semi_axes)
        return self.center[None] + self.semi_axes[None] * sphere, keep


def _stretch(
    sphere: Float[Array, "rows dim"], semi_axes: Float[Array, " dim"]
) -> Float[Array, " rows"]:
    """How an area of the unit sphere grows on the ellipsoid, over the most it does."""
    return jnp.min(semi_axes) * jnp.linalg.norm(sphere / semi_axes[None], axis=1)


def _surface_share(semi_axes: Array) -> float:
    dim = semi_axes.shape[0]
    if dim == 2:
        return 1.0
    if isinstance(semi_axes, Tracer):
        raise ValueError(
            "`semi_axes` must be known numbers, got traced ones: the area of the "
            "surface is found on the host. Make the ellipsoid outside of `jit`."
        )
    if dim == 3:
        # https://dlmf.nist.gov/19.33#E2, the area by a symmetric elliptic integral.
        a, b, c = np.asarray(semi_axes, float)
        area = elliprg((b * c) ** 2, (a * c) ** 2, (a * b) ** 2)
        return float(area * min(a, b, c) / (a * b * c))
    stretch = lambda unit: _stretch(to_sphere(unit, dim), semi_axes)
    return float(averages(stretch, sphere_unit_dim(dim), semi_axes.dtype).mean())
