from typing import Any

from .._recovery.base import fault_report
from .._state import TrainingState


class StateView:
    """A [`TrainingState`][] whose numbers read as numbers of Python.

    Whatever is not listed here is read from the state itself, `core`.

    **Arguments:**

    - `core`: the state; `None` before the first step.
    - `model`: as the user knows it.
    - `terms`: the names of the terms of the loss.
    - `diagnostics`: the latest numbers of the history.
    - `faults`: what befell the run, if not what the state knows.
    """

    def __init__(
        self,
        core: TrainingState | None,
        model: Any,
        terms: tuple[str, ...] = (),
        diagnostics: dict[str, float] | None = None,
        faults: dict[str, Any] | None = None,
    ):
        self.core = core
        self.model = model
        self.diagnostics = dict(diagnostics or {})
        self._terms = terms
        self._faults = faults

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return 0 if self.core is None else int(self.core.progress.epoch)

    @property
    def step(self) -> int:
        return 0 if self.core is None else int(self.core.step)

    @property
    def best_loss(self) -> float:
        """The lowest loss of a step."""
        return _number(None if self.core is None else self.core.progress.best_loss)

    @property
    def best_val_loss(self) -> float:
        """The lowest validation loss; infinite before the first validation."""
        return _number(None if self.core is None else self.core.progress.best_val_loss)

    @property
    def opt_state(self) -> Any:
        return None if self.core is None else self.core.opt_state

    @property
    def recovery(self) -> dict[str, Any]:
        """How often what went wrong, and where it first did: see [`fault_report`][]."""
        if self._faults is not None or self.core is None:
            return self._faults or {}
        return fault_report(self.core, self._terms)

    def __getattr__(self, name: str) -> Any:
        # Only for names that are not found above.
        if name.startswith("_") or self.core is None:
            raise AttributeError(f"`training_state` has no {name!r}.")
        return getattr(self.core, name)

    def __repr__(self) -> str:
        return (
            f"StateView(epoch={self.epoch}, step={self.step}, "
            f"best_loss={self.best_loss:.6g}, best_val_loss={self.best_val_loss:.6g})"
        )


def _number(value: Any) -> float:
    return float("inf") if value is None else float(value)
