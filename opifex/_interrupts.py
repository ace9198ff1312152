import signal
import threading
from types import FrameType


class Interrupts:
    """While entered, SIGINT and SIGTERM are noted and do not end the program.

    A second signal of the same kind does what it would have done without this. Outside
    the main thread, where Python cannot catch signals, nothing changes.
    """

    def __init__(self):
        self.received: signal.Signals | None = None
        self._before = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) == signal.SIG_IGN:
                    continue  # a background job is to be left alone
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = signal.Signals(number)
        signal.signal(number, self._before[number])
