import abc
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from equinox import AbstractVar
from jax.core import Tracer
from jax.scipy.special import ndtri
from jaxtyping import Array, ArrayLike, Float

from .._custom_types import Scalar
from .._misc import check_finite
from .base import AbstractDomain
from .pieces import AbstractPiece
from .rfunctions import fold


Vector: TypeAlias = ArrayLike | Sequence[int | float]


class AbstractRound(AbstractDomain):
    """The unit ball, stretched along the coordinates and moved."""

    center: AbstractVar[Float[Array, " dim"]]

    @property
    @abc.abstractmethod
    def reach(self) -> Float[Array, " dim"]:
        """How far it extends from its centre along each coordinate."""

    @property
    def lower(self):
        return self.center - self.reach

    @property
    def upper(self):
        return self.center + self.reach

    @property
    def measure(self):
        return ball_measure(self.dim) * jnp.prod(self.reach)

    @property
    def unit_dim(self):
        return 1 + sphere_unit_dim(self.dim)

    def propose(self, unit):
        points = self.center[None] + self.reach[None] * to_ball(unit, self.dim)
        return points, jnp.ones(unit.shape[0], bool)

    def _distance(self, point, names):
        return self.signed_distance(point)

    def _near(self, point, names, side):
        return fold(side * self.signed_distance(point), self._tolerance)

    def _whole(self, pieces):
        return pieces["surface"]


class AbstractBall(AbstractRound):
    """The points at most `radius` away from `center`; its boundary is `"surface"`."""

    radius: AbstractVar[Scalar]

    @property
    def reach(self):
        return jnp.broadcast_to(self.radius, self.center.shape)

    def signed_distance(self, point):
        # A parabola, with derivatives of every order everywhere.
        square = jnp.sum((point - self.center) ** 2)
        return (self.radius**2 - square) / (2 * self.radius)

    @property
    def boundaries(self):
        return {"surface": Sphere(self.center, self.radius)}


class Ball(AbstractBall):
    """The points at most `radius` away from `center`, in two or more dimensions.

    Its boundary is `"surface"`.
    """

    center: Float[Array, " dim"]
    radius: Scalar

    def __init__(self, center: Vector, radius: ArrayLike, dtype: Any = None):
        """**Arguments:**

        - `center`: one number a coordinate.
        - `radius`: positive.
        - `dtype`: of the points; the default float unless given.
        """
        self.center, self.radius = (
            vector("center", center, dtype),
            scalar("radius", radius, dtype),
        )


class Disc(AbstractBall):
    """The points of the plane at most `radius` away from `center`.

    Its boundary is `"surface"`.
    """

    center: Float[Array, " dim"]
    radius: Scalar

    def __init__(self, center: Vector, radius: ArrayLike, dtype: Any = None):
        """**Arguments:**

        - `center`: two numbers.
        - `radius`: positive.
        - `dtype`: of the points; the default float unless given.
        """
        self.center = vector("center", center, dtype)
        self.radius = scalar("radius", radius, dtype)
        if self.center.shape != (2,):
            raise ValueError(
                f"`center` of a disc must be two numbers, got {self.center}. In other "
                "dimensions use `Ball`."
            )


class Sphere(AbstractPiece):
    """The points exactly `radius` away from `center`."""

    center: Float[Array, " dim"]
    radius: Scalar

    def __init__(self, center: Array, radius: Array):
        self.center, self.radius = center, radius

    @property
    def lower(self):
        return self.center - self.radius

    @property
    def upper(self):
        return self.center + self.radius

    @property
    def measure(self):
        return self.dim * ball_measure(self.dim) * self.radius ** (self.dim - 1)

    @property
    def unit_dim(self):
        return sphere_unit_dim(self.dim)

    def propose(self, unit):
        points = self.center[None] + self.radius * to_sphere(unit, self.dim)
        return points, jnp.ones(unit.shape[0], bool)

    def signed_distance(self, point):
        return -jnp.abs(jnp.linalg.norm(point - self.center) - self.radius)

    def normals(self, points):
        outward = points - self.center[None]
        return outward / jnp.linalg.norm(outward, axis=1, keepdims=True)


def ball_measure(dim: int) -> float:
    """The volume of the unit ball."""
    return math.pi ** (dim / 2) / math.gamma(dim / 2 + 1)


def sphere_unit_dim(dim: int) -> int:
    """How many numbers of the unit cube `to_sphere` takes."""
    return dim - 1 if dim <= 3 else dim


def to_sphere(
    unit: Float[Array, "rows unit_dim"], dim: int
) -> Float[Array, "rows {dim}"]:
    """Points of the unit sphere, equal volumes to equal areas.

    In three dimensions by Archimedes' cylinder; in more by the direction of a normal
    vector.
    """
    if dim > 3:
        tiny = float(jnp.finfo(unit.dtype).eps)
        normal = ndtri(jnp.clip(unit, tiny, 1 - tiny))
        return normal / jnp.linalg.norm(normal, axis=1, keepdims=True)
    angle = 2 * math.pi * unit[:, -1]
    circle = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    if dim == 2:
        return circle
    height = 2 * unit[:, :1] - 1
    return jnp.concatenate([jnp.sqrt(1 - height**2) * circle, height], axis=1)


def to_ball(
    unit: Float[Array, "rows unit_dim"], dim: int
) -> Float[Array, "rows {dim}"]:
    """Points of the unit ball, equal volumes to equal volumes."""
    return unit[:, :1] ** (1 / dim) * to_sphere(unit[:, 1:], dim)


def vector(name: str, value: Vector, dtype: Any) -> Array:
    """`value` as the numbers of a point in two or more dimensions, checked."""
    dtype = jnp.result_type(float) if dtype is None else dtype
    array = value if isinstance(value, Array) else np.asarray(value)
    array = jnp.asarray(array, dtype)
    if array.ndim != 1 or array.shape[0] < 2:
        raise ValueError(
            f"`{name}` must be a vector of two numbers or more, got shape "
            f"{array.shape}. In one dimension use `Interval`."
        )
    check_finite(name, array)
    return array


def scalar(name: str, value: ArrayLike, dtype: Any) -> Array:
    """`value` as one positive number, checked."""
    dtype = jnp.result_type(float) if dtype is None else dtype
    array = jnp.asarray(value, dtype)
    if array.ndim != 0:
        raise ValueError(f"`{name}` must be one number, got shape {array.shape}.")
    check_positive(name, array)
    return array


def check_positive(name: str, value: Array) -> None:
    """Raises unless the known numbers of `value` are positive and finite."""
    if isinstance(value, Tracer):
        return
    known = np.asarray(value, float)
    if not np.all((known > 0) & np.isfinite(known)):
        raise ValueError(f"`{name}` must be positive and finite, got {known}.")
