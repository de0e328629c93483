"""`uninterrupted`: Ctrl-C waits until the engine's books are in order.

Python raises KeyboardInterrupt between any two instructions of the main thread. Amid a decision
of the scheduler that would leave positions counted as computed that never were, or a request
that nobody knows any more.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Within, a first SIGINT is held back until the end; a second one comes through at once.

    Only the main thread is ever interrupted, so elsewhere this does nothing; nor does it where
    SIGINT is ignored, or handled outside Python.
    """
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if is_main else None
    if not callable(handler):
        yield
        return
    held: list[tuple[int, FrameType | None]] = []

    def hold(number: int, frame: FrameType | None) -> None:
        if held:  # whoever asks twice does not want to wait for a step
            handler(number, frame)
        held.append((number, frame))

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if held:
            handler(*held[0])
