"""A request to stop, honoured between two steps."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Inside this context the first SIGINT or SIGTERM only sets `requested`; the second ends the process at
    once.

    aloud: whether it says that it heard; where several processes hear, one is enough. Outside the main thread Python
    delivers no signals, and the context does nothing.
    """

    def __init__(self, aloud: bool = True) -> None:
        self._aloud = aloud
        self.requested: str | None = None
        """Name of the signal that asked to stop."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.requested = signal.Signals(number).name
        if not self._aloud:
            return
        # Not print: a buffered stream cannot be entered again from a signal handler.
        os.write(2, f"\n{self.requested}: stopping after this step; again to stop at once\n".encode())
