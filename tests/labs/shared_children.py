"""Children that one graded mutant leaves to the next.

Starting a child and importing NumPy in it takes longer than most mutants live. A mutant is our own
code, so a child that has met one may meet others: each loads its cells into fresh names. What
students hand in is graded by `Grader` itself, with children of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from labkit.grading.grade import Grader
from labkit.sandbox.process import Child, Helper, Limits, Surroundings

# For all the mutants that a child meets; a single call still has to answer within its own limit.
LIMITS = replace(Limits(), wall_seconds=600.0, cpu_seconds=600)


class LentChild(Child):
    """A child that stays when its borrower is done, unless it is lost."""

    def lend(self, helper: Helper | None) -> LentChild:
        """Answer what its stand-ins ask with `helper` from now on."""
        self._helper = helper
        return self

    def __exit__(self, *exception: object) -> None:
        if self.is_lost:
            self.close()


Key = tuple[Surroundings, bool]


@dataclass
class Children:
    """The children of a test class: by their surroundings one that asks, and one that does not."""

    kept: dict[Key, LentChild] = field(default_factory=dict)

    def borrow(self, surroundings: Surroundings, helper: Helper | None) -> LentChild:
        """A child that is there, or a new one."""
        key = surroundings, helper is not None
        if key not in self.kept or self.kept[key].is_lost:
            self.kept[key] = LentChild(surroundings, LIMITS)
        return self.kept[key].lend(helper)


@contextmanager
def shared_children() -> Iterator[Children]:
    """Children that end with this."""
    children = Children()
    try:
        yield children
    finally:
        for child in children.kept.values():
            child.close()


@dataclass
class SharingGrader(Grader):
    """Grades in children that were there before."""

    children: Children = field(default_factory=Children)

    def _start(self, clock: Any, helper: Helper | None = None) -> Child:
        return self.children.borrow(self._surroundings, helper)
