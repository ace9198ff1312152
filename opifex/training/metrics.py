"""The documented collector of metrics, for loops of one's own and for trainers."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array

from .._misc import check_count
from .._problem.extra_terms import AbstractRowTerm, INTEGRALS
from .._problem.supervised import Pairs
from .._state import TrainingState as TrainingState
from .._step import trainable
from ..core.physics.losses import PhysicsInformedLoss
from ..core.training.physics_configs import ConservationConfig, QuantumTrainingConfig
from ..nnx.measures import ERRORS, Metrics, Residual
from ..nnx.models import as_pytree, is_per_point, predict
from ..nnx.terms.conservation import conservation_drifts
from ..nnx.terms.quantum import quantum_metrics


__all__ = [
    "AdvancedMetricsCollector",
    "TrainingState",
]


def __dir__():
    return __all__


# Of how many calls the rate of convergence is worked out.
_WINDOW = 10


class AdvancedMetricsCollector:
    """Measures models, gradients and the course of a run, and remembers it.

    **Arguments:**

    - `conservation_config`: what is conserved. Unless given, that are mass, momentum
        and energy of the outputs of each row.
    - `quantum_config`: says that targets are energies in hartree. A model with a method
        `compute_energy` says so too.

    **Attributes:**

    - `history`: by name, the numbers given to `update_metrics_history`.
    """

    history: dict[str, list[float]]

    def __init__(
        self,
        *,
        conservation_config: ConservationConfig | None = None,
        quantum_config: QuantumTrainingConfig | None = None,
    ):
        laws = ConservationConfig(laws=tuple(INTEGRALS))
        self._drifts = conservation_drifts(conservation_config or laws)
        self._quantum = quantum_config
        self._reset()

    def _reset(self) -> None:
        self.history = {}
        self._began: float | None = None
        self._epoch_began: float | None = None
        self._last_params: Any = None
        self._losses: list[tuple[int, float]] = []
        self._plateau = 0

    def start_training(self) -> None:
        """Forgets everything, and starts the clock."""
        self._reset()
        self._began = time.perf_counter()

    def start_epoch(self) -> None:
        """Starts the clock of an epoch."""
        self._epoch_began = time.perf_counter()

    def collect_physics_metrics(
        self, model: Any, x: Array, y_true: Array | None, physics_loss: Any = None
    ) -> dict[str, float]:
        """How far a model is from the truth and from physics, in evaluation mode.

        `mse`, `mae`, `max_error`; `relative_l2`, the norm of the error over all rows,
        divided by that of the targets; `drift/<law>`, by how much what is conserved
        differs from that of the target, averaged over the rows;
        `energy_error_kcal_mol` and `chemically_accurate`, the share of the rows that
        are, for energies; `physics_residual`, the root mean square of what the equation
        leaves over, all weights one.

        **Arguments:**

        - `model`: any that the trainers accept.
        - `x`, `y_true`: inputs and what the model should answer, row by row; no targets
            are `None`.
        - `physics_loss`: a [`PhysicsInformedLoss`][], or a function of the model and of
            `x`.
        """
        declared = callable(getattr(model, "compute_energy", None))
        model = as_pytree(model)
        found: dict[str, Array] = {}
        if y_true is not None:
            _check_shape(eqx.filter_eval_shape(predict, model, x), y_true)
            rows: dict[str, AbstractRowTerm] = dict(self._drifts)
            if self._quantum is not None or declared:
                rows |= quantum_metrics(self._quantum or QuantumTrainingConfig())
            found |= Metrics(Pairs(x, y_true), ERRORS, rows)(model)
        if physics_loss is not None:
            found |= _physics(model, x, physics_loss)
        return {name: float(value) for name, value in found.items()}

    def collect_training_diagnostics(
        self, model: Any, grads: Any, learning_rate: int | float
    ) -> dict[str, float]:
        """How large things are, and how long they took.

        `grad_norm`, `param_norm`; `update_norm`, which is that of a plain gradient
        step, `learning_rate` times `grad_norm`; `param_change`, since the call before;
        `epoch_time` and `total_time` in seconds, since `start_epoch` and
        `start_training`.

        **Arguments:**

        - `model`: any that the trainers accept.
        - `grads`: the gradient by its parameters: any pytree, or `nnx.State`.
        - `learning_rate`: a number.
        """
        model = as_pytree(model)
        params = _floats(eqx.filter(model, trainable(model)))
        norm = _norm(_floats(grads))
        out = {
            "grad_norm": norm,
            "param_norm": _norm(params),
            "update_norm": float(learning_rate) * norm,
            "learning_rate": float(learning_rate),
        }
        last, self._last_params = self._last_params, params
        if last is not None and [x.shape for x in last] == [x.shape for x in params]:
            pairs = zip(params, last, strict=True)
            out["param_change"] = _norm([new - old for new, old in pairs])
        now = time.perf_counter()
        if self._epoch_began is not None:
            out["epoch_time"] = now - self._epoch_began
        if self._began is not None:
            out["total_time"] = now - self._began
        return out

    def collect_convergence_metrics(self, state: Any) -> dict[str, float]:
        """Whether a run still gets anywhere. To be called once an epoch.

        `convergence_rate` is by how much the logarithm of the best loss falls an epoch,
        fitted to the last 10 calls; `plateau`, in how many calls in a row the best loss
        did not fall. The loss is that of validation, where there is one.

        **Arguments:**

        - `state`: a [`TrainingState`][], or what has its `epoch`, `best_loss` and
            `best_val_loss`.
        """
        progress = state.progress if isinstance(state, TrainingState) else state
        epoch, val = int(progress.epoch), float(progress.best_val_loss)
        loss = val if np.isfinite(val) else float(progress.best_loss)
        fell = not self._losses or loss < self._losses[-1][1]
        self._plateau = 0 if fell else self._plateau + 1
        self._losses = [*self._losses, (epoch, loss)][-_WINDOW:]
        return {
            "best_loss": float(progress.best_loss),
            "best_val_loss": val,
            "convergence_rate": _rate(self._losses),
            "plateau": float(self._plateau),
        }

    def update_metrics_history(self, metrics: Mapping[str, Any]) -> None:
        """Remembers numbers, by name."""
        for name, value in metrics.items():
            self.history.setdefault(name, []).append(float(value))

    def get_metrics_summary(self, window_size: int = 10) -> dict[str, dict[str, float]]:
        """Of each metric, over its last `window_size` numbers: `current`, `mean`,
        `min`, `max`, and `trend`, the slope of a straight line through them."""
        check_count("window_size", window_size)
        return {
            name: _summary(np.asarray(values[-window_size:]))
            for name, values in self.history.items()
        }


def _check_shape(prediction: Any, y_true: Array) -> None:
    if prediction.shape != y_true.shape:
        raise ValueError(
            "`y_true` must have the shape of the answer of `model`, "
            f"{prediction.shape}, got {y_true.shape}."
        )


def _physics(model: Any, x: Array, physics_loss: Any) -> dict[str, Array]:
    if not isinstance(physics_loss, PhysicsInformedLoss):
        at = lambda points: predict(model, points)
        return {"physics_residual": physics_loss(at, x)}
    problem = physics_loss.problem
    if problem.equation is None and not problem.constraints:
        return {}
    batched = not is_per_point(model)
    problem = replace(problem, weights={}, conditions=None, batched=batched)
    return Residual(problem, x)(model)


def _floats(tree: Any) -> list[np.ndarray]:
    leaves = jtu.tree_leaves(eqx.filter(tree, eqx.is_inexact_array))
    return [np.asarray(x) for x in leaves]


def _norm(arrays: list[np.ndarray]) -> float:
    return float(np.sqrt(sum(float(np.sum(np.abs(x) ** 2)) for x in arrays)))


def _rate(losses: list[tuple[int, float]]) -> float:
    good = [(epoch, loss) for epoch, loss in losses if 0 < loss < np.inf]
    epochs, values = np.array([e for e, _ in good]), np.array([v for _, v in good])
    if len(good) < 2 or np.ptp(epochs) == 0:
        return 0.0
    return -_slope(epochs, np.log(values))


def _summary(values: np.ndarray) -> dict[str, float]:
    trend = _slope(np.arange(len(values)), values) if len(values) > 1 else 0.0
    return {
        "current": float(values[-1]),
        "mean": float(np.mean(values)),
        "min": float(np.min(values)),
        "max": float(np.max(values)),
        "trend": trend,
    }


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    """Of the line of least squares."""
    away = x - np.mean(x)
    return float(np.sum(away * (y - np.mean(y))) / np.sum(away**2))
