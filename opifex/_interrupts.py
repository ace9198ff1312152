import signal
import threading
from types import FrameType
from typing import Any


class Interrupts:
    """While entered, SIGINT and SIGTERM are noted and do not end the program.

    A second signal of the same kind does what it would have done without this. Outside
    the main thread, where Python cannot catch signals, nothing changes.

    Where one is entered within another, both note a signal, also one that came before
    the inner was entered.
    """

    def __init__(self):
        self.received: signal.Signals | None = None
        self._before = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) == signal.SIG_IGN:
                    continue  # a background job is to be left alone
                before = signal.signal(number, self._note)
                self._before[number] = before
                if (outer := _owner(before)) is not None:
                    self.received = self.received or outer.received
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = signal.Signals(number)
        handler = self._before.pop(number)
        if (outer := _owner(handler)) is not None:
            outer._note(number, None)
        else:
            signal.signal(number, handler)


def _owner(handler: Any) -> Interrupts | None:
    """Whose `_note` a handler is, if it is one."""
    owner = getattr(handler, "__self__", None)
    return owner if isinstance(owner, Interrupts) else None
