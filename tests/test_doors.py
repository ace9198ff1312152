"""The documented import paths."""

from importlib import import_module

import pytest


DOORS = {
    "opifex.core.conditions": (
        "DirichletBC InitialCondition NeumannBC PeriodicBC RobinBC"
    ),
    "opifex.core.physics": "PhysicsInformedLoss PhysicsLossConfig",
    "opifex.core.physics.losses": "PhysicsInformedLoss PhysicsLossConfig WEIGHTINGS",
    "opifex.core.training.config": (
        "BoundaryConfig CheckpointConfig ConservationConfig DFTConfig LoggingConfig "
        "LossConfig MetricsTrackingConfig MultiScaleConfig OptimizationConfig "
        "QuantumTrainingConfig SCFConfig TrainingConfig ValidationConfig"
    ),
    "opifex.core.training.physics_configs": (
        "BoundaryConfig ConservationConfig DFTConfig LoggingConfig "
        "MetricsTrackingConfig MultiScaleConfig QuantumTrainingConfig SCFConfig"
    ),
    "opifex.core.training.trainer": "Trainer",
    "opifex.neural.base": "StandardMLP",
    "opifex.neural.quantum": "QuantumMLP",
    "opifex.optimization": (
        "MetaOptimizer Task Weights load_provenance load_weights meta_train "
        "save_weights"
    ),
    "opifex.training": "PhysicsInformedLoss PhysicsLossConfig",
    "opifex.training.adaptive_sampling": (
        "RADConfig RADSampler RARDConfig RARDRefiner compute_sampling_distribution"
    ),
    "opifex.training.basic_trainer": "BasicTrainer ModularTrainer",
    "opifex.training.components": "FlexibleOptimizerFactory TrainingComponentBase",
    "opifex.training.metrics": "AdvancedMetricsCollector TrainingState",
    "opifex.training.multilevel": (
        "CascadeTrainer MultilevelAdam MultilevelConfig MultilevelFNOConfig "
        "MultilevelFNOTrainer create_fno_hierarchy create_mode_hierarchy "
        "create_network_hierarchy prolongate prolongate_fno_modes restrict "
        "restrict_fno_modes"
    ),
    "opifex.training.multilevel.coarse_to_fine": (
        "CascadeTrainer MultilevelAdam MultilevelConfig create_network_hierarchy "
        "prolongate restrict"
    ),
    "opifex.training.multilevel.multilevel_fno": (
        "MultilevelFNOConfig MultilevelFNOTrainer create_fno_hierarchy "
        "create_mode_hierarchy prolongate_fno_modes restrict_fno_modes"
    ),
    "opifex.training.recovery": "ErrorRecoveryManager",
    "opifex.training.utils": (
        "ModelCallError safe_compute_energy safe_compute_forces safe_model_call"
    ),
}


@pytest.mark.parametrize(("path", "names"), DOORS.items(), ids=DOORS)
def test_a_door_shows_what_it_promises_and_nothing_else(path, names):
    door = import_module(path)
    assert sorted(dir(door)) == sorted(names.split())
    for name in names.split():
        assert callable(getattr(door, name)) or name == "WEIGHTINGS"


def test_a_domain_has_its_documented_name():
    geometry = import_module("opifex.geometry")
    assert "ComplexDomain" in dir(geometry)
    assert all(isinstance(getattr(geometry, name), type) for name in dir(geometry))
