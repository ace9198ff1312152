"""The documented configurations of physics in training, of metrics and of logs."""

import dataclasses
import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence

from ..._misc import check_count, check_number, unknown_name
from ..._problem.conditions import AbstractCondition, Dirichlet, Initial
from ...geometry.base import AbstractDomain
from .._checks import change, check_callable, check_flag, check_names
from .._strict import strict
from .conservation import ConservationConfig as ConservationConfig
from .density_functional import DFTConfig as DFTConfig, SCFConfig as SCFConfig


__all__ = [
    "BoundaryConfig",
    "ConservationConfig",
    "DFTConfig",
    "LoggingConfig",
    "MetricsTrackingConfig",
    "MultiScaleConfig",
    "QuantumTrainingConfig",
    "SCFConfig",
]


def __dir__():
    return __all__


@strict
@dataclasses.dataclass(frozen=True)
class MultiScaleConfig:
    """The loss is also measured after restriction to coarser scales.

    **Arguments:**

    - `scales`: their names, from coarse to fine.
    - `weights`: of the loss on each, by name; 1 where none is given.
    - `coupling`: whether the difference between neighbouring scales is a term too.
    - `operators`: by name, functions that restrict fields `(points, fields)` to a
        scale. Unless given, the `k`-th scale from the finest takes the mean of `2**k`
        neighbouring points.
    """

    scales: Sequence[str] = ("coarse", "fine")
    weights: Mapping[str, int | float] = dataclasses.field(default_factory=dict)
    coupling: bool = False
    operators: Mapping[str, Callable] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check_names("scales", self.scales, self.scales)
        scales = tuple(self.scales)
        if not scales or len(set(scales)) < len(scales):
            raise ValueError(
                f"`scales` must be different names, at least one, got {list(scales)}."
            )
        check_names("weights", self.weights, scales)
        check_names("operators", self.operators, scales)
        check_flag("coupling", self.coupling)
        for name, weight in self.weights.items():
            check_number(f"weights[{name!r}]", weight, 0)
        for name, operator in self.operators.items():
            check_callable(f"operators[{name!r}]", operator)
        weights = {name: self.weights.get(name, 1.0) for name in scales}
        change(
            self,
            scales=scales,
            weights=weights,
            operators=dict(self.operators),
        )


@strict
@dataclasses.dataclass(frozen=True)
class BoundaryConfig:
    """How boundary values are imposed.

    Conditions that are not exact are a term of the loss each, called
    `"boundary/left/u"` and the like, or `"initial/u"`.

    With exact conditions it is not the user's model that satisfies them, but the
    formula around it that is trained, see [`Constrained`][]: `trainer.model_fn`.

    **Arguments:**

    - `weight`: of their misfit in the loss; that of [`LossConfig`][], unless given.
    - `enforce`: whether Dirichlet values, and those at the first time, hold exactly,
        through a transform of the model by distance functions. It needs the next two.
        (Others are made exact by themselves, `PeriodicBC(..., exact=True)`.)
    - `domain`: the geometry. With time, it is `space * Interval(t0, t1)`.
    - `conditions`: such as `DirichletBC(boundary="left", value=0.0)`.
    - `fields`: the names of the model's outputs, by which conditions tell them apart.
    - `num_points`: at how many points each is asked for, if it is not exact.
    """

    weight: int | float | None = None
    enforce: bool = False
    domain: AbstractDomain | None = None
    conditions: Sequence[AbstractCondition] = ()
    fields: Sequence[str] = ("u",)
    num_points: int = 64

    def __post_init__(self):
        if self.weight is not None:
            check_number("weight", self.weight, 0)
        check_flag("enforce", self.enforce)
        check_names("fields", self.fields, self.fields)
        check_count("num_points", self.num_points)
        change(self, conditions=tuple(self.conditions), fields=tuple(self.fields))
        if self.enforce and (self.domain is None or not self.conditions):
            raise ValueError(
                "`enforce` = True needs the geometry: distances to a boundary that is "
                "not known cannot be had. Give `domain` and `conditions`, or only a "
                "`weight`."
            )
        if self.conditions and self.domain is None:
            raise ValueError("`conditions` need the geometry. Give `domain`.")
        if self.domain is not None and not self.conditions:
            raise ValueError("`domain` has nothing to go with. Give `conditions`.")
        for condition in self.conditions:
            known = (*self.domain.boundaries, "boundary") if self.domain else ()
            if condition.boundary not in known:
                raise ValueError(unknown_name("boundary", condition.boundary, known))
        if self.enforce and not any(map(_has_value, self.conditions)):
            kinds = sorted({type(c).__name__ for c in self.conditions})
            raise ValueError(
                f"`enforce` = True has nothing to enforce: of {kinds} none is a value "
                "on the boundary or at the start. Give a `DirichletBC`, or leave "
                "`enforce` out."
            )

    @property
    def enforced(self) -> tuple[AbstractCondition, ...]:
        """The conditions, those exact that `enforce` makes so."""
        exact = lambda c: dataclasses.replace(c, exact=True) if _has_value(c) else c
        return tuple(map(exact, self.conditions) if self.enforce else self.conditions)


