"""The dissociation curve of H2 in one dimension, from two of its points."""

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._custom_types import Key, Scalar
from .._recipe import Recipe
from .._sampler.fixed import Fixed
from .._state import TrainingState
from .._validation import Validation
from ..quantum.exact import solve_exactly
from ..quantum.functionals import AbstractFunctional, LDA, NeuralFunctional
from ..quantum.grid import Grid
from ..quantum.kohn_sham import KohnSham
from ..quantum.mixing import Linear
from ..quantum.molecule import Molecule
from ..quantum.problem import FitFunctional, Molecules
from ..quantum.scf import SCF, Solution
from .base import Reference
from .judge import common_figures, members_of, save_solution
from .operators.cache import Arrays, cached


# In bohr: those of Li et al.; those that choose among the functionals on the way, the
# first and last beyond the ends of what is judged, because it is there that functionals
# of equal loss differ; and those that the chosen one is judged at.
TRAINED = (1.28, 3.84)
VALIDATED = (0.35, 0.9, 2.5, 4.7, 6.1)
JUDGED = tuple(round(0.4 + 0.2 * i, 1) for i in range(29))

CHEMICAL_ACCURACY_MHA = 1.6  # 1 kcal/mol


class DissociationBenchmark(eqx.Module):
    """A functional to be learned, with everything that is needed to do and to judge it.

    **Arguments:**

    - `name`: on the command line.
    - `title`: one line for people.
    - `problem`: the equations and the loss.
    - `model`: makes a functional, from a key and a dtype.
    - `trained`, `validated`, `judged`: separations in bohr. The exact energies at
        `validated` choose the best of the functionals that training passes by, as it is
        done by Li et al. with separations of their own; nothing is fitted to them.
    - `chunk`: how many steps lie between two validations.
    - `ensemble`: of how many networks, each of other weights at first, the one that
        validation finds best is judged.
    - `sampler`, `optimizer`, `steps`, `dtype`: what serves it best, by the names of the
        command line.
    """

    name: str = eqx.field(static=True)
    title: str = eqx.field(static=True)
    problem: FitFunctional
    model: Callable[[Key, Any], AbstractFunctional]
    trained: tuple[float, ...] = eqx.field(static=True, default=TRAINED)
    validated: tuple[float, ...] = eqx.field(static=True, default=VALIDATED)
    judged: tuple[float, ...] = eqx.field(static=True, default=JUDGED)
    chunk: int = eqx.field(static=True, default=5)
    ensemble: int = eqx.field(static=True, default=4)
    sampler: str = eqx.field(static=True, default="molecules")
    optimizer: str = eqx.field(static=True, default="lbfgs")
    steps: int = eqx.field(static=True, default=250)
    dtype: str = eqx.field(static=True, default="float64")

    def molecules(self) -> Fixed:
        """The exact ground states that are trained on."""
        return Fixed(self._exact_molecules(self.trained))

    def validation(self) -> Validation:
        """By energies at separations that are not trained on."""
        molecules = self._exact_molecules(self.validated)
        return Validation(_EnergyError(self.problem, molecules))

    def _exact_molecules(self, separations: Sequence[float]) -> Molecules:
        found, dtype = self.exact(separations), jnp.result_type(float)
        energies, densities = (
            jnp.asarray(found[k], dtype) for k in ("energies", "densities")
        )
        return Molecules(positions(separations), energies, densities)

    def exact(self, separations: Sequence[float]) -> Arrays:
        """Exact energies and densities on the grid of the problem, computed or found on
        disk."""
        system = self.problem.system
        return exact_curve(system.grid, tuple(separations))

    def curve(self, model: AbstractFunctional) -> Solution:
        """The solutions at the separations that are judged."""
        return _solve(self.problem, model, positions(self.judged))


class _EnergyError(eqx.Module):
    """The largest square of an error of energies, converged or not: it is the largest
    that is judged."""

    problem: FitFunctional
    molecules: Molecules

    def __call__(self, state: TrainingState, infos: Any) -> Scalar:
        del infos
        found = self.problem.solve(state.model, self.molecules.positions)
        return jnp.max((found.energy - self.molecules.energies) ** 2)


@eqx.filter_jit
def _solve(problem: FitFunctional, model: Any, places: Array) -> Solution:
    return problem.solve(model, places)


def positions(separations: Sequence[float]) -> Float[Array, "molecules 2"]:
    """Two nuclei about zero."""
    half = 0.5 * jnp.asarray(separations, jnp.result_type(float))
    return jnp.stack([-half, half], axis=1)


