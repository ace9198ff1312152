"""The documented configuration of training."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import optax

from ..._misc import check_count, check_number
from ..._optimizer.base import check_optimizer
from ..._optimizer.factory import searches_along_a_line
from ..._problem.supervised import huber, mae, mse, relative_l2, RowLoss
from .._checks import change, check_callable, check_flag, check_names
from .._strict import strict
from .optimization import OptimizationConfig as OptimizationConfig
from .physics_configs import (
    BoundaryConfig as BoundaryConfig,
    ConservationConfig as ConservationConfig,
    DFTConfig as DFTConfig,
    LoggingConfig as LoggingConfig,
    MetricsTrackingConfig as MetricsTrackingConfig,
    MultiScaleConfig as MultiScaleConfig,
    QuantumTrainingConfig as QuantumTrainingConfig,
    SCFConfig as SCFConfig,
)


__all__ = [
    "BoundaryConfig",
    "CheckpointConfig",
    "ConservationConfig",
    "DFTConfig",
    "LoggingConfig",
    "LossConfig",
    "MetricsTrackingConfig",
    "MultiScaleConfig",
    "OptimizationConfig",
    "QuantumTrainingConfig",
    "SCFConfig",
    "TrainingConfig",
    "ValidationConfig",
]


def __dir__():
    return __all__


LOSSES: dict[str, Callable[[int | float], RowLoss]] = {
    "mse": lambda delta: mse,
    "mae": lambda delta: mae,
    "huber": huber,
    "relative_l2": lambda delta: relative_l2,
}


@strict
@dataclasses.dataclass(frozen=True)
class LossConfig:
    """How errors are measured, and how much each part of the loss counts.

    **Arguments:**

    - `loss_type`: of the misfit to data: `"mse"`, `"mae"`, `"huber"`, `"relative_l2"`.
    - `huber_delta`: where the Huber loss turns linear; 1, unless given.
    - `data_weight`, `physics_weight`, `boundary_weight`, `initial_weight`: of the parts
        of the loss. `None` stands for that of the physics loss, or else 1.
    """

    loss_type: str = "mse"
    huber_delta: int | float | None = None
    data_weight: int | float | None = None
    physics_weight: int | float | None = None
    boundary_weight: int | float | None = None
    initial_weight: int | float | None = None

    def __post_init__(self):
        check_names("loss_type", [self.loss_type], LOSSES)
        if self.huber_delta is not None:
            check_number("huber_delta", self.huber_delta, 0, open_low=True)
            if self.loss_type != "huber":
                raise ValueError(
                    f"`huber_delta` = {self.huber_delta!r} has no meaning for the loss "
                    f"{self.loss_type!r}. Leave it out, or choose 'huber'."
                )
        for part in ("data", "physics", "boundary", "initial"):
            weight = getattr(self, f"{part}_weight")
            if weight is not None:
                check_number(f"{part}_weight", weight, 0)

    @property
    def row_loss(self) -> RowLoss:
        """The function that `loss_type` names."""
        return LOSSES[self.loss_type](
            1.0 if self.huber_delta is None else self.huber_delta
        )


@strict
@dataclasses.dataclass(frozen=True)
class ValidationConfig:
    """When the model is validated, and when that ends the run.

    **Arguments:** those of [`TrainingConfig`][]; `None` stands for what is said there.
    """

    validation_frequency: int | None = None
    early_stopping: bool | None = None
    patience: int | None = None
    min_delta: int | float | None = None

    def __post_init__(self):
        for name in ("validation_frequency", "patience"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if self.early_stopping is not None:
            check_flag("early_stopping", self.early_stopping)
        if self.min_delta is not None:
            check_number("min_delta", self.min_delta, 0)


@strict
@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Where and when checkpoints are written.

    **Arguments:** those of [`TrainingConfig`][], where `None` stands for what is said
    there, and

    - `max_to_keep`: how many of the latest stay.
    """

    checkpoint_dir: str | os.PathLike | None = None
    checkpoint_frequency: int | None = None
    max_to_keep: int = 3

    def __post_init__(self):
        check_count("max_to_keep", self.max_to_keep)
        if self.checkpoint_frequency is not None:
            check_count("checkpoint_frequency", self.checkpoint_frequency)


