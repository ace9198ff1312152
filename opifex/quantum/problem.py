import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._problem.base import AbstractProblem, Aux
from .functionals import AbstractFunctional
from .kohn_sham import KohnSham
from .mixing import check_fraction
from .molecule import Molecule
from .scf import SCF, Solution, solve


class Molecules(eqx.Module):
    """Ground states to learn from, all of one formula.

    **Arguments:**

    - `positions`: of the nuclei, in bohr.
    - `energies`: total, in hartree.
    - `densities`: electrons a bohr, at the points of the grid; `None` to train on
        energies alone.
    - `valid`: false for molecules that do not count; `None` if all do.
    """

    positions: Float[Array, "molecules nuclei"]
    energies: Float[Array, " molecules"]
    densities: Float[Array, "molecules grid"] | None = None
    valid: Bool[Array, " molecules"] | None = None


class LossWeights(eqx.Module):
    """What counts how much in the loss of a functional, see [`FitFunctional`][].

    **Arguments:**

    - `energy`: of the squared error of energies.
    - `density`: of the integral of the squared error of densities.
    - `trajectory`: of the squared error of the energies before the last iteration.
    - `discount`: by what the trajectory's count is multiplied for each iteration that
        lies between one and the last.
    - `start`: the iteration, from zero, that the trajectory begins with.
    """

    energy: float = eqx.field(static=True, default=1.0)
    density: float = eqx.field(static=True, default=1.0)
    trajectory: float = eqx.field(static=True, default=1.0)
    discount: float = eqx.field(static=True, default=0.9)
    start: int = eqx.field(static=True, default=9)

    def __check_init__(self):
        for name in ("energy", "density", "trajectory"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"`{name}` must not be negative, got {value!r}.")
        check_fraction("discount", self.discount)

    def of_iterations(self, many: int) -> np.ndarray:
        """What the error of each iteration but the last counts."""
        each = self.discount ** np.arange(many - 1, 0, -1.0)
        return np.where(np.arange(many - 1) >= self.start, each, 0.0)


class FitFunctional(AbstractProblem[AbstractFunctional, Molecules]):
    """Find a functional whose self-consistent solutions have given energies and
    densities: the equations are solved, and differentiated, in every step.

    The terms are means over molecules, each divided by the number of electrons, of what
    [`LossWeights`][] names; and, if `scf.on_nonconverged` is `"penalize"`, the integral
    of the square of the last change of densities that have not converged. If it is
    `"skip"`, molecules that have not converged count for nothing.

    **Arguments:**

    - `system`, `scf`: how the equations are solved.
    - `charges`: of the nuclei.
    - `electrons`: how many.
    - `weights`: of the parts of the loss.

    ??? cite "Reference"

        L. Li et al., "Kohn-Sham equations as regularizer: building prior knowledge into
        machine-learned physics", Physical Review Letters 126, 036401, 2021 (the loss).
    """

    system: KohnSham
    scf: SCF
    charges: tuple[float, ...] = eqx.field(static=True, default=(1.0, 1.0))
    electrons: int = eqx.field(static=True, default=2)
    weights: LossWeights = LossWeights()

    def __check_init__(self):
        if self.weights.trajectory and self.scf.differentiate == "implicit":
            raise ValueError(
                "`trajectory` weights the energies of single iterations, which "
                "`differentiate` = 'implicit' does not look at. Make it zero, or "
                "differentiate by 'unroll'."
            )
        start, many = self.weights.start, self.scf.max_iterations
        if self.weights.trajectory and start + 2 > many:
            raise ValueError(
                f"`start` = {start} leaves no iteration before the last of "
                f"`max_iterations` = {many}. Make it smaller, or the weight of the "
                "trajectory zero."
            )

    def solve(
        self, model: AbstractFunctional, positions: Float[Array, "molecules nuclei"]
    ) -> Solution:
        """The ground states of molecules, with a leading axis over them."""

        def one(place):
            charges = jnp.asarray(self.charges, place.dtype)
            molecule = Molecule(place, charges, electrons=self.electrons)
            return solve(self.system, model, molecule, self.scf)

        return jax.vmap(one)(positions)

    def terms(self, model, batch, key):
        del key
        found = self.solve(model, batch.positions)
        energies, spacing = batch.energies, self.system.grid.spacing
        parts = {"energy": self.weights.energy * (found.energy - energies) ** 2}
        if self.weights.trajectory:
            each = self.weights.trajectory * self.weights.of_iterations(
                self.scf.max_iterations
            )
            wrong = (found.energies[:, :-1] - energies[:, None]) ** 2
            parts["trajectory"] = wrong @ jnp.asarray(each, wrong.dtype)
        if batch.densities is not None:
            square = spacing * jnp.sum((found.density - batch.densities) ** 2, axis=1)
            parts["density"] = self.weights.density * square
        if self.scf.on_nonconverged == "penalize":
            parts["nonconverged"] = jnp.where(found.converged, 0, found.residual)
        counted = jnp.ones_like(found.energy)
        if self.scf.on_nonconverged == "skip":
            counted = found.converged.astype(counted.dtype)
        if batch.valid is not None:
            counted = jnp.where(batch.valid, counted, 0)
        counted = counted / jnp.maximum(jnp.sum(counted), 1)
        # A molecule that is left out may hold anything.
        mean = lambda x: jnp.sum(jnp.where(counted > 0, x, 0) * counted)
        terms = {name: mean(part) / self.electrons for name, part in parts.items()}
        metrics = {
            "scf_converged": jnp.mean(found.converged.astype(counted.dtype)),
            "scf_iterations": jnp.mean(found.iterations.astype(counted.dtype)),
        }
        return terms, Aux(metrics=metrics)
