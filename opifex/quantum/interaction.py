import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float


Displacements = Float[Array, "*shape"]


class AbstractInteraction(eqx.Module):
    """The repulsion of two unit charges at a distance, in hartree.

    Electrons, and nuclei of charge one, interact by it; nuclei attract electrons by
    minus it.
    """

    @abc.abstractmethod
    def __call__(self, x: Displacements) -> Displacements:
        """At displacements in bohr."""

    @abc.abstractmethod
    def kink(self) -> float:
        """By how much the slope jumps at distance zero."""

    def sampled(self, x: Displacements, spacing: float) -> Displacements:
        """Values whose sums over a grid are integrals to fourth order in `spacing`.

        The trapezoidal rule is that good away from the kink. Near it, the values are
        those that integrate cubic interpolants exactly, wherever it lies between the
        points; so energies are smooth functions of where nuclei are.
        """
        return self(x) + 0.5 * self.kink() * spacing * _correction(x / spacing)


def _correction(t: Displacements) -> Displacements:
    """The integral of `|t - s| l(s)` less `|t|`, for `l` the cardinal function of cubic
    Lagrange interpolation on the integers."""
    t = jnp.minimum(jnp.abs(t), 2)
    near = 11 / 45 - t + t**2 - t**3 / 6 - t**4 / 6 + t**5 / 20
    far = (2 - t) ** 5 / 60 - (2 - t) ** 3 / 18
    return jnp.where(t < 1, near, far)


class Exponential(AbstractInteraction):
    """`amplitude exp(-decay |x|)`, which mimics the Coulomb interaction in 1-D.

    ??? cite "Reference"

        T. E. Baker, E. M. Stoudenmire, L. O. Wagner, K. Burke and S. R. White,
        "One-dimensional mimicking of electronic structure: the case for exponentials",
        Physical Review B 91, 235141, 2015 (whence the constants).
    """

    amplitude: float = eqx.field(static=True, default=1.071295)
    decay: float = eqx.field(static=True, default=1 / 2.385345)

    def __check_init__(self):
        check_positive("amplitude", self.amplitude)
        check_positive("decay", self.decay)

    def __call__(self, x):
        return self.amplitude * jnp.exp(-self.decay * jnp.abs(x))

    def kink(self):
        return -2 * self.amplitude * self.decay


class SoftCoulomb(AbstractInteraction):
    """`1 / sqrt(x^2 + softening^2)`."""

    softening: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        check_positive("softening", self.softening)

    def __call__(self, x):
        return 1 / jnp.sqrt(x**2 + self.softening**2)

    def kink(self):
        return 0.0


def check_positive(name: str, value: float | int) -> None:
    """Raises unless `value` is a positive, finite number."""
    if not 0 < value < float("inf"):
        raise ValueError(f"`{name}` must be positive and finite, got {value!r}.")
