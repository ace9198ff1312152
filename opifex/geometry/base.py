import abc

import equinox as eqx
import jax.random as jr
from equinox import AbstractVar
from jaxtyping import Array, Float

from .._custom_types import Key


class AbstractDomain(eqx.Module):
    """A set of points that can be sampled evenly."""

    lower: AbstractVar[Float[Array, " dim"]]

    @property
    def dim(self) -> int:
        return self.lower.shape[0]

    @abc.abstractmethod
    def from_unit(self, unit: Float[Array, "points dim"]) -> Float[Array, "points dim"]:
        """Maps the unit cube onto the domain, equal volumes to equal volumes.

        **Arguments:**

        - `unit`: points in `[0, 1)^dim`, random or of a low-discrepancy sequence.

        **Returns:** as many points of the domain.
        """

    def sample(self, num_points: int, key: Key) -> Float[Array, "points dim"]:
        """`num_points` independent points, uniform over the domain."""
        shape = (num_points, self.dim)
        return self.from_unit(jr.uniform(key, shape, self.lower.dtype))
