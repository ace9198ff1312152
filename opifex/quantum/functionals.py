import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import scipy.fft
from jaxtyping import Array, Float

from .._custom_types import Key, Scalar
from .grid import Grid
from .interaction import AbstractInteraction, check_positive, Exponential


Field = Float[Array, " grid"]


class AbstractFunctional(eqx.Module):
    """The exchange-correlation energy of a density."""

    @abc.abstractmethod
    def energy_density(self, density: Field, grid: Grid) -> Field:
        """The energy an electron, in hartree, at each point.

        **Arguments:**

        - `density`: electrons a bohr; zero where it is below the threshold.
        - `grid`: where the points are.
        """


class LDA(AbstractFunctional):
    """The local density approximation for the exponential interaction, unpolarised.

    Exchange is exactly that of the uniform gas; correlation is the fit to Monte Carlo
    energies of equation (24) of the reference, made for the default interaction.

    ??? cite "Reference"

        T. E. Baker, E. M. Stoudenmire, L. O. Wagner, K. Burke and S. R. White,
        "One-dimensional mimicking of electronic structure: the case for exponentials",
        Physical Review B 91, 235141, 2015.
    """

    interaction: Exponential = Exponential()

    def energy_density(self, density, grid):
        del grid
        a, k = self.interaction.amplitude, self.interaction.decay
        there = density > 0
        # Stands in for one that vanishes, where slopes of roots are infinite.
        y = jnp.pi / k * jnp.where(there, density, 1)
        exchange = 0.5 * jnp.log1p(y**2) / y - jnp.arctan(y)
        r = jnp.sqrt(y)
        below = 2 - 1.00077 * r + 6.26099 * y - 11.9041 * r**3
        below = below + 9.62614 * y**2 - 1.48334 * r**5 + jnp.pi * k**2 / a * y**3
        return jnp.where(there, a / jnp.pi * (exchange - y / below), 0)


class NeuralFunctional(AbstractFunctional):
    """A network that learns exchange and correlation from exact energies and densities.

    Exponentials of trained widths spread the density over the grid (the global
    convolution); two layers look at three neighbouring points each (the local ones).
    The energy of a single electron is exact whatever the weights: a gate, open at an
    integral of one, puts minus half the Hartree potential in place of the network.
    In its default size there are 1568 parameters.

    What it learns holds for the spacing of the grid that it was trained on.

    ??? cite "Reference"

        L. Li, S. Hoyer, R. Pederson, R. Sun, E. D. Cubuk, P. Riley and K. Burke,
        "Kohn-Sham equations as regularizer: building prior knowledge into
        machine-learned physics", Physical Review Letters 126, 036401, 2021.
    """

    spread: Float[Array, " filters_but_one"]
    local: tuple[Float[Array, "_inputs _outputs"], ...]
    gate: Scalar
    interaction: AbstractInteraction
    widths: tuple[float, float] = eqx.field(static=True)

    def __init__(
        self,
        *,
        filters: int = 16,
        widths: tuple[float, float] = (0.1, 2.385345),
        interaction: AbstractInteraction | None = None,
        dtype=None,
        key: Key,
    ):
        """**Arguments:**

        - `filters`: the channels of every layer.
        - `widths`: of the exponentials, the least and the largest, in bohr.
        - `interaction`: of electrons, for the gate; the exponential, unless given.
        - `dtype`: of the parameters; that of default floats, unless given.
        - `key`: of the weights.
        """
        if filters < 2:
            raise ValueError(f"`filters` must be at least 2, got {filters}.")
        check_positive("widths[0]", widths[0])
        if not widths[0] < widths[1] < float("inf"):
            raise ValueError(f"`widths` must be two in rising order, got {widths!r}.")
        dtype = jnp.result_type(float) if dtype is None else dtype
        sizes = [(3 * filters, filters), (3 * filters, filters), (filters, 1)]
        keys = jr.split(key, 4)
        draw = jax.nn.initializers.he_normal()
        self.spread = 0.01 * jr.normal(keys[0], (filters - 1,), dtype)
        self.local = tuple(
            draw(k, size, dtype) for k, size in zip(keys[1:], sizes, strict=True)
        )
        self.gate = jnp.ones((), dtype)
        self.interaction = Exponential() if interaction is None else interaction
        self.widths = widths

    def energy_density(self, density, grid):
        low, high = self.widths
        width = low + (high - low) * jax.nn.sigmoid(self.spread)[:, None]
        kernels = jnp.exp(-_circle(grid, density.dtype)[None] / width) / (2 * width)
        wide = _convolve(density[None], kernels, grid)
        x = jnp.concatenate([density[:, None], wide.T], axis=1)
        for weights in self.local[:-1]:
            x = jax.nn.silu(_with_neighbours(x) @ weights)
        network = -jax.nn.silu((x @ self.local[-1])[:, 0])
        charge = grid.spacing * jnp.sum(density)
        open_ = jnp.exp(-(((charge - 1) / self.gate) ** 2))
        alone = -0.5 * hartree(density, grid, self.interaction)
        return open_ * alone + (1 - open_) * network


def hartree(density: Field, grid: Grid, interaction: AbstractInteraction) -> Field:
    """The potential of a density: its convolution with the interaction, in hartree."""
    kernel = interaction.sampled(_circle(grid, density.dtype), grid.spacing)
    return _convolve(density[None], kernel[None], grid)[0]


def _circle(grid: Grid, dtype) -> Float[Array, " circle"]:
    """Distances from the first point of a circle that the grid fits on twice, so that
    convolutions do not go around."""
    length = int(scipy.fft.next_fast_len(2 * grid.num, real=True))  # type: ignore[arg-type]
    i = jnp.arange(length)
    return grid.spacing * jnp.minimum(i, length - i).astype(dtype)


def _convolve(
    density: Float[Array, "1 grid"], kernels: Float[Array, "kernels circle"], grid: Grid
) -> Float[Array, "kernels grid"]:
    """The integrals of a density with kernels about each point."""
    length = kernels.shape[1]
    modes = jnp.fft.rfft(density, length) * jnp.fft.rfft(kernels)
    return grid.spacing * jnp.fft.irfft(modes, length)[:, : grid.num]


def _with_neighbours(x: Float[Array, "grid channels"]) -> Array:
    """The channels of the left neighbour, of the point itself and of the right one."""
    padded = jnp.pad(x, ((1, 1), (0, 0)))
    return jnp.concatenate([padded[:-2], x, padded[2:]], axis=1)
