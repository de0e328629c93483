"""`Turns`: a lock that threads get in the order in which they asked for it.

A plain lock goes to whoever is quickest, and that is the thread which has just let it go: one
that steps an engine in a loop would keep all others out.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from quire.errors import QuireError


class Turns:
    """Threads in a line; it is the first one's turn."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()  # held for a moment, to look at the line
        self._line: deque[threading.Lock] = deque()  # each one's lock opens when its turn comes
        self._owner: int | None = None  # the thread whose turn it is

    @contextmanager
    def wait(self) -> Iterator[None]:
        """Stand in line; within, it is this thread's turn.

        Raises:
            QuireError: it is this thread's turn already, so that it would wait for itself.
        """
        if self._owner == threading.get_ident():
            raise QuireError(
                "this thread is amid a step of this very engine: a logits processor, or a signal "
                "handler that comes meanwhile, cannot use it; make a second LLM for it"
            )
        own = threading.Lock()
        own.acquire()
        try:
            with self._mutex:
                self._line.append(own)
                if len(self._line) == 1:
                    own.release()
            own.acquire()
            self._owner = threading.get_ident()
            yield
        finally:  # an interrupt may come while it waits
            self._leave(own)

    @contextmanager
    def if_free(self) -> Iterator[bool]:
        """Take the turn if nobody has it; yield whether it was so.

        It never waits, so that the collection of an abandoned object may use it: that can
        happen anywhere, even in the middle of this thread's own turn.
        """
        own = None
        if self._mutex.acquire(blocking=False):
            if not self._line:
                own = threading.Lock()
                self._line.append(own)
            self._mutex.release()
        try:
            yield own is not None
        finally:
            if own is not None:
                self._leave(own)

    def _leave(self, own: threading.Lock) -> None:
        with self._mutex:
            if own not in self._line:
                return
            was_first = self._line[0] is own
            if was_first:
                self._owner = None
            self._line.remove(own)
            if was_first and self._line:
                self._line[0].release()