def exact_curve(grid: Grid, separations: tuple[float, ...]) -> Arrays:
    """Energies in hartree and densities of H2, with the error of the energies.

    Energies and densities are those on the grid; the error is that of the grid, by
    comparison with one half as coarse again at the least, the middle and the largest
    separation.
    """

    def at(grid: Grid, separation: float):
        nuclei = Molecule([-separation / 2, separation / 2])
        return solve_exactly(nuclei, grid, KohnSham().interaction)

    def make() -> Arrays:
        found = [at(grid, r) for r in separations]
        coarse = Grid(2 * (grid.num // 3) + 1, 1.5 * grid.spacing, grid.order)
        chosen = sorted({0, len(separations) // 2, len(separations) - 1})
        # The error falls with the fourth power of the spacing.
        wrong = max(
            abs(at(coarse, separations[i]).energy - found[i].energy) for i in chosen
        )
        return {
            "energies": np.array([f.energy for f in found]),
            "densities": np.array([f.density for f in found]),
            "error": np.array(wrong / (1.5**4 - 1)),
        }

    described = {
        "num": grid.num,
        "spacing": grid.spacing,
        "order": grid.order,
        "separations": zlib.crc32(np.asarray(separations, np.float64).tobytes()),
    }
    return cached("h2-exact", described, make)


def h2_dissociation(
    dtype: Any = None, *, grid: Grid | None = None
) -> DissociationBenchmark:
    """Li et al. (2021): a neural functional from two separations.

    Grid, iterations and loss are theirs, but for the spacing, which is twice as large:
    their quadrature does not see the kinks of the interaction.
    """
    del dtype  # that of default floats, which the command line chooses
    scf = SCF(
        max_iterations=15,
        mixing=Linear(alpha=0.5, decay=0.9),
        on_nonconverged="penalize",
    )
    system = KohnSham(Grid() if grid is None else grid, symmetric=True)
    return DissociationBenchmark(
        "h2-dissociation",
        "energies of H2 in 1-D by a neural functional that two separations teach",
        FitFunctional(system, scf),
        _network,
    )


def _network(key: Key, dtype: Any) -> NeuralFunctional:
    return NeuralFunctional(dtype=dtype, key=key)


def judge_dissociation(
    benchmark: DissociationBenchmark, recipe: Recipe, state: TrainingState, path: Path
) -> dict[str, Any]:
    """The figures of the trained functional; or, of several members, of that with the
    lowest validation loss.

    **Arguments:**

    - `benchmark`: what was to be learned, by `recipe`.
    - `state`: of the end, of one run or of an ensemble.
    - `path`: of `solution.npz`, beside which `dissociation.npz` is written.
    """
    exact = benchmark.exact(benchmark.judged)
    truth = exact["energies"]
    error = float(exact["error"])
    members = members_of(state)
    chosen = int(np.argmin([float(m.progress.best_val_loss) for m in members]))
    curves = [benchmark.curve(m.model) for m in members]
    curve, lda = curves[chosen], benchmark.curve(LDA())
    wrong = lambda found: 1e3 * np.abs(np.asarray(found.energy, np.float64) - truth)
    reference = Reference(
        np.asarray(benchmark.judged)[:, None],
        {"energy": truth},
        error / float(np.sqrt(np.mean(truth**2))),
        axes={"separation": np.asarray(benchmark.judged)},
    )
    fields = reference.aligned({"energy": curve.energy})
    save_solution(fields, reference, None, path)
    np.savez(
        path.with_name("dissociation.npz"),
        allow_pickle=False,
        separation=np.asarray(benchmark.judged),
        trained=np.asarray(benchmark.trained),
        exact=truth,
        neural=np.asarray(curve.energy),
        lda=np.asarray(lda.energy),
    )
    rel_l2 = float(reference.rel_l2(fields))
    figures = common_figures(benchmark.name, rel_l2, reference, recipe, members[chosen])
    figures |= {
        "max_error_mha": float(wrong(curve).max()),
        "mean_error_mha": float(wrong(curve).mean()),
        "lda_max_error_mha": float(wrong(lda).max()),
        "reference_error_mha": 1e3 * error,
        "chemically_accurate": float(np.mean(wrong(curve) <= CHEMICAL_ACCURACY_MHA)),
        "scf_iterations": float(np.mean(curve.iterations)),
        "scf_converged": float(np.mean(curve.converged)),
        "scf_last_change_mha": float(
            1e3 * np.max(np.abs(curve.energies[:, -1] - curve.energies[:, -2]))
        ),
    }
    if len(members) > 1:
        figures["max_error_mha_members"] = [float(wrong(c).max()) for c in curves]
    return figures
