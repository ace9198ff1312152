import abc
import logging
from collections.abc import Sequence
from typing import Any, Generic

import equinox as eqx

from .._best import Best
from .._custom_types import CallbackState
from .._state import StepInfo, TrainingState


_log = logging.getLogger("opifex")


class CallbackError(RuntimeError):
    """The failure of a callback without which the run must not go on."""


class AbstractCallback(eqx.Module, Generic[CallbackState]):
    """Looks at the run between chunks, on the host. Never edits the state.

    An error in `init` stops the run before its first step. A later one is logged, and
    the run goes on without the callback; but a [`CallbackError`][] ends the run.
    """

    @abc.abstractmethod
    def init(self, state: TrainingState, num_chunks: int) -> CallbackState:
        """Opens what is needed. Raises if it cannot be had."""

    @abc.abstractmethod
    def on_chunk(
        self, memory: CallbackState, state: TrainingState, infos: StepInfo
    ) -> tuple[CallbackState, bool]:
        """Called after every chunk.

        **Arguments:**

        - `memory`: what `init`, or the last call, returned.
        - `state`: where training is. Its arrays are given away to the next chunk, so
            copy what is to be kept.
        - `infos`: of every step of the chunk, as NumPy arrays; `(steps,)`, or
            `(members, steps)` for an ensemble.

        **Returns:** the new memory, and whether to stop.
        """

    @abc.abstractmethod
    def close(self, memory: CallbackState, state: TrainingState) -> None:
        """Called once at the end, however it came, with the state that ends the run."""


class AbstractKeeper(AbstractCallback[CallbackState]):
    """A callback that also keeps the best state, for a run that is resumed."""

    @abc.abstractmethod
    def recall(self, memory: CallbackState, state: TrainingState) -> Best | None:
        """What was the best when `state`, with which the run begins, was kept. Called
        once, after `init`; an error stops the run before its first step."""

    @abc.abstractmethod
    def remember(self, memory: CallbackState, best: Best) -> CallbackState:
        """Called before each `on_chunk`, with the best so far. The new memory."""


class Watch:
    """Runs callbacks so that an error in one never costs the run."""

    def __init__(
        self,
        callbacks: Sequence[AbstractCallback],
        state: TrainingState,
        num_chunks: int,
    ):
        self._open: list[tuple[AbstractCallback, Any]] = []
        try:
            for callback in callbacks:
                self._open.append((callback, callback.init(state, num_chunks)))
        except BaseException:
            self.close(state)
            raise

    def recall(self, state: TrainingState) -> Best | None:
        """The best that the first of the callbacks knows of that has one."""
        for callback, memory in self._open:
            if isinstance(callback, AbstractKeeper):
                if (best := callback.recall(memory, state)) is not None:
                    return best
        return None

    def on_chunk(
        self, state: TrainingState, infos: StepInfo, best: Best | None = None
    ) -> bool:
        """Whether any callback asks to stop. Raises [`CallbackError`][]."""
        still_open, stop = [], False
        for callback, memory in self._open:
            try:
                if best is not None and isinstance(callback, AbstractKeeper):
                    memory = callback.remember(memory, best)
                memory, wants_stop = callback.on_chunk(memory, state, infos)
            except CallbackError:
                raise  # and leave it open: `close` may save what can be saved
            except Exception:
                _log.exception("%s failed; going on without it.", _name(callback))
                self._close(callback, memory, state)
                continue
            still_open.append((callback, memory))
            stop = stop or wants_stop
        self._open = still_open
        return stop

    def close(self, state: TrainingState) -> CallbackError | None:
        """Closes all of them; the first error without which the run is no success."""
        first = None
        while self._open:
            first = self._close(*self._open.pop(), state) or first
        return first

    def _close(self, callback, memory, state) -> CallbackError | None:
        try:
            callback.close(memory, state)
        except Exception as error:
            _log.exception("%s could not be closed.", _name(callback))
            return error if isinstance(error, CallbackError) else None
        return None


def _name(callback: AbstractCallback) -> str:
    return type(callback).__name__
