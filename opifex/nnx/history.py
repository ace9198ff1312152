"""What the documented trainers remember of a run, epoch by epoch."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from .._results import RESULT_NAMES
from .._state import StepInfo


_GOOD = RESULT_NAMES.index("successful")

Columns = dict[str, np.ndarray]


class EpochLog:
    """The infos of the chunks of a run, as means over epochs.

    **Arguments:**

    - `step_weights`: of the steps of an epoch in its means: their numbers of rows.
    - `measured`: the names of the metrics that are known at the end of chunks only.
    - `schedule`: the learning rate by steps, where it is known.
    - `adaptive`: whether the weights of the terms change.
    """

    def __init__(
        self,
        step_weights: np.ndarray,
        measured: Sequence[str],
        schedule: Callable[[np.ndarray], Any] | None,
        adaptive: bool,
    ):
        self._weights = step_weights
        self._measured = frozenset(measured)
        self._schedule = schedule
        self._adaptive = adaptive
        self._parts: list[Columns] = []

    def add(self, infos: StepInfo, end: int) -> Columns:
        """The rows of a chunk that ended after `end` steps."""
        steps, per_epoch = infos.loss.shape[0], self._weights.shape[0]
        epochs = steps // per_epoch
        kept = infos.result._value.reshape(epochs, per_epoch) == _GOOD
        weights = self._weights * kept
        mean = lambda x: _mean(np.asarray(x).reshape(epochs, per_epoch), weights)
        columns = {"train_loss": mean(infos.loss), "grad_norm": mean(infos.grad_norm)}
        columns |= {name: mean(x) for name, x in infos.terms.items()}
        for name, x in infos.metrics.items():
            columns[name] = _last(x, epochs) if name in self._measured else mean(x)
        if self._adaptive:
            columns |= {f"weight/{n}": mean(w) for n, w in infos.weights.items()}
        scale = np.asarray(infos.step_scale).reshape(epochs, per_epoch)[:, -1]
        columns["step_scale"] = scale
        columns["learning_rate"] = np.full(epochs, np.nan)
        if self._schedule is not None:
            last = np.arange(end - steps, end).reshape(epochs, per_epoch)[:, -1]
            columns["learning_rate"] = self._rates(last) * scale
        columns["epoch"] = np.arange(end // per_epoch - epochs, end // per_epoch) + 1
        self._parts.append(columns)
        return columns

    def _rates(self, steps: np.ndarray) -> np.ndarray:
        assert self._schedule is not None
        with jax.numpy_dtype_promotion("standard"):
            rates = np.asarray(self._schedule(steps), float)
        return np.broadcast_to(rates, steps.shape)

    def columns(self) -> Columns:
        """Everything so far, NaN where a quantity was not looked at."""
        names = dict.fromkeys(name for part in self._parts for name in part)
        length = lambda part: part["epoch"].shape[0]
        empty = lambda part: np.full(length(part), np.nan)
        return {
            name: np.concatenate([p.get(name, empty(p)) for p in self._parts])
            for name in names
        }


def rows(
    columns: Columns, *, all_of_them: bool
) -> Iterator[tuple[int, dict[str, float]]]:
    """The number of each epoch, or of the last one, and its numbers that are known."""
    epochs = columns["epoch"].tolist()
    for i in range(0 if all_of_them else len(epochs) - 1, len(epochs)):
        numbers = {n: float(x[i]) for n, x in columns.items() if n != "epoch"}
        yield epochs[i], {n: v for n, v in numbers.items() if _known(n, v)}


def _known(name: str, value: float) -> bool:
    """Whether there is something to say. A loss that is NaN is worth saying."""
    return not np.isnan(value) or name in ("train_loss", "grad_norm")


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Over the steps that were kept; NaN for an epoch without any."""
    total = np.sum(weights, axis=1)
    summed = np.sum(np.where(weights > 0, values, 0) * weights, axis=1)
    return np.where(total > 0, summed / np.maximum(total, 1), np.nan)


def _last(values: Any, epochs: int) -> np.ndarray:
    out = np.full(epochs, np.nan)
    out[-1] = np.asarray(values)[-1]
    return out
