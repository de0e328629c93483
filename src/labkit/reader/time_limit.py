"""A limit on how long the reader's code may run in the reader's own process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SECONDS = 5.0  # for all checks of a task together; kernels in the interpreter can need over 2


class TooSlow(BaseException):
    """Raised in the reader's code when the time is up; `except Exception` must not eat it."""


def too_slow() -> str:
    """Say so in words."""
    return f"no answer within {SECONDS:g} s: is there an endless loop?"


@contextmanager
def time_limit(seconds: float = SECONDS) -> Iterator[None]:
    """Interrupt what takes longer than `seconds`, where signals allow it."""
    if (
        not hasattr(signal, "setitimer")
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.05))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
