import os
from pathlib import Path

import equinox as eqx
import numpy as np

from .._checkpoint import Store
from .._misc import check_count
from .._results import is_fatal
from .base import AbstractCallback


class Checkpoint(AbstractCallback[Store]):
    """Writes the whole state every few chunks, and at the end, however it comes.

    **Arguments:**

    - `directory`: made if it is not there. Pass it to [`restore`][] to go on.
    - `every`: how many chunks lie between two checkpoints.
    - `keep`: how many of the latest stay.
    """

    directory: Path = eqx.field(static=True, converter=Path)
    every: int = eqx.field(static=True, default=1)
    keep: int = eqx.field(static=True, default=3)

    def __check_init__(self):
        check_count("every", self.every)
        check_count("keep", self.keep)

    def init(self, state, num_chunks):
        del num_chunks
        store = Store(self.directory, keep=self.keep)
        step = int(np.max(state.step))
        if store.latest is not None and store.latest > step:
            store.close()
            raise ValueError(
                f"`directory` {os.fspath(self.directory)!r} holds a checkpoint of step "
                f"{store.latest}, and the run begins at step {step}. Restore it first, "
                "or choose another directory."
            )
        return store

    def on_chunk(self, memory, state, infos):
        del infos
        due = int(np.max(state.progress.epoch)) % self.every == 0
        # What diverged is nothing to resume from; `close` gets the best there was.
        if due and not np.all(is_fatal(state.progress.result)):
            memory.save(state)
        return memory, False

    def close(self, memory, state):
        if memory.latest is None or memory.latest < int(np.max(state.step)):
            memory.save(state)
        memory.close()
