"""One run of `labkit grade` or `labkit regrade`: the bar, the pages, the table at the end."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from labkit.course.classroom import Job, Settings, grade_class, records_in
from labkit.course.course import Course
from labkit.course.gradebook import Result
from labkit.course.publish import publish
from labkit.course.record import GRADED_NOT, NOTHING_FOUND, Record
from labkit.grading.report import table
from labkit.reader.lab import Lab

SHOWN = 20  # sentences of one kind, beyond which they are counted
INTERRUPTED = 130  # the exit status that a shell gives a program ended by Ctrl-C


def grade_and_publish(
    settings: Settings,
    jobs: list[Job],
    course: Course,
    out: Path,
    problems: Sequence[str],
    processes: int,
    *,
    blind: bool = False,
) -> int:
    """Grade, show how far it is, write every page and table; return the exit status.

    It is 0, 1 where the grader itself failed on a hand-in, 130 after Ctrl-C; what was graded
    until then is kept.
    """
    lab = settings.counted()
    bar = tqdm(
        grade_class(jobs, settings, processes),
        total=len(jobs),
        desc=f"grading {lab.slug}",
        unit=" hand-ins",
        disable=None,  # where nobody watches
    )
    try:
        for _ in bar:
            pass
    except KeyboardInterrupt:
        bar.close()
        done = sum(job.path.is_file() for job in jobs)
        _say(f"stopped with {done} of {len(jobs)} graded; the same command goes on from there")
        return INTERRUPTED
    records = records_in(out)
    said = list(problems)
    digest = settings.digest()
    old = sum(record.settings_digest != digest for record in records.values())
    if old:
        said.append(f"{old} hand-ins were graded by other tests or another key: labkit regrade")
    said += _handed_in_wrong(lab, list(records.values()))
    results, said = publish(lab, records, course, out, problems=said, blind=blind)
    print(score_table(lab, results))
    broken = [f"{r.student}: {words}" for r in records.values() for words in r.broken]
    for words in [*said, *broken]:
        _say(words)
    print(f"the class: {out / 'index.html'}")
    return 1 if broken else 0


def _handed_in_wrong(lab: Lab, records: Sequence[Record]) -> list[str]:
    """Sentences about hand-ins that earn little or nothing for what they are, not what they do."""
    said = []
    for told in (NOTHING_FOUND, GRADED_NOT):
        found = [
            f"{record.student}, attempt {record.attempt}: {note}"
            for record in records
            for note in record.read_notes
            if told in note
        ]
        said += found[:SHOWN]
        if len(found) > SHOWN:
            said.append(f"and {len(found) - SHOWN} more of that kind")
    others = [r for r in records if r.other_lab]
    if others:
        of = ", ".join(dict.fromkeys(str(r.other_lab) for r in others))
        said.append(f"of another lab than {lab.slug}, {of}: {_names(others)}")
    variants = [r for r in records if r.released not in (None, r.variant)]
    if variants:
        said.append(
            f"{len(variants)} of {len(records)} hand-ins are of another variant than the one they "
            f"were graded as ({variants[0].released}, not {variants[0].variant}): is this the "
            f"course key that the lab was released with? ({_names(variants)})"
        )
    return said


def _names(records: Sequence[Record]) -> str:
    names = list(dict.fromkeys(record.student for record in records))
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def _say(words: str) -> None:
    print(f"labkit: {words}", file=sys.stderr)


def score_table(lab: Lab, results: Sequence[Result]) -> str:
    """Points by student and task."""
    header = ["", *(f"{t.name} /{t.points:g}" for t in lab.tasks), "written", "late", "all"]
    rows = []
    for result in results:
        points = [f"{result.record.task_points(task.name):g}" for task in lab.tasks]
        written = "to mark" if result.unmarked else f"{result.written:g}"
        taken = 100 * (1 - result.late.factor)
        late = f"-{taken:g} %" if taken else ""
        rows.append([result.student, *points, written, late, f"{result.total:g}"])
    return table(header, rows)


def what_changed(before: Mapping[Path, Record], after: Mapping[Path, Record]) -> list[str]:
    """Lines about every hand-in that has other points than before."""
    lines = []
    for path, old in before.items():
        new = after[path]
        if new.automatic != old.automatic:
            attempt = f"{new.student}, attempt {new.attempt}"
            lines.append(f"{attempt}: {old.automatic:g} -> {new.automatic:g} points")
    return [*lines, f"{len(lines)} of {len(before)} hand-ins have other points than before"]
