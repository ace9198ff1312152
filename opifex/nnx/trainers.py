"""The documented trainers: one implementation, three constructors."""

from collections.abc import Mapping
from typing import Any

from .._optimizer.base import check_optimizer
from ..training.components import FlexibleOptimizerFactory, TrainingComponentBase
from ..training.metrics import AdvancedMetricsCollector
from .parts import Parts
from .recovery import ErrorRecoveryManager
from .trainer import AbstractTrainer


class Trainer(AbstractTrainer):
    """Trains a model as a configuration says.

    **Arguments:**

    - `model`: an `nnx.Module`, which is trained in place, an `eqx.Module`, or any
        callable pytree. It maps `(n, features)` to `(n, outputs)`; one point at a time,
        if it is a network of Equinox or has an attribute `per_point` that is true.
    - `config`: what to do.
    - `rngs`: where randomness comes from, if not from the seed of `config`: `nnx.Rngs`
        or a key.
    """

    def __init__(self, model: Any, config: Any, *, rngs: Any = None):
        self._begin(model, config, rngs, Parts())


class BasicTrainer(AbstractTrainer):
    """[`Trainer`][], under another name, and with a place for another optimizer.

    **Arguments:** those of [`Trainer`][], and

    - `meta_optimizer`: an optax optimizer in place of that of `config`.
    """

    def __init__(
        self,
        model: Any,
        config: Any,
        *,
        rngs: Any = None,
        meta_optimizer: Any = None,
    ):
        if meta_optimizer is not None:
            check_optimizer("meta_optimizer", meta_optimizer)
        self._begin(model, config, rngs, Parts(optimizer=meta_optimizer))


class ModularTrainer(AbstractTrainer):
    """[`Trainer`][], with components.

    **Arguments:** those of [`Trainer`][], and

    - `components`: by name. `"error_recovery"` is an [`ErrorRecoveryManager`][], and
        `"optimizer_factory"` a [`FlexibleOptimizerFactory`][]; any other is a
        [`TrainingComponentBase`][], and is called before the run (`initialize`, then
        `setup`), after every epoch (`update`), and at its end, however it comes
        (`cleanup`).

    **Attributes:**

    - `metrics_collector`: an [`AdvancedMetricsCollector`][] with the history of the
        run.
    """

    metrics_collector: AdvancedMetricsCollector

    def __init__(
        self,
        model: Any,
        config: Any,
        *,
        components: Mapping[str, Any] | None = None,
        rngs: Any = None,
    ):
        others = dict(components or {})
        recovery = others.pop("error_recovery", None)
        factory = others.pop("optimizer_factory", None)
        _check("error_recovery", recovery, ErrorRecoveryManager, optional=True)
        _check("optimizer_factory", factory, FlexibleOptimizerFactory, optional=True)
        for name, component in others.items():
            _check(name, component, TrainingComponentBase)
        self.components = dict(components or {})
        self.metrics_collector = AdvancedMetricsCollector()
        parts = Parts(
            factory=factory,
            manager=recovery,
            components=tuple(others.values()),
            collector=self.metrics_collector,
        )
        self._begin(model, config, rngs, parts)


def _check(name: str, component: Any, kind: type, *, optional: bool = False) -> None:
    if isinstance(component, kind) or (optional and component is None):
        return
    raise TypeError(
        f"`components[{name!r}]` must be a `{kind.__name__}`, got {component!r} of "
        f"type {type(component).__name__}."
    )
