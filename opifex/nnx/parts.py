"""What the documented trainers differ in."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from .._optimizer.factory import searches_along_a_line
from .._recovery.backtrack import Backtrack
from .._recovery.base import AbstractRecovery
from ..core.training.config import TrainingConfig
from ..training.components import FlexibleOptimizerFactory, TrainingComponentBase
from ..training.metrics import AdvancedMetricsCollector
from .recovery import ErrorRecoveryManager
from .view import StateView


# It neither looks at the norms nor at how a loss rises: a run may begin at a model that
# fits, whose first steps raise a tiny loss by any factor.
_DEFAULT = Backtrack(max_rise=math.inf, max_growth=math.inf, spike_factor=math.inf)


@dataclass(frozen=True)
class Parts:
    """Replacements of what follows from the configuration, and further listeners."""

    optimizer: optax.GradientTransformation | None = None
    factory: FlexibleOptimizerFactory | None = None
    manager: ErrorRecoveryManager | None = None
    components: tuple[TrainingComponentBase, ...] = ()
    collector: AdvancedMetricsCollector | None = None

    @property
    def recovery(self) -> AbstractRecovery:
        """What decides about each step: unless a manager is given, one by default."""
        return _DEFAULT if self.manager is None else self.manager.recovery

    def make_optimizer(
        self, config: TrainingConfig, total_steps: int
    ) -> optax.GradientTransformation:
        """The optimizer of a run of so many steps."""
        if self.optimizer is not None:
            return self.optimizer
        if self.factory is None:
            return config.make_optimizer(total_steps)
        named = config.optimizer if isinstance(config.optimizer, str) else None
        return self.factory.create_optimizer(
            learning_rate=config.learning_rate,
            total_steps=total_steps,
            optimizer_type=named,
        )

    def schedule(
        self, config: TrainingConfig, total_steps: int
    ) -> Callable[[np.ndarray], Any] | None:
        """The learning rate at some steps; `None` where the optimizer alone knows."""
        if self.optimizer is not None:
            return None
        if self.factory is None:
            schedule = config.make_schedule(total_steps)
        else:
            schedule = self._of_factory(config, total_steps)
        return None if schedule is None else lambda steps: schedule(jnp.asarray(steps))

    def _of_factory(
        self, config: TrainingConfig, total_steps: int
    ) -> optax.Schedule | None:
        assert self.factory is not None
        name = self.factory.settings.optimizer_type or config.optimizer
        if not isinstance(name, str) or searches_along_a_line(name):
            return None
        if self.factory.settings.follows_the_loss:
            return None
        return self.factory.create_schedule(
            learning_rate=config.learning_rate, total_steps=total_steps
        )

    def start(self, config: TrainingConfig, model: Any, state: StateView) -> None:
        """Tells everybody that a run begins."""
        if self.collector is not None:
            self.collector.start_training()
        for component in self.components:
            component.initialize(config=config, model=model, state=state)
            component.setup(model, state)

    def update(self, state: StateView, epoch: int, metrics: dict[str, float]) -> None:
        """Tells the components that an epoch has ended."""
        for component in self.components:
            component.update(epoch=epoch, state=state, metrics=metrics)

    def end(self, faults: dict[str, Any]) -> None:
        """Tells everybody that the run has ended, and what befell it."""
        if self.manager is not None:
            self.manager.note(faults)
        for component in self.components:
            component.cleanup()
