"""The documented configurations: what they refuse, and what they mean."""

import copy
import dataclasses
import importlib
import inspect
import subprocess
import sys

import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest

import opifex as opx
from opifex.core import conditions
from opifex.core.training import config as doors
from opifex.core.training.config import (
    BoundaryConfig,
    CheckpointConfig,
    ConservationConfig,
    DFTConfig,
    LoggingConfig,
    LossConfig,
    MetricsTrackingConfig,
    MultiScaleConfig,
    OptimizationConfig,
    QuantumTrainingConfig,
    SCFConfig,
    TrainingConfig,
    ValidationConfig,
)
from opifex.core.training.physics_configs import BACKENDS


@pytest.fixture(autouse=True)
def _as_without_a_type_checker(monkeypatch):
    # It would come before our own checks, and those who train run without one.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


CONFIGS = [
    value
    for value in vars(doors).values()
    if inspect.isclass(value) and dataclasses.is_dataclass(value)
]
# What cannot be made without arguments is made with these.
REQUIRED = {ConservationConfig: {"laws": ["mass"]}}


@pytest.mark.parametrize("cls", CONFIGS, ids=lambda cls: cls.__name__)
def test_common_contract(cls):
    config = cls(**REQUIRED.get(cls, {}))
    names = [field.name for field in dataclasses.fields(cls)]
    assert copy.deepcopy(config) == config == dataclasses.replace(config)
    for name in names:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, name, None)
        with pytest.raises(TypeError, match=f"Did you mean {name!r}"):
            cls(**REQUIRED.get(cls, {}), **{name + "s_": 1})


def test_there_are_all_of_them():
    names = {cls.__name__ for cls in CONFIGS}
    wanted = "Training Loss Optimization Validation Checkpoint QuantumTraining"
    wanted += " Conservation MultiScale Boundary DFT SCF MetricsTracking Logging"
    assert names == {f"{name}Config" for name in wanted.split()}


def test_documented_defaults():
    config = TrainingConfig()
    assert (config.num_epochs, config.batch_size, config.learning_rate) == (
        100,
        32,
        1e-3,
    )
    assert (config.validation_frequency, config.checkpoint_frequency) == (10, 50)
    assert (config.early_stopping, config.patience, config.min_delta) == (False, 20, 0)
    assert (config.seed, config.progress) == (0, True)
    assert config.loss == LossConfig() and config.max_to_keep == 3
    parts = [f.name for f in dataclasses.fields(config) if f.name.endswith("_config")]
    assert len(parts) == 12 and not any(getattr(config, name) for name in parts)


def test_parts_are_read_in_the_whole():
    config = TrainingConfig(
        optimization_config=OptimizationConfig("sgd", learning_rate=0.5),
        validation_config=ValidationConfig(
            validation_frequency=3, early_stopping=True, patience=4, min_delta=0.1
        ),
        checkpoint_config=CheckpointConfig("somewhere", 7, max_to_keep=9),
        boundary_config=BoundaryConfig(weight=5.0),
    )
    assert (config.optimizer, config.learning_rate) == ("sgd", 0.5)
    assert (config.validation_frequency, config.early_stopping) == (3, True)
    assert (config.patience, config.min_delta) == (4, 0.1)
    assert (config.checkpoint_dir, config.checkpoint_frequency) == ("somewhere", 7)
    assert config.max_to_keep == 9
    assert config.loss.boundary_weight == 5.0
    # Saying it twice is no contradiction.
    assert dataclasses.replace(config) == config


def test_losses():
    x, y = jnp.array([[1.0, -3.0]]), jnp.array([[0.0, 1.0]])
    values = {
        ("mse", None): 8.5,
        ("mae", None): 2.5,
        ("huber", None): (0.5 + 3.5) / 2,
        ("huber", 2.0): (0.5 + 6.0) / 2,
        ("relative_l2", None): np.sqrt(17.0),
    }
    for (name, delta), value in values.items():
        loss = LossConfig(name, huber_delta=delta).row_loss
        np.testing.assert_allclose(loss(x, y), [value], rtol=1e-14)


