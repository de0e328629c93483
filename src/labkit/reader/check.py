"""`labkit.check`: the public checks that a reader runs in the notebook.

A check calls the reader's function on a few fixed inputs and says in words what was
called, what was expected and what came back. It judges returned values, so nothing that
is printed counts. In a notebook it also keeps the outcome and the cells run so far (see
`labkit.reader.save`).
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from labkit.reader.lab import import_checks, load_lab
from labkit.reader.save import keep_progress
from labkit.reader.subject import Subject, Wrong, in_notebook

SECONDS = 2.0  # for all checks of a task together


class CheckFailed(AssertionError):
    """A public check does not pass. Notebooks show the words alone, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class _TooSlow(BaseException):
    """Raised in the reader's code when the time is up; `except Exception` must not eat it."""


def check(task: str, namespace: dict[str, Any] | None = None) -> None:
    """Run the public checks of a task and print the outcome.

    Args:
        task: the task's name, as in its `# task:` line.
        namespace: where the reader's functions are; by default where `check` is called.

    Raises:
        CheckFailed: a check does not pass; the message says which, in words.
        LabError: no such task.
    """
    if namespace is None:
        namespace = sys._getframe(1).f_globals
    declared = namespace.get("LAB")
    if not isinstance(declared, str):
        raise CheckFailed("run the notebook's first cell: it sets LAB, the name of this lab")
    slug, _, variant = declared.partition("/")
    lab = load_lab(slug)
    wanted = lab.task(task)
    checks = import_checks(lab).CHECKS[wanted.name]
    lines: list[str] = []
    passed = 0
    deadline = time.monotonic() + SECONDS
    for function in checks:
        subject = Subject(in_notebook(namespace, (_TooSlow,)))
        title = " ".join((function.__doc__ or function.__name__).split()).rstrip(".")
        try:
            with _time_limit(deadline - time.monotonic()):
                function(subject, lab.variant(variant or None))
            passed += 1
            lines.append(f"✓ {title}")
        except Wrong as wrong:
            lines += [f"✗ {title}", *(f"    {line}" for line in str(wrong).split("\n"))]
        except _TooSlow:
            lines += [
                f"✗ {title}",
                f"    no answer within {SECONDS:g} s: is there an endless loop?",
            ]
            break
    kept = keep_progress(namespace, wanted.name, passed, len(checks))
    lines += [kept] if kept else []
    head = f"{task}: {passed} of {len(checks)} public checks pass"
    if passed < len(checks):
        raise CheckFailed("\n".join([head, *lines]))
    print("\n".join([head + "; grading tries other inputs", *lines]))


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Interrupt what takes longer than `seconds`, where signals allow it."""
    if (
        not hasattr(signal, "setitimer")
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.05))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
