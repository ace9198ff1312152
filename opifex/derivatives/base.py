import abc
from collections.abc import Callable, Iterable

import equinox as eqx
from jaxtyping import Array, Float

from .._custom_types import Key
from ._wanted import Wanted


Pointwise = Callable[[Array], Array]


class AbstractDerivatives(eqx.Module):
    """A way of taking derivatives of a network by its inputs."""

    @abc.abstractmethod
    def __call__(
        self,
        function: Pointwise,
        points: Float[Array, "points dim"],
        wanted: Iterable[Wanted],
        key: Key | None = None,
    ) -> tuple[Array, dict[Wanted, Array]]:
        """The values of a function at points, and its derivatives there.

        **Arguments:**

        - `function`: maps one point `(dim,)` to a number or an array of any shape.
        - `points`: one a row.
        - `wanted`: which derivatives.
        - `key`: for the ways that are random.

        **Returns:** the values and, for each of `wanted`, the derivatives; all of shape
        `(*shape, points)`: the points come last, the layout that is fastest on a CPU.
        """