def test_conservation():
    charge = lambda x, u: jnp.sum(u)
    config = ConservationConfig(
        laws=["energy", "mass"], energy_tolerance=0.5, quantities={"charge": charge}
    )
    assert config.laws == ("energy", "mass", "charge")
    assert [config.tolerance(law) for law in config.laws] == [0.5, 0.0, 0.0]
    one = jnp.ones((2, 2))
    np.testing.assert_array_equal(config.symmetry_of_points(one), -one)
    assert config.symmetry_of_fields(one) is one


def test_multiscale_and_logging():
    config = MultiScaleConfig(scales=["a", "b"], weights={"b": 0.25})
    assert config.weights == {"a": 1.0, "b": 0.25} and config.scales == ("a", "b")
    assert LoggingConfig(level="WARNING").level_number == 30
    assert MetricsTrackingConfig(["mse"]).metrics == ("mse",)


def test_boundary_geometry():
    domain = opx.Box([0.0, 0.0], [1.0, 1.0])
    name = next(iter(domain.boundaries))
    condition = conditions.DirichletBC(boundary=name, value=0.0)
    config = BoundaryConfig(enforce=True, domain=domain, conditions=[condition])
    assert config.conditions == (condition,)
    with pytest.raises(ValueError, match="Unknown name 'lid' in `boundary`"):
        wrong = conditions.DirichletBC(boundary="lid")
        BoundaryConfig(domain=domain, conditions=[wrong])


def test_documented_conditions():
    dirichlet = conditions.DirichletBC(boundary="left", value=lambda x, t: x * t)
    assert isinstance(dirichlet, opx.Dirichlet)
    assert conditions.NeumannBC(boundary="left", value=1.0) == opx.Neumann("left", 1.0)
    robin = conditions.RobinBC(boundary="left", a=2.0, b=3.0, value=1.0)
    assert (robin.a, robin.b, robin.value) == (2.0, 3.0, 1.0)
    periodic = conditions.PeriodicBC(boundary="left", partner="right")
    assert isinstance(periodic, opx.Periodic)
    assert conditions.InitialCondition(value=1.0).boundary == "initial"


T, L, C = TrainingConfig, LossConfig, ConservationConfig
SGD = optax.sgd(0.1)
WHOLE = "must be a whole number of at least"