def _has_value(condition: AbstractCondition) -> bool:
    return isinstance(condition, Dirichlet | Initial)


@strict
@dataclasses.dataclass(frozen=True)
class QuantumTrainingConfig:
    """Targets are energies in hartree, and errors are reported in kcal/mol.

    **Arguments:**

    - `chemical_accuracy_target`: in kcal/mol: which error counts as accurate.
    - `force_weight`: of the misfit to forces in the loss. With it targets are pairs
        `(energies, forces)`, the latter in hartree/bohr, of the shape of the positions
        `(rows, atoms, 3)`; the model gives energies, and forces are minus their
        derivative.
    """

    chemical_accuracy_target: int | float = 1.0
    force_weight: int | float | None = None

    def __post_init__(self):
        if self.force_weight is not None:
            check_number("force_weight", self.force_weight, 0, open_low=True)
        check_number(
            "chemical_accuracy_target", self.chemical_accuracy_target, 0, open_low=True
        )


METRICS = (
    "mse",
    "mae",
    "max_error",
    "relative_l2",
    "physics_residual",
    "conservation",
    "chemical_accuracy",
)


@strict
@dataclasses.dataclass(frozen=True)
class MetricsTrackingConfig:
    """Which metrics of the model are recorded in the history, and how often.

    **Arguments:**

    - `metrics`: names out of `METRICS`. They are measured on the validation data, or on
        the training data where there are none.
    - `frequency`: how many epochs lie between two measurements.
    """

    metrics: Sequence[str] = ("mse", "mae", "max_error", "relative_l2")
    frequency: int = 1

    def __post_init__(self):
        check_names("metrics", self.metrics, METRICS)
        check_count("frequency", self.frequency)
        change(self, metrics=tuple(self.metrics))


# The package that each way of logging needs, and the name it is installed by.
BACKENDS = {
    "jsonl": ("json", ""),
    "csv": ("csv", ""),
    "tensorboard": ("tensorboardX", "tensorboardX"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow"),
}
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


@strict
@dataclasses.dataclass(frozen=True)
class LoggingConfig:
    """Where the history of a run is written, and what is worth a warning.

    **Arguments:**

    - `backends`: names out of `BACKENDS`.
    - `directory`: of the files that they write.
    - `level`: of the messages of the logger `"opifex"`, such as `"INFO"`.
    - `frequency`: how many epochs lie between two rows.
    - `alert_thresholds`: by the name of a metric of the history, the number above which
        a warning is logged, once.
    """

    backends: Sequence[str] = ()
    directory: str = "runs"
    level: str = "INFO"
    frequency: int = 1
    alert_thresholds: Mapping[str, int | float] = dataclasses.field(
        default_factory=dict
    )

    def __post_init__(self):
        check_names("backends", self.backends, BACKENDS)
        for backend in self.backends:
            _check_installed(backend)
        check_names("level", [self.level], LEVELS)
        check_count("frequency", self.frequency)
        for name, threshold in self.alert_thresholds.items():
            if not isinstance(threshold, int | float) or threshold != threshold:
                raise ValueError(
                    f"`alert_thresholds[{name!r}]` must be a number, got {threshold!r}."
                )
        alerts = dict(self.alert_thresholds)
        change(self, backends=tuple(self.backends), alert_thresholds=alerts)

    @property
    def level_number(self) -> int:
        """The level, as the module `logging` counts."""
        return logging.getLevelNamesMapping()[self.level]


def _check_installed(backend: str) -> None:
    package, install = BACKENDS[backend]
    if importlib.util.find_spec(package) is None:
        raise ImportError(
            f"`backends` names {backend!r}, but the package `{package}` is not "
            f"installed. Install it with `pip install {install}`."
        )
