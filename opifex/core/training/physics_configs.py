"""The documented configurations of physics in training, of metrics and of logs."""

import dataclasses
import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..._misc import check_count, check_number, unknown_name
from ..._problem.conditions import AbstractCondition, Dirichlet, Initial
from ...geometry.base import AbstractDomain
from .._checks import change, check_callable, check_flag, check_names
from .._strict import strict


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


LAWS = ("mass", "momentum", "energy", "symmetry")
REFERENCES = ("target", "input")
ENFORCEMENTS = ("penalty", "augmented_lagrangian")


def _reflected(points: Any) -> Any:
    return -points


def _unchanged(fields: Any) -> Any:
    return fields


@strict
@dataclasses.dataclass(frozen=True)
class ConservationConfig:
    """Quantities that training should conserve.

    **Arguments:**

    - `laws`: names out of `LAWS`, and of `quantities`, which count as listed.
    - `energy_tolerance`, `momentum_tolerance`, `mass_tolerance`, `symmetry_tolerance`:
        how far each may stray, in its own unit.
    - `weight`: of the penalty of each law in the loss.
    - `quantities`: by name, functions of the points `(points, dim)` and the fields
        `(points, fields)` that give what is conserved. One of the name of a built-in
        law replaces it.
    - `reference`: what a quantity should be that of: the `"target"`, or the `"input"`,
        for an operator that evolves a state.
    - `enforcement`: `"penalty"`, or `"augmented_lagrangian"`: then `weight` is that to
        begin with, and a multiplier for the mean of each quantity is added, so that
        this mean comes to be conserved whatever else is in the loss.
    - `multiplier_frequency`: how many epochs lie between two updates of the multipliers
        (10), at each of which the weight grows `weight_growth` times (2), to at most
        `max_weight` (100 times `weight`).
    - `symmetry_of_points`, `symmetry_of_fields`: what the symmetry makes of points
        and of fields; a reflection that leaves the fields what they are, unless given.
    - `quadrature_weights`: of the points of a sample, for the integrals; equal weights
        that sum to one, unless given.
    """

    laws: Sequence[str] = ()
    energy_tolerance: int | float = 0.0
    momentum_tolerance: int | float = 0.0
    mass_tolerance: int | float = 0.0
    symmetry_tolerance: int | float = 0.0
    weight: int | float = 1.0
    quantities: Mapping[str, Callable] = dataclasses.field(default_factory=dict)
    reference: str = "target"
    enforcement: str = "penalty"
    multiplier_frequency: int | None = None
    weight_growth: int | float | None = None
    max_weight: int | float | None = None
    symmetry_of_points: Callable = _reflected
    symmetry_of_fields: Callable = _unchanged
    quadrature_weights: Sequence[int | float] | None = None

    def __post_init__(self):
        check_names("laws", self.laws, {*LAWS, *self.quantities})
        laws = tuple(dict.fromkeys([*self.laws, *self.quantities]))
        if not laws:
            raise ValueError(f"`laws` is empty. Give some out of {list(LAWS)}.")
        for law in LAWS:
            self._check_tolerance(law, laws)
        for name, quantity in self.quantities.items():
            check_callable(f"quantities[{name!r}]", quantity)
        check_number("weight", self.weight, 0)
        check_names("reference", [self.reference], REFERENCES)
        check_names("enforcement", [self.enforcement], ENFORCEMENTS)
        self._check_multipliers()
        for name in ("symmetry_of_points", "symmetry_of_fields"):
            check_callable(name, getattr(self, name))
        weights = self.quadrature_weights
        if weights is not None:
            weights = tuple(float(w) for w in weights)
            for i, w in enumerate(weights):
                check_number(f"quadrature_weights[{i}]", w, 0)
        quantities = dict(self.quantities)
        change(self, laws=laws, quantities=quantities, quadrature_weights=weights)

    @property
    def multiplies(self) -> bool:
        """Whether there are multipliers."""
        return self.enforcement == "augmented_lagrangian"

    def _check_multipliers(self) -> None:
        settings = "multiplier_frequency", "weight_growth", "max_weight"
        if self.multiplies:
            check_number("weight", self.weight, 0, open_low=True)
            defaults = 10, 2.0, 100 * self.weight
            for name, default in zip(settings, defaults, strict=True):
                if getattr(self, name) is None:
                    change(self, **{name: default})
            check_count(settings[0], self.multiplier_frequency)
            check_number(settings[1], self.weight_growth, 1)
            check_number(settings[2], self.max_weight, self.weight)
            return
        for name in settings:
            if getattr(self, name) is not None:
                raise ValueError(
                    f"`{name}` = {getattr(self, name)!r} has no meaning for "
                    f"`enforcement` = {self.enforcement!r}. Leave it out, or choose "
                    "'augmented_lagrangian'."
                )

    def _check_tolerance(self, law: str, laws: Sequence[str]) -> None:
        name = f"{law}_tolerance"
        value = getattr(self, name)
        check_number(name, value, 0)
        if value > 0 and law not in laws:
            raise ValueError(
                f"`{name}` = {value!r} has no law to go with: `laws` are {list(laws)}. "
                f"Add {law!r} to `laws`, or leave it out."
            )

    def tolerance(self, law: str) -> int | float:
        """How far a law may stray: that of its name, and none for other quantities."""
        return getattr(self, f"{law}_tolerance") if law in LAWS else 0.0


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
        if self.enforce:
            self._enforce()

    def _enforce(self) -> None:
        can = lambda condition: isinstance(condition, Dirichlet | Initial)
        if not any(map(can, self.conditions)):
            kinds = sorted({type(c).__name__ for c in self.conditions})
            raise ValueError(
                f"`enforce` = True has nothing to enforce: of {kinds} none is a value "
                "on the boundary or at the start. Give a `DirichletBC`, or leave "
                "`enforce` out."
            )
        exact = lambda c: dataclasses.replace(c, exact=True) if can(c) else c
        change(self, conditions=tuple(map(exact, self.conditions)))


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


@strict
@dataclasses.dataclass(frozen=True)
class DFTConfig:
    """Of the density functional. Its settings come with the Kohn-Sham solver."""


@strict
@dataclasses.dataclass(frozen=True)
class SCFConfig:
    """Of self-consistency. Its settings come with the Kohn-Sham solver."""


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
