"""The documented components of a trainer."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import equinox as eqx
import optax

from .._misc import unknown_name
from .._optimizer.factory import searches_along_a_line
from .._step import trainable
from ..core.training.optimization import KEYS, OptimizationConfig
from ..nnx.models import as_pytree


__all__ = [
    "FlexibleOptimizerFactory",
    "TrainingComponentBase",
]


def __dir__():
    return __all__


class TrainingComponentBase:
    """What is called at certain points of a run, on the host.

    To be subclassed; every method may be left out.

    **Arguments:**

    - `config`: settings of one's own.
    """

    config: Any = MappingProxyType({})

    def __init__(self, config: Mapping[str, Any] | None = None):
        self.config = {} if config is None else dict(config)

    def initialize(self, **kwargs: Any) -> None:
        """Called at the start of a run, with `config`, `model` and `state`."""

    def setup(self, model: Any, state: Any) -> None:
        """Called next, with the model and the training state."""

    def update(self, **kwargs: Any) -> None:
        """Called after each epoch, with `epoch`, `state` and `metrics`."""

    def cleanup(self) -> None:
        """Called at the end of a run, however it came."""


# What is meant where neither the settings nor the trainer say otherwise.
_OPTIMIZER, _LEARNING_RATE, _STEPS = "adam", 1e-3, 1000


class FlexibleOptimizerFactory(TrainingComponentBase):
    """Makes optimizers and schedules from their names.

    **Arguments:**

    - `config`: a dictionary of the fields of [`OptimizationConfig`][], or one of them.
        Unless given: Adam, a learning rate of 1e-3, constant, and 1000 steps.

    **Attributes:**

    - `settings`: the same as an [`OptimizationConfig`][].
    """

    settings: OptimizationConfig

    def __init__(self, config: Mapping[str, Any] | OptimizationConfig | None = None):
        if isinstance(config, OptimizationConfig):
            config = {key: getattr(config, key) for key in KEYS}
        self.config = {} if config is None else dict(config)
        for key in self.config:
            if key not in KEYS:
                raise ValueError(unknown_name("config", str(key), KEYS))
        self.settings = OptimizationConfig(**self.config)

    def create_schedule(
        self,
        *,
        learning_rate: int | float | None = None,
        total_steps: int | None = None,
    ) -> optax.Schedule:
        """The learning rate by steps.

        **Arguments:** what holds where `config` is silent.

        **Raises:** `ValueError` for optimizers that have none.
        """
        name = self.settings.optimizer_type
        if name is not None and searches_along_a_line(name):
            raise ValueError(
                f"`optimizer_type` = {name!r} searches along a line and has no "
                "schedule. Choose another optimizer, or ask for none."
            )
        if self.settings.follows_the_loss:
            raise ValueError(
                f"`schedule_type` = {self.settings.schedule_type!r} follows the loss "
                "and not the steps. Choose another one, or ask for the optimizer alone."
            )
        rate = _LEARNING_RATE if learning_rate is None else learning_rate
        steps = _STEPS if total_steps is None else total_steps
        return self.settings.make_schedule(rate, steps)

    def create_optimizer(
        self,
        model: Any = None,
        *,
        learning_rate: int | float | None = None,
        total_steps: int | None = None,
        optimizer_type: str | None = None,
    ) -> optax.GradientTransformation:
        """The optimizer.

        **Arguments:**

        - `model`: if given, the optimizer is tried on the shapes of its parameters.
        - the others: what holds where `config` is silent.
        """
        optim = self.settings.make_optimizer(
            _OPTIMIZER if optimizer_type is None else optimizer_type,
            _LEARNING_RATE if learning_rate is None else learning_rate,
            _STEPS if total_steps is None else total_steps,
        )
        if model is not None:
            model = as_pytree(model)
            params = eqx.filter(model, trainable(model))
            eqx.filter_eval_shape(optim.init, params)
        return optim
