"""Burgers' equation, as in the first paper on physics-informed networks."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .._custom_types import Key
from .._problem.base import AbstractResidualProblem
from ..geometry.box import Box
from .base import Benchmark, Reference


NU = 0.01 / np.pi


class BurgersNet(eqx.Module):
    """A network that meets the initial and the boundary condition by construction.

    `u(x, t) = -sin(pi x) + t (1 - x^2) N(x, t)`, with `N` a network of tanh layers and
    normal Glorot weights; the ansatz is that of Wu et al. (2023), section 4.
    """

    weights: list[Float[Array, "_out _in"]]
    biases: list[Float[Array, " _out"]]

    def __init__(self, sizes: tuple[int, ...], *, key: Key, dtype=None):
        keys = jr.split(key, len(sizes) - 1)
        shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
        draw = jax.nn.initializers.glorot_normal(in_axis=1, out_axis=0)
        self.weights = [draw(k, s, dtype) for k, s in zip(keys, shapes, strict=True)]
        self.biases = [jnp.zeros(s[0], dtype) for s in shapes]

    def __call__(
        self, x: Float[Array, " points"], t: Float[Array, " points"]
    ) -> Float[Array, " points"]:
        # Features first and points last: the layout in which a CPU is fastest.
        h = jnp.stack([x, 2 * t - 1])
        layers = list(zip(self.weights, self.biases, strict=True))
        for weight, bias in layers[:-1]:
            h = jnp.tanh(weight @ h + bias[:, None])
        weight, bias = layers[-1]
        n = (weight @ h + bias[:, None])[0]
        return -jnp.sin(jnp.pi * x) + t * (1 - x**2) * n


class Burgers(AbstractResidualProblem):
    """`u_t + u u_x = nu u_xx` on `-1 <= x <= 1`, `0 <= t <= 1`.

    `u(x, 0) = -sin(pi x)` and `u(-1, t) = u(1, t) = 0` are the model's business: it is
    called with all `x` and all `t`, and gives all `u`.
    """

    nu: float = NU

    def residuals(self, model, batch):
        x, t = batch["interior"].T
        one = jnp.ones_like(x)

        def along_x(x):
            return jax.jvp(lambda x: model(x, t), (x,), (one,))

        (u, u_x), (_, u_xx) = jax.jvp(along_x, (x,), (one,))
        _, u_t = jax.jvp(lambda t: model(x, t), (t,), (one,))
        return {"interior": u_t + u * u_x - self.nu * u_xx}


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


def reference(num_x: int = 256, num_t: int = 101) -> Reference:
    """The exact solution on a grid, with its error measured by a second quadrature."""
    x, t = np.linspace(-1, 1, num_x), np.linspace(0, 1, num_t)
    values = cole_hopf(x[:, None], t)
    # A part of the grid suffices to compare the two.
    some_x, some_t = x[::8], t[1::8]
    other = cole_hopf_trapezoid(some_x[:, None], some_t)
    error = np.linalg.norm(values[::8, 1::8] - other) / np.linalg.norm(other)
    axes = {"x": jnp.asarray(x), "t": jnp.asarray(t)}
    return Reference(axes, jnp.asarray(values), float(error))


def burgers(dtype=None) -> Benchmark:
    """Burgers' equation with `nu = 0.01 / pi`, where a shock forms at `x = 0`."""
    return Benchmark(
        name="burgers",
        title="u_t + u u_x = nu u_xx, nu = 0.01/pi: a shock forms at x = 0",
        problem=Burgers(),
        domains={"interior": Box([-1.0, 0.0], [1.0, 1.0], dtype)},
        num_points={"interior": 2000},
        model=lambda key, dtype: BurgersNet((2, 20, 20, 20, 1), key=key, dtype=dtype),
        predict=lambda model, points: model(points[:, 0], points[:, 1]),
        reference=reference,
        num_candidates={"interior": 20000},
        sampler="rad",
        optimizer="adam+ssbroyden",
        steps=3000,
        dtype="float64",
    )
