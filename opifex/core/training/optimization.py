"""The documented settings of optimizers and schedules."""

import dataclasses
from typing import Any

import optax

from ..._misc import check_count, check_number
from ..._optimizer.factory import named_optimizer, searches_along_a_line
from ..._optimizer.schedules import named_schedule, PLATEAU, reduced_on_plateau
from .._checks import check_flag
from .._strict import strict


_NUMBERS = ("weight_decay", "momentum", "beta1", "beta2", "eps", "grad_clip")
_OF_OPTIMIZER = (*_NUMBERS, "single_precision")
_OF_SCHEDULE = ("cosine_alpha", "decay_rate", "decay_steps", "warmup_steps")
_OF_PLATEAU = {
    "plateau_factor": "factor",
    "plateau_patience": "patience",
    "plateau_window": "window",
}


@strict
@dataclasses.dataclass(frozen=True)
class OptimizationConfig:
    """An optimizer and its schedule, by their names.

    `None` stands for what [`TrainingConfig`][] says, or the optimizer's own default.

    **Arguments:**

    - `optimizer_type`: such as `"adam"`; see [`named_optimizer`][].
    - `learning_rate`: at its highest. Those that search along a line have none.
    - `weight_decay`, `momentum`, `beta1`, `beta2`, `eps`: as far as the optimizer has
        them.
    - `grad_clip`: the norm to which gradients are clipped.
    - `schedule_type`: such as `"cosine"`; see [`named_schedule`][].
    - `total_steps`: of the schedule; those of the run, unless given.
    - `cosine_alpha`, `decay_rate`, `decay_steps`, `warmup_steps`: as far as the
        schedule has them.
    - `plateau_factor`, `plateau_patience`, `plateau_window`: of `"plateau"`, the
        arguments of [`reduced_on_plateau`][].
    - `single_precision`: whether a second-order optimizer may do with parameters of
        less than float64.
    """

    optimizer_type: str | None = None
    learning_rate: int | float | None = None
    weight_decay: int | float | None = None
    momentum: int | float | None = None
    beta1: int | float | None = None
    beta2: int | float | None = None
    eps: int | float | None = None
    grad_clip: int | float | None = None
    schedule_type: str = "constant"
    total_steps: int | None = None
    cosine_alpha: int | float | None = None
    decay_rate: int | float | None = None
    decay_steps: int | None = None
    warmup_steps: int | None = None
    plateau_factor: int | float | None = None
    plateau_patience: int | None = None
    plateau_window: int | None = None
    single_precision: bool | None = None

    def __post_init__(self):
        for name in (
            "total_steps",
            "decay_steps",
            "warmup_steps",
            "plateau_patience",
            "plateau_window",
        ):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if self.single_precision is not None:
            check_flag("single_precision", self.single_precision)
        for name in ("learning_rate", "eps", "grad_clip", "decay_rate"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), 0, open_low=True)
        for name in ("weight_decay", "cosine_alpha"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), 0)
        for name in ("momentum", "beta1", "beta2"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(
                    f"`{name}` must be at least 0 and less than 1, got {value!r}."
                )
        self._check_together()

    def _check_together(self) -> None:
        steps = 10**9 if self.total_steps is None else self.total_steps
        self.make_schedule(1e-3, steps)
        self._check_plateau()
        if self.optimizer_type is not None:
            self.make_optimizer(self.optimizer_type, 1e-3, steps)

    def _check_plateau(self) -> None:
        for name in _OF_PLATEAU:
            if getattr(self, name) is not None and not self.follows_the_loss:
                raise ValueError(
                    f"`{name}` = {getattr(self, name)!r} has no meaning for the "
                    f"schedule {self.schedule_type!r}. Leave it out, or say "
                    f"`schedule_type={PLATEAU!r}`."
                )
        if self.follows_the_loss and self.plateau_factor is not None:
            reduced_on_plateau(optax.identity(), factor=self.plateau_factor)

    @property
    def follows_the_loss(self) -> bool:
        """Whether the steps are shortened by what is seen of the loss, so that nobody
        knows the learning rate beforehand."""
        return self.schedule_type == PLATEAU

    def _check_searches(self, name: str) -> None:
        for key, default in (("learning_rate", None), ("schedule_type", "constant")):
            if getattr(self, key) != default:
                raise ValueError(
                    f"`{key}` = {getattr(self, key)!r} has no meaning for the "
                    f"optimizer {name!r}, which searches along a line. Leave it out."
                )

    def make_schedule(
        self, learning_rate: int | float, total_steps: int
    ) -> optax.Schedule:
        """The learning rate by steps. Arguments hold where the fields are `None`."""
        if self.learning_rate is not None:
            learning_rate = self.learning_rate
        if self.total_steps is not None:
            total_steps = self.total_steps
        settings: dict[str, Any] = {key: getattr(self, key) for key in _OF_SCHEDULE}
        return named_schedule(
            self.schedule_type, learning_rate, total_steps, **settings
        )

    def make_optimizer(
        self, name: str, learning_rate: int | float, total_steps: int
    ) -> optax.GradientTransformation:
        """The optimizer. The arguments hold where the fields are `None`."""
        if self.optimizer_type is not None:
            name = self.optimizer_type
        if searches_along_a_line(name):
            self._check_searches(name)
        rate = self.make_schedule(learning_rate, total_steps)
        if self.schedule_type == "constant" and self.warmup_steps is None:
            rate = rate(0)  # which needs no count of steps
        settings: dict[str, Any] = {key: getattr(self, key) for key in _OF_OPTIMIZER}
        optim = named_optimizer(name, rate, **settings)
        if not self.follows_the_loss:
            return optim
        given = {key: getattr(self, name) for name, key in _OF_PLATEAU.items()}
        known = {key: value for key, value in given.items() if value is not None}
        return reduced_on_plateau(optim, **known)


KEYS = tuple(field.name for field in dataclasses.fields(OptimizationConfig))
