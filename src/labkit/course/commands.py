"""`labkit grade` and `labkit regrade`: from the options of the command to a graded class."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from labkit.course.classroom import Job, Settings, plan, plan_again, records_in
from labkit.course.course import Course
from labkit.course.course_file import load_course
from labkit.course.intake import find_handins
from labkit.course.remember import check_settings, keep_settings
from labkit.course.run import grade_and_publish, what_changed
from labkit.grading.tiers import check_tiers
from labkit.grading.variants import CourseKey, choose, read_key
from labkit.reader.lab import LabError, load_lab


def grade(options: argparse.Namespace) -> int:
    """Grade a class; return the exit status."""
    settings, key = _settings(options)

    def jobs(problems: list[str]) -> list[Job]:
        handins, odd = find_handins(options.submission, settings.lab(), options.out)
        problems += odd
        return plan(handins, settings, options.out)

    return _finish(options, settings, key, jobs)


def regrade(options: argparse.Namespace) -> int:
    """Grade again what is on record, and say what changed; return the exit status."""
    settings, key = _settings(options)
    before = records_in(options.out)
    status = _finish(
        options, settings, key, lambda _: plan_again(options.out, settings, options.student)
    )
    for words in what_changed(before, records_in(options.out)):
        print(words)
    return status


def _finish(
    options: argparse.Namespace,
    settings: Settings,
    key: CourseKey | None,
    jobs_of: Callable[[list[str]], list[Job]],
) -> int:
    """See that everything is right before anything is graded; then grade."""
    course = load_course(options.course, settings.lab().slug)
    now = _in_words(settings, key, course, options)
    known = {record.student for record in records_in(options.out).values()}
    if known:  # else nothing was graded yet, and nothing would change
        check_settings(options.out, now, options.change)
    problems: list[str] = []
    jobs = jobs_of(problems)
    course.check_names(known | {job.handin.student for job in jobs})
    keep_settings(options.out, now)
    return grade_and_publish(
        settings, jobs, course, options.out, problems, options.jobs, blind=options.blind
    )


def _settings(options: argparse.Namespace) -> tuple[Settings, CourseKey | None]:
    lab = load_lab(options.lab)
    if not (lab.folder / "hidden").is_dir():
        raise LabError(
            f"{lab.folder} has no hidden tests: grading needs a clone of the repository, an "
            "installed package holds what readers need"
        )
    file: Path | None = options.course_key_file
    key = None if file is None else read_key(file)
    tiers = check_tiers(lab, options.tiers)
    return Settings(lab.folder, choose(lab, key), options.unsafe_local, tiers), key


def _in_words(
    settings: Settings, key: CourseKey | None, course: Course, options: argparse.Namespace
) -> dict[str, str]:
    """What decides the grades, as it is remembered and compared."""
    return {
        "lab": settings.lab().slug,
        "key": "none (the public variant)" if key is None else key.fingerprint,
        "variant": settings.choice.variant,
        "tiers": ", ".join(settings.tiers) or "all",
        "sandbox": "none (--unsafe-local)" if settings.unsafe_local else "yes",
        "--course": "none" if options.course is None else options.course.name,
        **course.rules(),
        "marking": "without names (--blind)" if options.blind else "with names",
    }
