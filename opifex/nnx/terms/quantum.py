from ..._problem.extra_terms import AbstractRowTerm, EnergyError, Within
from ...core.training.physics_configs import QuantumTrainingConfig


def quantum_metrics(config: QuantumTrainingConfig) -> dict[str, AbstractRowTerm]:
    """The mean error of energies in kcal/mol, and the share that is accurate."""
    error = EnergyError()
    return {
        "energy_error_kcal_mol": error,
        "chemically_accurate": Within(error, config.chemical_accuracy_target),
    }
