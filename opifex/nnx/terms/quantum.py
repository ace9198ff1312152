from ..._problem.extra_terms import AbstractRowTerm, EnergyError, Within
from ..._problem.forces import OnEnergies, OnForces
from ..._problem.supervised import mae, RowLoss
from ...core.training.physics_configs import QuantumTrainingConfig


def has_forces(config: QuantumTrainingConfig | None) -> bool:
    """Whether targets are pairs of energies and forces."""
    return config is not None and config.force_weight is not None


def force_terms(
    config: QuantumTrainingConfig | None, loss: RowLoss
) -> tuple[dict[str, AbstractRowTerm], dict[str, float | int]]:
    """The misfit to the forces, and its weight."""
    if config is None or config.force_weight is None:
        return {}, {}
    return {"forces": OnForces(loss)}, {"forces": config.force_weight}


def quantum_metrics(config: QuantumTrainingConfig) -> dict[str, AbstractRowTerm]:
    """The mean error of energies in kcal/mol, and the share that is accurate; that of
    the components of forces in hartree/bohr."""
    error = EnergyError()
    found: dict[str, AbstractRowTerm] = {
        "energy_error_kcal_mol": error,
        "chemically_accurate": Within(error, config.chemical_accuracy_target),
    }
    if not has_forces(config):
        return found
    found = {name: OnEnergies(term) for name, term in found.items()}
    found["force_error"] = OnForces(mae)
    return found
