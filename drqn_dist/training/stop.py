"""How signals ask a run to stop."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SAME_SIGNAL_S = 3.0
"""Signals within this time of the first one are the same."""


class StopRequest:
    """Set by SIGINT, SIGTERM or SIGHUP; a second one stops at once, unless it comes so soon that it is the same again:
    a key held down, or one signal to the terminal's processes and another to this one."""

    def __init__(self) -> None:
        self.requested = False
        self._at_once = False
        self._first_s = math.inf

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        interrupt = now > self._first_s + SAME_SIGNAL_S or (self._at_once and not self.requested)
        self._first_s = min(self._first_s, now)
        self.requested = True
        if interrupt:
            raise KeyboardInterrupt

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """What is done in this context is broken off by the first signal already, with a KeyboardInterrupt."""
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Signals set the request, in this context."""
    stop = StopRequest()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup: it is to outlive its terminal
        numbers.append(signal.SIGHUP)
    try:
        old = {number: signal.signal(number, stop) for number in numbers}
    except ValueError:  # not the main thread: whoever called from there handles signals
        old = {}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
