from math import factorial

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._misc import check_count


class Grid(eqx.Module):
    """A uniform grid about zero, beyond which wave functions vanish.

    **Arguments:**

    - `num`: of points; odd, so that zero is one of them.
    - `spacing`: between neighbours, in bohr.
    - `order`: of the central differences of the kinetic energy: 2, 4, 6 or 8. Kinks of
        the interaction limit the order of energies to 4.
    """

    num: int = eqx.field(static=True, default=257)
    spacing: float = eqx.field(static=True, default=0.16)
    order: int = eqx.field(static=True, default=8)

    def __check_init__(self):
        check_count("num", self.num, least=9)
        if self.num % 2 == 0:
            raise ValueError(
                f"`num` must be odd, so that a point is at zero, got {self.num}."
            )
        if not 0 < self.spacing < float("inf"):
            raise ValueError(f"`spacing` must be positive, got {self.spacing!r}.")
        if self.order not in (2, 4, 6, 8):
            raise ValueError(f"`order` must be 2, 4, 6 or 8, got {self.order!r}.")

    @property
    def points(self) -> Float[Array, " grid"]:
        """In bohr."""
        return jnp.asarray(self.spacing * self._indices(), jnp.result_type(float))

    @property
    def reach(self) -> float:
        """How far the last point is from zero, in bohr."""
        return self.spacing * (self.num // 2)

    def kinetic(self) -> np.ndarray:
        """Minus half the second derivative, `(grid, grid)`, in hartree.

        ??? cite "Reference"

            B. Fornberg, "Generation of finite difference formulas on arbitrarily spaced
            grids", Mathematics of Computation 51(184), 1988.
        """
        m, matrix = self.order // 2, np.zeros((self.num, self.num))
        for k in range(1, m + 1):
            many = factorial(m - k) * factorial(m + k)
            c = 2 * (-1) ** (k + 1) * factorial(m) ** 2 / (k**2 * many)
            off = np.full(self.num - k, c)
            matrix += np.diag(off, k) + np.diag(off, -k) - 2 * c * np.eye(self.num)
        return -0.5 * matrix / self.spacing**2

    def bases(self, symmetric: bool) -> tuple[np.ndarray, ...]:
        """Orthonormal functions `(grid, functions)` that span all wave functions.

        If `symmetric`, the even and the odd ones, which an even potential leaves apart.
        """
        if not symmetric:
            return (np.eye(self.num),)
        m = self.num // 2
        one, flipped = np.eye(m), np.eye(m)[::-1]
        pairs = np.sqrt(0.5)
        even, odd = np.zeros((self.num, m + 1)), np.zeros((self.num, m))
        even[m, 0] = 1
        even[m + 1 :, 1:], even[:m, 1:] = pairs * one, pairs * flipped
        odd[m + 1 :], odd[:m] = pairs * one, -pairs * flipped
        return even, odd

    def _indices(self) -> np.ndarray:
        return np.arange(self.num) - self.num // 2


def mirrored(field: Float[Array, " grid"]) -> Float[Array, " grid"]:
    """The even part of a function on the grid."""
    return 0.5 * (field + field[::-1])
