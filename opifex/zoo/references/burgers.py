"""Burgers' equation, solved by the Cole-Hopf transformation."""

import numpy as np
from jaxtyping import ArrayLike

from ..base import Reference
from .grids import over_grid, relative_l2


NU = 0.01 / np.pi


def cole_hopf(
    x: ArrayLike, t: ArrayLike, *, nu: float = NU, nodes: int = 100
) -> np.ndarray:
    """The exact solution, by the Cole-Hopf transformation.

    The convolution with the heat kernel is done by Gauss-Hermite quadrature; with 100
    nodes it is exact to rounding for this `nu`, with 50 to 1e-8.

    **Arguments:**

    - `x`, `t`: coordinates, `t >= 0`, of any shapes that broadcast.
    - `nu`: the viscosity.
    - `nodes`: of the quadrature.

    ??? cite "Reference"

        C. Basdevant et al., "Spectral and finite difference solutions of the Burgers
        equation", Computers and Fluids 14(1), 1986.
    """
    z, weight = np.polynomial.hermite.hermgauss(nodes)
    x, t = np.broadcast_arrays(x, t)
    y = x[..., None] - np.sqrt(4 * nu * t)[..., None] * z
    log_density = -np.cos(np.pi * y) / (2 * np.pi * nu)
    # Only ratios matter, and the logarithms reach a hundred.
    log_density -= log_density.max(axis=-1, keepdims=True)
    density = weight * np.exp(log_density)
    return np.asarray(-(np.sin(np.pi * y) * density).sum(-1) / density.sum(-1))


def cole_hopf_trapezoid(
    x: ArrayLike, t: ArrayLike, *, nu: float = NU, nodes: int = 12001
) -> np.ndarray:
    """The same by another quadrature, to tell the error of the first; `t > 0`."""
    x, t = np.broadcast_arrays(x, t)
    s = np.linspace(-25, 25, nodes)  # in standard deviations of the kernel
    y = x[..., None] - np.sqrt(2 * nu * t)[..., None] * s
    log_density = -np.cos(np.pi * y) / (2 * np.pi * nu) - s**2 / 2
    log_density -= log_density.max(axis=-1, keepdims=True)
    density = np.exp(log_density)
    return np.asarray(-(np.sin(np.pi * y) * density).sum(-1) / density.sum(-1))


def burgers_reference(
    num_x: int = 256, num_t: int = 101, *, nodes: int = 100
) -> Reference:
    """The exact solution on a grid, with its error measured by a second quadrature.

    **Arguments:**

    - `num_x`, `num_t`: the size of the grid.
    - `nodes`: of the first quadrature.
    """
    axes = {"x": np.linspace(-1, 1, num_x), "t": np.linspace(0, 1, num_t)}
    solution = lambda x, t: cole_hopf(x, t, nodes=nodes)
    # A part of the grid suffices to compare the two.
    x, t = axes["x"][::8, None], axes["t"][1::8]
    error = relative_l2(solution(x, t), cole_hopf_trapezoid(x, t))
    return over_grid(axes, solution, error=error)