BAD = {
    "epochs": (lambda: T(num_epochs=0), ValueError, f"`num_epochs` {WHOLE} 1, got 0"),
    "batch": (lambda: T(batch_size=2.5), ValueError, f"`batch_size` {WHOLE}"),
    "rate": (lambda: T(learning_rate=0.0), ValueError, "`learning_rate` must be a fin"),
    "rate nan": (lambda: T(learning_rate=float("nan")), ValueError, "got nan"),
    "seed": (lambda: T(seed=-1), ValueError, f"`seed` {WHOLE} 0, got -1"),
    "flag": (lambda: T(early_stopping=1), TypeError, "`early_stopping` must be `True`"),
    "callback": (lambda: T(progress_callback=3), TypeError, "`progress_callback` must"),
    "part": (
        lambda: T(loss_config={"loss_type": "mse"}),
        TypeError,
        "`loss_config` must be a `LossConfig`, got .* of type dict",
    ),
    "optimizer": (lambda: T(optimizer="adan"), ValueError, "Did you mean 'adam'"),
    "optimizer kind": (lambda: T(optimizer=optax.adam), TypeError, "`optimizer` must"),
    "two optimizers": (
        lambda: T(optimizer=SGD, optimization_config=OptimizationConfig("adam")),
        ValueError,
        "`optimizer` = .* contradicts `optimization_config.optimizer_type` = 'adam'",
    ),
    "two settings": (
        lambda: T(optimizer=SGD, optimization_config=OptimizationConfig(eps=1.0)),
        ValueError,
        "which `optimization_config` contradicts",
    ),
    "rate of an optimizer": (
        lambda: T(optimizer=SGD, learning_rate=0.5),
        ValueError,
        "`learning_rate` = 0.5 has no meaning",
    ),
    "rate of a line search": (
        lambda: T(optimizer="lbfgs", learning_rate=0.5),
        ValueError,
        "`learning_rate` = 0.5 has no meaning for `optimizer` = 'lbfgs'",
    ),
    "schedule of a line search": (
        lambda: T(
            optimizer="lbfgs",
            optimization_config=OptimizationConfig(schedule_type="cosine"),
        ),
        ValueError,
        "`schedule_type` = 'cosine' has no meaning for the optimizer 'lbfgs'",
    ),
    "rates": (
        lambda: T(
            learning_rate=0.1,
            optimization_config=OptimizationConfig(learning_rate=0.2),
        ),
        ValueError,
        "`learning_rate` = 0.1 contradicts `optimization_config.learning_rate` = 0.2",
    ),
    "patiences": (
        lambda: T(patience=3, validation_config=ValidationConfig(patience=4)),
        ValueError,
        "`patience` = 3 contradicts `validation_config.patience` = 4",
    ),
    "patience": (
        lambda: ValidationConfig(patience=0),
        ValueError,
        f"`patience` {WHOLE} 1, got 0",
    ),
    "boundary weights": (
        lambda: T(
            loss_config=L(boundary_weight=1.0),
            boundary_config=BoundaryConfig(weight=2.0),
        ),
        ValueError,
        "`loss_config.boundary_weight` = 1.0 contradicts `boundary_config.weight` = 2",
    ),
    "metric": (
        lambda: MetricsTrackingConfig(["relative_12"]),
        ValueError,
        "Unknown name 'relative_12' in `metrics`. Did you mean 'relative_l2'",
    ),
    "metric of laws": (
        lambda: T(metrics_tracking_config=MetricsTrackingConfig(["conservation"])),
        ValueError,
        "asks for 'conservation', which needs `conservation_config`",
    ),
    "metric of energies": (
        lambda: T(metrics_tracking_config=MetricsTrackingConfig(["chemical_accuracy"])),
        ValueError,
        "asks for 'chemical_accuracy', which needs `quantum_config`",
    ),
    "loss": (lambda: L("mes"), ValueError, "Unknown name 'mes' in `loss_type`"),
    "delta": (lambda: L(huber_delta=2.0), ValueError, "no meaning for the loss 'mse'"),
    "weight": (lambda: L(data_weight=-1.0), ValueError, "`data_weight` must be a fin"),
    "settings of multipliers": (
        lambda: C(["mass"], weight_growth=2.0),
        ValueError,
        "`weight_growth` = 2.0 has no meaning for `enforcement` = 'penalty'",
    ),
    "growth": (
        lambda: C(["mass"], enforcement="augmented_lagrangian", weight_growth=0.5),
        ValueError,
        "`weight_growth` must be a finite number at least 1",
    ),
    "reference": (
        lambda: C(["mass"], reference="inputs"),
        ValueError,
        "Did you mean 'input'",
    ),
    "no law": (lambda: C(), ValueError, r"`laws` is empty. Give some out of \['mass'"),
    "law": (
        lambda: C(["energie"]),
        ValueError,
        "Unknown name 'energie' in `laws`. Did you mean 'energy'",
    ),
    "laws": (lambda: C("energy"), TypeError, r"the string 'energy'. Write \['energy'"),
    "tolerance": (
        lambda: C(["mass"], energy_tolerance=1.0),
        ValueError,
        "`energy_tolerance` = 1.0 has no law to go with",
    ),
    "tolerance sign": (
        lambda: C(["mass"], mass_tolerance=-1.0),
        ValueError,
        "`mass_tolerance` must be a finite number at least 0, got -1.0",
    ),
    "quantity": (
        lambda: C(quantities={"q": 3}),
        TypeError,
        r"`quantities\['q'\]` must be a function, got 3",
    ),
    "enforcement": (
        lambda: C(["mass"], enforcement="penalties"),
        ValueError,
        "Unknown name 'penalties' in `enforcement`. Did you mean 'penalty'",
    ),
    "quadrature": (
        lambda: C(["mass"], quadrature_weights=[1.0, -1.0]),
        ValueError,
        r"`quadrature_weights\[1\]` must be",
    ),
    "scales": (
        lambda: MultiScaleConfig(["a", "a"]),
        ValueError,
        "`scales` must be different names",
    ),
    "scale": (
        lambda: MultiScaleConfig(["atomic"], {"atomc": 1.0}),
        ValueError,
        "Unknown name 'atomc' in `weights`. Did you mean 'atomic'",
    ),
    "operator": (
        lambda: MultiScaleConfig(["a"], operators={"a": 2}),
        TypeError,
        r"`operators\['a'\]` must be a function",
    ),
    "enforce": (
        lambda: BoundaryConfig(enforce=True),
        ValueError,
        "`enforce` = True needs the geometry",
    ),
    "domain": (
        lambda: BoundaryConfig(domain=opx.Box([0.0], [1.0])),
        ValueError,
        "`domain` has nothing to go with",
    ),
    "accuracy": (
        lambda: QuantumTrainingConfig(0.0),
        ValueError,
        "`chemical_accuracy_target` must be a finite number greater than 0",
    ),
    "backend": (
        lambda: LoggingConfig(["tensorbord"]),
        ValueError,
        "Unknown name 'tensorbord' in `backends`. Did you mean 'tensorboard'",
    ),
    "level": (lambda: LoggingConfig(level="LOUD"), ValueError, "`level`"),
    "alert": (
        lambda: LoggingConfig(alert_thresholds={"mse": "high"}),
        ValueError,
        r"`alert_thresholds\['mse'\]` must be a number, got 'high'",
    ),
    "stop": (lambda: ValidationConfig(early_stopping=1), TypeError, "`early_stopping`"),
    "delta sign": (
        lambda: ValidationConfig(min_delta=-1),
        ValueError,
        "`min_delta` mu",
    ),
    "checkpoints": (
        lambda: CheckpointConfig(checkpoint_frequency=0),
        ValueError,
        "`checkpoint_frequency` must be a whole number",
    ),
    "keep": (lambda: CheckpointConfig(max_to_keep=0), ValueError, "`max_to_keep`"),
    "dft": (lambda: DFTConfig(grid=3), TypeError, "Unknown name 'grid'"),
    "scf": (lambda: SCFConfig(mixing="dis"), ValueError, "Did you mean 'diis'"),
    "scf depth": (lambda: SCFConfig(diis_depth=3), ValueError, "no meaning for"),
    "scf shift": (lambda: SCFConfig(level_shift=-1), ValueError, "`level_shift`"),
    "dft grid": (lambda: DFTConfig(grid_points=64), ValueError, "must be odd"),
    "dft weight": (lambda: DFTConfig(energy_weight=-1), ValueError, "energy_weight"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said(name):
    make, error, message = BAD[name]
    with pytest.raises(error, match=message):
        make()


def test_a_backend_that_is_missing_names_the_remedy(monkeypatch):
    monkeypatch.setitem(BACKENDS, "wandb", ("no_such_package", "wandb"))
    with pytest.raises(ImportError, match="Install it with `pip install wandb`"):
        LoggingConfig(["csv", "wandb"])
    assert LoggingConfig(["csv", "jsonl", "tensorboard"]).backends[0] == "csv"


DOORS = {
    "core.conditions": "DirichletBC",
    "core.training.config": "TrainingConfig",
    "core.training.physics_configs": "MultiScaleConfig",
    "neural.base": "StandardMLP",
    "neural.quantum": "QuantumMLP",
    "training.components": "FlexibleOptimizerFactory",
    "training.metrics": "AdvancedMetricsCollector",
    "training.utils": "safe_model_call",
}


@pytest.mark.parametrize("path", DOORS)
def test_doors_show_what_they_promise(path):
    door = importlib.import_module(f"opifex.{path}")
    shown = dir(door)
    assert DOORS[path] in shown and shown == sorted(door.__all__)
    for name in shown:
        assert not name.startswith("_") and callable(getattr(door, name))


def test_importing_them_is_light():
    code = (
        "import sys, opifex.core.training.config, opifex.core.conditions;"
        "print(*{'flax', 'orbax', 'matplotlib'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, check=True, capture_output=True, text=True)
    assert out.stdout.split() == []
