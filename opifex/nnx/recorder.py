from collections.abc import Callable
from typing import Any

import numpy as np

from .._callback.base import AbstractCallback
from .._recovery.base import fault_report
from .._state import TrainingState
from .history import EpochLog, rows


Listener = Callable[[TrainingState, int, dict[str, float]], Any]


class Run:
    """What a run leaves behind on the host, however it ends."""

    def __init__(self, log: EpochLog):
        self.log = log
        self.ended: TrainingState | None = None
        self.error: Exception | None = None
        self.latest: dict[str, float] = {}
        self.terms: tuple[str, ...] = ()
        self.faults: dict[str, Any] = {}


class Recorder(AbstractCallback[None]):
    """Fills the log, and calls who listens.

    An error of a listener ends the run, and is kept to be raised when the model has
    been handed back.

    **Arguments:**

    - `run`: where everything is written to.
    - `listeners`: called with the state, the number of an epoch and its metrics.
    """

    run: Run
    listeners: tuple[Listener, ...]

    def init(self, state, num_chunks):
        del state, num_chunks

    def on_chunk(self, memory, state, infos):
        run = self.run
        columns = run.log.add(infos, int(np.max(state.step)))
        run.terms = tuple(infos.terms)
        # Now, because the best state may know nothing of what befell later ones.
        run.faults = fault_report(state, run.terms)
        for epoch, metrics in rows(columns, all_of_them=bool(self.listeners)):
            run.latest = run.latest | metrics
            try:
                for listener in self.listeners:
                    listener(state, epoch, dict(metrics))
            except Exception as error:
                run.error = error
                return memory, True
        return memory, run.error is not None

    def close(self, memory, state):
        del memory
        self.run.ended = state
