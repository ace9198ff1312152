from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._custom_types import Key
from .._misc import unknown_name
from .base import AbstractDomain
from .box import Box, Interval


class ComplexDomain(AbstractDomain):
    """A domain, and those pieces of its boundary that a problem speaks of.

    Wherever a domain is asked for, this is one. Its `boundaries` are the named pieces;
    `"boundary"` is all of them together.
    """

    shape: AbstractDomain
    names: tuple[str, ...] = eqx.field(static=True)

    def __init__(
        self,
        boundaries: Sequence[str] | None = None,
        shape: AbstractDomain | None = None,
        *,
        time: tuple[int | float, int | float] | None = None,
    ):
        """**Arguments:**

        - `boundaries`: names of pieces of the boundary; all unless given.
        - `shape`: any domain. Unless given the unit square, or the unit cube if
            `"back"` or `"front"` is among the names.
        - `time`: first and last, to add a column for time, with the further pieces
            `"initial"` and `"final"`.
        """
        if isinstance(boundaries, str):
            raise ValueError(
                f"`boundaries` must be a list of names, got {boundaries!r}. Write "
                f"`[{boundaries!r}]`."
            )
        if shape is None:
            dim = 3 if boundaries and {"back", "front"} & set(boundaries) else 2
            shape = Box(jnp.zeros(dim), jnp.ones(dim))
        if time is not None:
            shape = shape * Interval(*time, dtype=shape.lower.dtype)
        names = shape._names if boundaries is None else tuple(boundaries)
        if not names:
            raise ValueError("`boundaries` is empty; name at least one piece.")
        for name in names:
            if name not in shape._names:
                raise ValueError(unknown_name("boundaries", name, shape._names))
        self.shape = shape
        self.names = tuple(name for name in shape._names if name in names)

    @property
    def lower(self):
        return self.shape.lower

    @property
    def upper(self):
        return self.shape.upper

    @property
    def measure(self):
        return self.shape.measure

    @property
    def mass(self):
        return self.shape.mass

    @property
    def acceptance(self):
        return self.shape.acceptance

    @property
    def unit_dim(self):
        return self.shape.unit_dim

    def propose(self, unit):
        return self.shape.propose(unit)

    def signed_distance(self, point):
        return self.shape.signed_distance(point)

    def contains(self, points):
        return self.shape.contains(points)

    def quadrature(self, num_points):
        return self.shape.quadrature(num_points)

    def sample_interior(self, num_points: int, key: Key) -> Float[Array, "points dim"]:
        """`num_points` independent points, uniform over the domain."""
        return self.sample(num_points, key)

    def sample_boundary(
        self, name: str, num_points: int, key: Key
    ) -> Float[Array, "points dim"]:
        """`num_points` independent points, uniform over a piece of the boundary.

        **Arguments:**

        - `name`: of the piece; `"boundary"` is all of them.
        """
        return self.boundary(name).sample(num_points, key)

    def normals(self, points, name: str = "boundary"):
        """Outward unit normals at points of the piece `name`."""
        return self.boundary(name).normals(points)

    @property
    def boundaries(self):
        pieces = self.shape.boundaries
        return {name: pieces[name] for name in self.names}

    def _distance(self, point, names):
        chosen = self._usual_names if names is None else names
        return self.shape.distance(point, chosen)

    def _near(self, point, names, side):
        chosen = self.names if names is None else names
        everything = None if chosen == self.shape._names else chosen
        return self.shape._near(point, everything, side)

    @property
    def _names(self):
        return self.names

    @property
    def _usual_names(self):
        return tuple(n for n in self.names if n in self.shape._usual_names)
