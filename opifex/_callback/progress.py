import sys

import equinox as eqx
import numpy as np
from tqdm import tqdm

from .base import AbstractCallback


class ProgressBar(AbstractCallback[tuple[int, tqdm | None]]):
    """Steps, loss, rate and time left, on the standard error.

    Quiet where that is no terminal.

    **Arguments:**

    - `label`: written before the bar.
    """

    label: str = eqx.field(static=True, default="")

    def init(self, state, num_chunks):
        del state
        return num_chunks, None

    def on_chunk(self, memory, state, infos):
        num_chunks, bar = memory
        steps, done = infos.loss.shape[-1], int(np.max(state.step))
        if bar is None:  # only now it is known how many steps a chunk has
            bar = tqdm(
                desc=self.label or None,
                initial=done - steps,
                total=done + steps * (num_chunks - 1),
                unit="step",
                disable=None,
                file=sys.stderr,
                dynamic_ncols=True,
            )
        loss = np.median(infos.loss[..., -1])
        bar.set_postfix_str(f"loss {loss:.2e}", refresh=False)
        bar.update(steps)
        return (num_chunks, bar), False

    def close(self, memory, state):
        del state
        if memory[1] is not None:
            memory[1].close()