@strict
@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Everything that the documented trainers need to be told.

    What belongs to one of the configurations inside may be said here or there; then it
    is read here. Both, and different, is an error.

    **Arguments:**

    - `num_epochs`: how often the data are gone through.
    - `batch_size`: rows a step; one larger than the data means all of them.
    - `learning_rate`: of the optimizer, at its highest.
    - `validation_frequency`: how many epochs lie between two validations.
    - `checkpoint_frequency`: how many lie between two checkpoints.
    - `early_stopping`: whether to stop after `patience` validations of which none was
        better by `min_delta`.
    - `seed`: of the batches, of dropout, and of everything else that is random.
    - `optimizer`: a name, see [`named_optimizer`][], or an optax optimizer.
    - `progress`: whether to show a bar.
    - `progress_callback`: called with the number of epochs done and a dictionary of the
        history's latest numbers.
    - `checkpoint_dir`: where to write checkpoints; none are written without it.
    - the others: see the class of each.
    """

    num_epochs: int = 100
    batch_size: int = 32
    learning_rate: int | float = 1e-3
    validation_frequency: int = 10
    checkpoint_frequency: int = 50
    early_stopping: bool = False
    patience: int = 20
    min_delta: int | float = 0.0
    seed: int = 0
    optimizer: str | optax.GradientTransformation = "adam"
    progress: bool = True
    progress_callback: Callable[[int, dict[str, float]], Any] | None = None
    checkpoint_dir: str | os.PathLike | None = None
    conservation_config: ConservationConfig | None = None
    multiscale_config: MultiScaleConfig | None = None
    boundary_config: BoundaryConfig | None = None
    quantum_config: QuantumTrainingConfig | None = None
    dft_config: DFTConfig | None = None
    scf_config: SCFConfig | None = None
    metrics_tracking_config: MetricsTrackingConfig | None = None
    logging_config: LoggingConfig | None = None
    loss_config: LossConfig | None = None
    optimization_config: OptimizationConfig | None = None
    validation_config: ValidationConfig | None = None
    checkpoint_config: CheckpointConfig | None = None

    def __post_init__(self):
        for name, kind in _PARTS.items():
            part = getattr(self, name)
            if part is not None and not isinstance(part, kind):
                raise TypeError(
                    f"`{name}` must be a `{kind.__name__}`, got {part!r} of type "
                    f"{type(part).__name__}."
                )
        for part, names in _SHARED.items():
            for name, own in names.items():
                self._adopt(part, name, own)
        self._adopt_boundary_weight()
        self._check_values()
        self._check_optimizer()
        self._check_metrics()

    def _adopt(self, part: str, name: str, own: str) -> None:
        """Takes over what a configuration inside says about a field of this one."""
        config = getattr(self, part)
        value = None if config is None else getattr(config, name)
        if value is None:
            return
        here, default = getattr(self, own), _DEFAULTS[own]
        if here != default and here != value:
            raise ValueError(
                f"`{own}` = {here!r} contradicts `{part}.{name}` = {value!r}. Say it "
                "in one of the two."
            )
        change(self, **{own: value})

    def _adopt_boundary_weight(self) -> None:
        """The weight of the boundary is read from `loss_config`."""
        if self.boundary_config is None or self.boundary_config.weight is None:
            return
        weight = self.boundary_config.weight
        loss = LossConfig() if self.loss_config is None else self.loss_config
        if loss.boundary_weight not in (None, weight):
            raise ValueError(
                f"`loss_config.boundary_weight` = {loss.boundary_weight!r} contradicts "
                f"`boundary_config.weight` = {weight!r}. Say it in one of the two."
            )
        change(self, loss_config=dataclasses.replace(loss, boundary_weight=weight))

    def _check_values(self) -> None:
        for name in _COUNTS:
            check_count(name, getattr(self, name))
        check_count("seed", self.seed, least=0)
        check_number("learning_rate", self.learning_rate, 0, open_low=True)
        check_number("min_delta", self.min_delta, 0)
        check_flag("early_stopping", self.early_stopping)
        check_flag("progress", self.progress)
        if self.progress_callback is not None:
            check_callable("progress_callback", self.progress_callback)

    def _check_optimizer(self) -> None:
        if not isinstance(self.optimizer, str):
            check_optimizer("optimizer", self.optimizer)
            if self.optimization_config is not None:
                raise ValueError(
                    "`optimizer` is an optax optimizer, which `optimization_config` "
                    "contradicts. Give one of the two."
                )
        changed = self.learning_rate != _DEFAULTS["learning_rate"]
        if changed and self._has_own_learning_rate():
            raise ValueError(
                f"`learning_rate` = {self.learning_rate!r} has no meaning for "
                f"`optimizer` = {self.optimizer!r}, which has its own. Leave it out."
            )
        self.make_optimizer(10**9)

    def _check_metrics(self) -> None:
        tracked = self.metrics_tracking_config
        for metric, part in _NEEDED.items():
            if tracked and metric in tracked.metrics and getattr(self, part) is None:
                raise ValueError(
                    f"`metrics_tracking_config` asks for {metric!r}, which needs "
                    f"`{part}`. Give it."
                )

    def _has_own_learning_rate(self) -> bool:
        name = self.optimizer
        return not isinstance(name, str) or searches_along_a_line(name)

    @property
    def loss(self) -> LossConfig:
        """`loss_config`, or the default one."""
        return LossConfig() if self.loss_config is None else self.loss_config

    @property
    def max_to_keep(self) -> int:
        """How many checkpoints stay."""
        return (self.checkpoint_config or CheckpointConfig()).max_to_keep

    def make_optimizer(self, total_steps: int) -> optax.GradientTransformation:
        """The optimizer of a run of so many steps."""
        if not isinstance(self.optimizer, str):
            return self.optimizer
        config = self.optimization_config or OptimizationConfig()
        return config.make_optimizer(self.optimizer, self.learning_rate, total_steps)

    def make_schedule(self, total_steps: int) -> optax.Schedule | None:
        """The learning rate by steps; `None` where the optimizer alone knows it."""
        if self._has_own_learning_rate():
            return None
        config = self.optimization_config or OptimizationConfig()
        if config.follows_the_loss:
            return None
        return config.make_schedule(self.learning_rate, total_steps)


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(TrainingConfig)}
_COUNTS = (
    "num_epochs",
    "batch_size",
    "validation_frequency",
    "checkpoint_frequency",
    "patience",
)
_PARTS = {
    "conservation_config": ConservationConfig,
    "multiscale_config": MultiScaleConfig,
    "boundary_config": BoundaryConfig,
    "quantum_config": QuantumTrainingConfig,
    "dft_config": DFTConfig,
    "scf_config": SCFConfig,
    "metrics_tracking_config": MetricsTrackingConfig,
    "logging_config": LoggingConfig,
    "loss_config": LossConfig,
    "optimization_config": OptimizationConfig,
    "validation_config": ValidationConfig,
    "checkpoint_config": CheckpointConfig,
}
# Fields of the parts that are also fields of the whole, by the name they have there.
_SHARED = {
    "optimization_config": {
        "optimizer_type": "optimizer",
        "learning_rate": "learning_rate",
    },
    "validation_config": {
        name: name
        for name in ("validation_frequency", "early_stopping", "patience", "min_delta")
    },
    "checkpoint_config": {
        name: name for name in ("checkpoint_dir", "checkpoint_frequency")
    },
}
# Metrics that cannot be measured without a configuration.
_NEEDED = {"conservation": "conservation_config", "chemical_accuracy": "quantum_config"}
