from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import numpy as np

from .._best import Best
from .._checkpoint import Store
from .._misc import check_count
from .._results import is_fatal
from .._state import StepInfo, TrainingState
from .._validation import training_loss
from .base import AbstractKeeper


class _Memory(NamedTuple):
    store: Store
    best: Best | None


class Checkpoint(AbstractKeeper[_Memory]):
    """Writes the whole state every few chunks, and at the end, however it comes; with
    the best state so far, which a resumed run goes on with.

    What could not be written ends the run, at the next chunk at the latest; it still
    hands back its best state.

    **Arguments:**

    - `directory`: made if it is not there. Pass it to [`restore`][] to go on.
    - `every`: how many chunks lie between two checkpoints.
    - `keep`: how many of the latest stay.
    - `keep_best`: how many of those with the lowest validation loss (or, without a
        validation, mean training loss of a chunk) stay, beside them.
    - `asynchronous`: whether they are written in the background.
    - `config`: of the run, as plain JSON. It is stored, and a directory with
        checkpoints of another is refused.
    """

    directory: Path = eqx.field(static=True, converter=Path)
    every: int = eqx.field(static=True, default=1)
    keep: int = eqx.field(static=True, default=3)
    keep_best: int = eqx.field(static=True, default=1, kw_only=True)
    asynchronous: bool = eqx.field(static=True, default=True, kw_only=True)
    config: Mapping[str, Any] | None = eqx.field(
        static=True, default=None, kw_only=True
    )

    def __check_init__(self):
        check_count("every", self.every)
        check_count("keep", self.keep)
        check_count("keep_best", self.keep_best, least=0)

    def init(self, state, num_chunks):
        del num_chunks
        store = Store(
            self.directory,
            keep=self.keep,
            keep_best=self.keep_best,
            asynchronous=self.asynchronous,
            config=self.config,
        )
        try:
            store.set_aside(state)
        except BaseException:
            store.close()
            raise
        return _Memory(store, None)

    def recall(self, memory, state):
        return memory.store.recall(state)

    def remember(self, memory, best):
        return memory._replace(best=best)

    def on_chunk(self, memory, state, infos):
        store, best = memory
        store.check()
        due = int(np.max(state.progress.epoch)) % self.every == 0
        # What diverged is nothing to resume from; `close` gets the best there was.
        if due and not np.all(is_fatal(state.progress.result)):
            store.save(state, loss=_loss(state, infos), best=best)
        return memory, False

    def close(self, memory, state):
        store, best = memory
        try:
            if store.latest is None or store.latest < int(np.max(state.step)):
                store.save(state, best=best)
        finally:
            store.close()


def _loss(state: TrainingState, infos: StepInfo) -> float:
    """By what `fit` judges a state, over the members on average."""
    progress = state.progress
    if not np.isfinite(progress.best_val_loss).any():
        return float(np.mean(training_loss(state, infos)))
    best_now = np.asarray(progress.plateau_count) == 0
    return float(np.mean(np.where(best_now, progress.best_val_loss, np.inf)))
