"""Density functionals in the documented trainers."""

import warnings
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from .._problem.base import AbstractProblem
from .._problem.supervised import Pairs
from ..core.training.config import TrainingConfig
from ..core.training.density_functional import DFTConfig, INTERACTIONS, SCFConfig
from ..quantum.functionals import AbstractFunctional
from ..quantum.kohn_sham import KohnSham
from ..quantum.molecule import Molecule
from ..quantum.problem import FitFunctional, Molecules
from ..quantum.scf import check_place
from .data import Data
from .models import SelfConsistent
from .terms.quantum import has_forces


# What says how a model answers rows, and has no meaning where equations are solved.
_FOREIGN = ("conservation_config", "multiscale_config", "boundary_config")

# In hartree: no molecule of hydrogens is bound that strongly for each pair of charges.
# Energies beyond are in another unit, most likely: electronvolts, kcal/mol, ...
_MOST_A_CHARGE = 5.0


class FitRows(AbstractProblem[SelfConsistent, dict[str, Any]]):
    """[`FitFunctional`][] for the batches of the trainers, whose targets are energies
    followed by densities, if there are any."""

    problem: FitFunctional

    def terms(self, model, batch, key):
        pairs: Pairs = batch["data"]
        energies, densities = pairs.targets[:, 0], pairs.targets[:, 1:]
        given = densities if densities.shape[1] else None
        molecules = Molecules(pairs.inputs, energies, given, pairs.valid)
        return self.problem.terms(model.functional, molecules, key)


def is_quantum(config: TrainingConfig) -> bool:
    """Whether a configuration is one of a density functional."""
    return config.dft_config is not None or config.scf_config is not None


def self_consistent(model: Any, config: TrainingConfig) -> SelfConsistent:
    """What is trained in place of a functional, as a configuration says.

    **Raises:** `TypeError` for a model that is none; `ValueError` for settings without
    a meaning for one.
    """
    if not isinstance(model, AbstractFunctional):
        raise TypeError(
            "`dft_config` and `scf_config` train a density functional, such as "
            f"`opifex.quantum.NeuralFunctional`, got a {type(model).__name__}. Give "
            "one, or leave them out."
        )
    if not any(eqx.is_inexact_array(x) for x in jtu.tree_leaves(model)):
        raise TypeError(
            f"`model` of type {type(model).__name__} has no array to train. Give an "
            "`opifex.quantum.NeuralFunctional`."
        )
    foreign = [name for name in _FOREIGN if getattr(config, name) is not None]
    if foreign or config.loss_config is not None:
        raise ValueError(
            f"`{(foreign or ['loss_config'])[0]}` has no meaning for a density "
            "functional, whose loss `dft_config` weights. Leave it out."
        )
    if has_forces(config.quantum_config):
        raise ValueError(
            "`quantum_config.force_weight` has no meaning for a density functional, "
            "which is trained on energies and densities. Leave it out."
        )
    dft = DFTConfig() if config.dft_config is None else config.dft_config
    scf = SCFConfig() if config.scf_config is None else config.scf_config
    system = KohnSham(
        dft.make_grid(),
        INTERACTIONS[dft.interaction](),
        float(dft.density_threshold),
        scf.symmetric,
    )
    assert dft.electrons is not None
    problem = FitFunctional(
        system, scf.make_scf(), tuple(dft.charges), dft.electrons, dft.make_weights()
    )
    return SelfConsistent(model, problem)


def checked_molecules(name: str, given: Any, model: SelfConsistent) -> Data:
    """Positions and energies, and densities if there are three, as rows.

    **Raises:** `ValueError` or `TypeError` naming the argument.
    """
    if not isinstance(given, tuple | list) or len(given) not in (2, 3):
        raise TypeError(
            f"`{name}` must be `(positions, energies)` or `(positions, energies, "
            f"densities)`, got {type(given).__name__}."
        )
    arrays = [np.asarray(x) for x in given]
    for i, array in enumerate(arrays):
        if not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
            raise ValueError(
                f"`{name}[{i}]` must be finite floats, got dtype {array.dtype}"
                f"{'' if array.dtype == object else f' and {array}'}. Convert them, "
                "and remove rows without a value."
            )
    problem = model.problem
    rows, nuclei = arrays[0].shape[0], len(problem.charges)
    energies = arrays[1].reshape(arrays[1].shape[0], -1)
    shapes = {0: (rows, nuclei), 1: (rows, 1), 2: (rows, problem.system.grid.num)}
    arrays = [arrays[0], energies, *arrays[2:]]
    for i, array in enumerate(arrays):
        if array.shape != shapes[i] or rows == 0:
            raise ValueError(
                f"`{name}[{i}]` must have the shape {shapes[i]}: a row for each "
                f"molecule; {nuclei} nuclei by `dft_config.charges`, one energy, or "
                f"the density at {problem.system.grid.num} points. Got {array.shape}."
            )
    for place in arrays[0]:
        molecule = Molecule(place, problem.charges, electrons=problem.electrons)
        check_place(problem.system, molecule)
    _check_unit(f"{name}[1]", energies, problem.charges)
    dtype = jnp.result_type(float)
    return Data(
        jnp.asarray(arrays[0], dtype),
        jnp.asarray(np.concatenate(arrays[1:], axis=1), dtype),
    )


def _check_unit(name: str, energies: np.ndarray, charges: tuple[float, ...]) -> None:
    most = _MOST_A_CHARGE * sum(charges) ** 2 / 2
    if np.abs(energies).max() > most:
        warnings.warn(
            f"`{name}` holds energies as large as {np.abs(energies).max():.4g}, and "
            f"those of such charges are below {most:g} hartree. Convert them to "
            "hartree: 27.2114 eV, 627.509 kcal/mol or 2625.5 kJ/mol are one.",
            stacklevel=2,
        )
