from pathlib import Path

import equinox as eqx
import numpy as np
from tensorboardX import SummaryWriter

from .._misc import check_count
from .base import AbstractCallback
from .history import history_rows


class TensorBoard(AbstractCallback[SummaryWriter]):
    """Event files for TensorBoard: the columns of [`History`][], by step.

    **Arguments:**

    - `directory`: of the event files.
    - `every`: how many steps lie between two points of a curve.
    """

    directory: Path = eqx.field(static=True, converter=Path)
    every: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        check_count("every", self.every)

    def init(self, state, num_chunks):
        del num_chunks
        return SummaryWriter(str(self.directory), purge_step=int(np.max(state.step)))

    def on_chunk(self, memory, state, infos):
        for row in history_rows(infos, int(np.max(state.step))):
            step, member = row.pop("step"), row.pop("member", None)
            if step % self.every:
                continue
            prefix = "" if member is None else f"member {member}/"
            for name, value in row.items():
                if not isinstance(value, str):
                    memory.add_scalar(prefix + name, value, step)
        memory.flush()
        return memory, False

    def close(self, memory, state):
        del state
        memory.close()
