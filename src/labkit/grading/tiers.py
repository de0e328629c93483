"""A lab cut down to some of its tiers: a course may count the core alone."""

from __future__ import annotations

from dataclasses import replace

from labkit.reader.lab import Lab, LabError


def check_tiers(lab: Lab, tiers: tuple[str, ...]) -> tuple[str, ...]:
    """Return `tiers` in the lab's order; all of them, or none named, as ().

    Raises:
        LabError: a tier that the lab does not have.
    """
    of_parts = [task.tier for task in lab.tasks] + [question.tier for question in lab.written]
    known = list(dict.fromkeys(of_parts))
    for tier in tiers:
        if tier not in known:
            raise LabError(f"no tier {tier!r} in the lab {lab.slug}; there are: {', '.join(known)}")
    chosen = tuple(tier for tier in known if tier in tiers)
    return () if len(chosen) == len(known) else chosen


def of_tiers(lab: Lab, tiers: tuple[str, ...]) -> Lab:
    """The lab with the tasks and written answers of `tiers` alone; () leaves it whole.

    Tasks of other tiers are left to the reference where a task needs them, so what grades keeps
    the whole lab, and this one is for what is counted and shown.
    """
    if not tiers:
        return lab
    return replace(
        lab,
        tasks=tuple(task for task in lab.tasks if task.tier in tiers),
        written=tuple(question for question in lab.written if question.tier in tiers),
    )
