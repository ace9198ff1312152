import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._custom_types import Count
from .._misc import check_count
from .functionals import Field


class AbstractMixing(eqx.Module):
    """How the next density follows from the last ones and what they led to."""

    @abc.abstractmethod
    def init(self, density: Field) -> Any:
        """The memory before the first iteration."""

    @abc.abstractmethod
    def __call__(
        self, memory: Any, density: Field, output: Field, iteration: Count
    ) -> tuple[Field, Any]:
        """The next density, and the memory.

        **Arguments:**

        - `memory`: of `init`, or of the last call.
        - `density`: that the potential was made of.
        - `output`: that of the orbitals in this potential.
        - `iteration`: counted from zero.
        """


class Linear(AbstractMixing):
    """Some of the change: `alpha decay^iteration` of it.

    **Arguments:**

    - `alpha`: at first.
    - `decay`: a factor for each iteration. Below one the changes end even where
        self-consistency is not reached.
    """

    alpha: float = eqx.field(static=True, default=0.5)
    decay: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        check_fraction("alpha", self.alpha)
        check_fraction("decay", self.decay)

    def init(self, density):
        return None

    def __call__(self, memory, density, output, iteration):
        share = self.alpha * self.decay ** iteration.astype(density.dtype)
        return density + share * (output - density), memory


class DIIS(AbstractMixing):
    """The combination of the last densities whose changes cancel best, and some of what
    is left of the change.

    ??? cite "References"

        P. Pulay, "Convergence acceleration of iterative sequences. The case of SCF
        iteration", Chemical Physics Letters 73(2), 1980; D. G. Anderson, "Iterative
        procedures for nonlinear integral equations", Journal of the ACM 12(4), 1965.

    **Arguments:**

    - `alpha`: how much of the change is added.
    - `depth`: how many densities are remembered.
    - `bound`: of the sum of the absolute values of the coefficients, whose sum is one.
        Beyond it the last density is mixed linearly, since densities far from all that
        are remembered may be such that a network knows nothing of them.
    """

    alpha: float = eqx.field(static=True, default=0.5)
    depth: int = eqx.field(static=True, default=6)
    bound: float = eqx.field(static=True, default=5.0)

    def __check_init__(self):
        check_fraction("alpha", self.alpha)
        check_count("depth", self.depth, least=2)
        if not self.bound >= 1:
            raise ValueError(f"`bound` must be at least 1, got {self.bound!r}.")

    def init(self, density):
        empty = jnp.zeros((self.depth, *density.shape), density.dtype)
        return empty, empty

    def __call__(self, memory, density, output, iteration):
        place = iteration % self.depth
        inputs, changes = memory
        inputs = inputs.at[place].set(density)
        changes = changes.at[place].set(output - density)
        known = jnp.arange(self.depth, dtype=iteration.dtype) <= iteration
        share = _cancelling(changes, known)
        alone = jax.nn.one_hot(place, self.depth, dtype=share.dtype)
        share = jnp.where(jnp.sum(jnp.abs(share)) <= self.bound, share, alone)
        return share @ (inputs + self.alpha * changes), (inputs, changes)


def _cancelling(
    changes: Float[Array, "depth grid"], known: Array
) -> Float[Array, " depth"]:
    """Numbers of sum one that make the sum of the known changes small."""
    squares = jnp.sum(changes**2, axis=1)
    tiny = jnp.finfo(changes.dtype).tiny
    size = jnp.sqrt(jnp.where(known, jnp.maximum(squares, tiny), 1))
    unit = changes / size[:, None]
    # Of those that are not known, and of nearly equal ones, none is preferred.
    ridge = jnp.where(known, 10 * jnp.finfo(changes.dtype).eps, 1)
    overlaps = unit @ unit.T + jnp.diag(ridge)
    wanted = jnp.where(known, 1 / size, 0)
    found = jnp.linalg.solve(overlaps, wanted) / size
    return found / jnp.sum(found)


def check_fraction(name: str, value: float | int) -> None:
    """Raises unless `value` is above zero and at most one."""
    if not 0 < value <= 1:
        raise ValueError(f"`{name}` must be above 0 and at most 1, got {value!r}.")
