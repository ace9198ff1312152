from typing import Any

from .._devices import local
from .._processes import is_first
from .base import AbstractCallback


class OnFirst(AbstractCallback[Any]):
    """Another callback in the first of several processes only.

    It sees the whole state on one device, which all processes take part in gathering.

    **Arguments:**

    - `callback`: what prints, or writes files of its own.
    """

    callback: AbstractCallback

    def init(self, state, num_chunks):
        state = local(state)
        return self.callback.init(state, num_chunks) if is_first() else None

    def on_chunk(self, memory, state, infos):
        state = local(state)
        if not is_first():
            return memory, False
        return self.callback.on_chunk(memory, state, infos)

    def close(self, memory, state):
        state = local(state)
        if is_first():
            self.callback.close(memory, state)
