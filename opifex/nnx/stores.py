"""Checkpoints of the documented trainers."""

from importlib import import_module
from typing import Any

from .._callback.base import AbstractCallback, AbstractKeeper
from .._recovery.base import fault_report
from .._results import is_fatal
from .._state import TrainingState
from ..core.training.config import TrainingConfig
from .recovery import ErrorRecoveryManager


class AfterFaults(AbstractKeeper):
    """Writes a checkpoint after every chunk in which something went wrong, too.

    **Arguments:**

    - `regular`: writes the others.
    """

    regular: AbstractKeeper

    def init(self, state, num_chunks):
        return self.regular.init(state, num_chunks), _num_faults(state)

    def recall(self, memory, state):
        return self.regular.recall(memory[0], state)

    def remember(self, memory, best):
        return self.regular.remember(memory[0], best), memory[1]

    def on_chunk(self, memory, state, infos):
        regular, before = memory
        regular, stop = self.regular.on_chunk(regular, state, infos)
        now = _num_faults(state)
        lost = bool(is_fatal(state.progress.result))
        if now > before and not lost and regular.store.latest != int(state.step):
            regular.store.save(state, best=regular.best)
        return (regular, now), stop

    def close(self, memory, state):
        self.regular.close(memory[0], state)


def _num_faults(state: TrainingState) -> int:
    counts = {k: v for k, v in fault_report(state).items() if k != "first"}
    return sum(counts.values())


def checkpoints(
    config: TrainingConfig, manager: ErrorRecoveryManager | None
) -> list[AbstractCallback]:
    """What writes them during a run, if they are wanted."""
    if config.checkpoint_dir is None:
        return []
    kind = _optional("opifex._callback.checkpoint").Checkpoint
    every, keep = config.checkpoint_frequency, config.max_to_keep
    regular = kind(config.checkpoint_dir, every=every, keep=keep)
    also = manager is not None and manager.settings.checkpoint_on_error
    return [AfterFaults(regular) if also else regular]


def check_unused(config: TrainingConfig) -> None:
    """Raises if a new run would overwrite the checkpoints of another."""
    if config.checkpoint_dir is None:
        return
    store = _store(config)
    try:
        latest = store.latest
    finally:
        store.close()
    if latest is not None:
        raise ValueError(
            f"`checkpoint_dir` {str(config.checkpoint_dir)!r} holds a checkpoint of "
            f"step {latest} of another run. Call `resume` to go on with that, or "
            "choose another directory."
        )


def save(config: TrainingConfig, state: TrainingState) -> None:
    """Writes `state`, unless it has been written."""
    store = _store(config)
    try:
        if store.latest != int(state.step):
            store.save(state)
    finally:
        store.close()


def restore(
    config: TrainingConfig, like: TrainingState, step: int | None
) -> TrainingState:
    """The state of a step, or the latest that verifies."""
    store = _store(config)
    try:
        return store.restore(like, step=step)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error
    finally:
        store.close()


def _store(config: TrainingConfig) -> Any:
    if config.checkpoint_dir is None:
        raise ValueError(
            "`checkpoint_dir` of the configuration says where checkpoints are, and it "
            "is not given."
        )
    kind = _optional("opifex._checkpoint").Store
    return kind(config.checkpoint_dir, keep=config.max_to_keep)


def _optional(module: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"`checkpoint_dir` needs the package {error.name!r}, which is not "
            "installed. Install it with: pip install 'opifex[checkpoint]'"
        ) from error
