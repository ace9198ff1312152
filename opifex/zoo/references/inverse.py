"""What is known in problems that ask for a coefficient: data, and the true answer."""

import functools
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float
from scipy.integrate import solve_bvp

from ..base import Reference
from .burgers import cole_hopf
from .grids import over_grid, relative_l2


DIFFUSION_REACTION_D = 0.01


class Observations(eqx.Module):
    """Measured values of some fields at points, in the default precision.

    **Arguments:**

    - `points`: where they were measured.
    - `values`: what was measured, by field.
    - `noise`: standard deviation of their errors, relative to that of the field.
    """

    points: Float[Array, "points dim"]
    values: dict[str, Float[Array, " points"]]
    noise: float = eqx.field(static=True)

    def __init__(
        self, points: ArrayLike, values: dict[str, Any], noise: int | float = 0.0
    ):
        dtype = jnp.result_type(float)
        self.points = jnp.asarray(points, dtype)
        self.values = {k: jnp.asarray(v, dtype) for k, v in values.items()}
        self.noise = float(noise)


def burgers_observations(
    num: int = 2000, *, noise: int | float = 0.01, seed: int = 0
) -> Observations:
    """The exact solution of Burgers' equation at random points, with normal errors.

    To be found is `nu`, which is `NU`; the set-up of M. Raissi, P. Perdikaris and
    G. Karniadakis, Journal of Computational Physics 378, 2019, section 4.1.1.

    **Arguments:**

    - `num`: how many points, uniform over `[-1, 1] x [0, 1]`.
    - `noise`: standard deviation of the errors, relative to that of the values.
    - `seed`: of the points and of the errors.
    """
    if num < 1 or not noise >= 0:
        raise ValueError(
            f"`num` must be at least 1 and `noise` not negative, got {num!r} and "
            f"{noise!r}. Use noise=0 for exact data."
        )
    random = np.random.RandomState(seed)  # whose stream never changes
    points = random.uniform([-1, 0], [1, 1], (num, 2))
    u = cole_hopf(*points.T)
    u = u + noise * u.std() * random.standard_normal(num)
    return Observations(points, {"u": u}, noise)


def reaction_rate(x: Any) -> Any:
    """`k(x)`, which is to be found in [`diffusion_reaction`][]."""
    return 0.1 + x.__array_namespace__().exp(-((x - 0.5) ** 2) / (2 * 0.15**2))


@functools.cache
def _collocation(tolerance: float) -> Any:
    def slopes(x, y):
        source = np.sin(2 * np.pi * x)
        return np.stack(
            [y[1], (source + reaction_rate(x) * y[0]) / DIFFUSION_REACTION_D]
        )

    x = np.linspace(0, 1, 9)  # so few that the tolerance decides
    ends = lambda left, right: np.array([left[0], right[0]])
    start = np.zeros((2, len(x)))
    found = solve_bvp(slopes, ends, x, start, tol=tolerance, max_nodes=20000)
    if not found.success:
        raise RuntimeError(f"`solve_bvp` failed at tol={tolerance}: {found.message}")
    return found.sol


def diffusion_reaction(x: np.ndarray, *, tolerance: float = 1e-9) -> np.ndarray:
    """The solution of `0.01 u'' - k(x) u = sin(2 pi x)`, `u(0) = u(1) = 0`.

    By collocation with control of the residual. Rounding lets no tolerance below 1e-9
    be met.

    **Arguments:**

    - `x`: where, between 0 and 1.
    - `tolerance`: of the relative residual.

    ??? cite "Reference"

        Wu et al. (2023), section 3.6 (see [`diffusion`][]).
    """
    return _collocation(tolerance)(x)[0]


def diffusion_reaction_observations(num: int = 8) -> Observations:
    """Exact values at points that lie evenly between the ends, these excluded."""
    x = np.linspace(0, 1, num + 2)[1:-1]
    return Observations(x[:, None], {"u": diffusion_reaction(x)})


def diffusion_reaction_reference(
    num: int = 201, *, tolerance: float = 1e-9
) -> Reference:
    """Of `u` and of `k`; the error is that of a tolerance ten times as large."""
    x = np.linspace(0, 1, num)
    u = diffusion_reaction(x, tolerance=tolerance)
    error = relative_l2(diffusion_reaction(x, tolerance=10 * tolerance), u)
    solution = lambda x: (u, reaction_rate(x))
    return over_grid({"x": x}, solution, fields=("u", "k"), error=error)
