"""Grading a class: many hand-ins in parallel processes, resumable, nobody's failure another's.

Each graded hand-in is one record on disk (`labkit.course.record`). A record made from the same
file, lab, key and labkit is not made again, so an interrupted run goes on where it was and a
second run costs nothing; another file of the same student is another attempt. A process that
dies takes no other hand-in with it.
"""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from labkit.course.intake import HandIn, folder_name
from labkit.course.reading import read_bounded
from labkit.course.record import Record, note_files, read_record, record_of, submission_of
from labkit.grading.grade import Grader
from labkit.grading.report import BROKEN
from labkit.grading.tiers import of_tiers
from labkit.grading.variants import Choice
from labkit.reader.lab import Lab, LabError, load_lab
from labkit.reader.notebook import Submission
from labkit.sandbox.process import NoSandbox

LABKIT = Path(__file__).resolve().parents[1]
JUDGES = ("grading", "reader", "sandbox")  # the packages whose code decides a grade
DIED = f"{BROKEN}: its process ended while it graded this hand-in"


@dataclass(frozen=True)
class Settings:
    """What decides a grade beside the hand-in itself."""

    folder: Path  # of the lab
    choice: Choice  # variant and seed, from the course's key
    unsafe_local: bool = False
    tiers: tuple[str, ...] = ()  # that count; () means all

    def lab(self) -> Lab:
        """The lab, whole."""
        return load_lab(self.folder)

    def counted(self) -> Lab:
        """The lab with the tasks and answers that count."""
        return of_tiers(self.lab(), self.tiers)

    def digest(self) -> str:
        """A fingerprint of the lab's files, of what judges in labkit and of the settings."""
        kept = hashlib.sha256(f"{self.choice} {self.unsafe_local} {self.tiers}".encode())
        judged = [self.folder / name for name in ("lab.toml", "master.py")]
        judged += sorted((self.folder / "hidden").rglob("*.*"))
        judged += [path for name in JUDGES for path in sorted((LABKIT / name).glob("*.py"))]
        for path in judged:
            if path.is_file() and path.suffix != ".pyc":
                kept.update(path.name.encode() + b"\0" + path.read_bytes())
        return kept.hexdigest()


@dataclass(frozen=True)
class Job:
    """A hand-in to grade, and where its record goes.

    `again` holds what was read from the file at an earlier time, to be graded in its place.
    """

    handin: HandIn
    path: Path
    file_digest: str
    settings_digest: str
    again: Submission | None = None


def records_in(out: Path) -> dict[Path, Record]:
    """Every record of a class, by path."""
    paths = sorted((out / "students").glob("*/attempt-*.json"))
    return {path: record for path in paths if (record := read_record(path)) is not None}


def plan(handins: Iterable[HandIn], settings: Settings, out: Path) -> list[Job]:
    """Name each hand-in's record: a known file has one, another file is the next attempt.

    Raises:
        LabError: `out` holds the grades of another lab.
    """
    common, slug = settings.digest(), settings.lab().slug
    known = records_in(out)
    folders: dict[str, Path] = {}
    attempts: dict[str, dict[str, int]] = defaultdict(dict)  # student: file digest: attempt
    for path, record in known.items():
        if record.lab != slug:
            raise LabError(f"{out} holds grades of {record.lab}: give each lab its own --out")
        folders[record.student] = path.parent
        attempts[record.student][record.file_digest] = record.attempt
    taken = {folder.name.casefold() for folder in folders.values()}
    jobs: dict[Path, Job] = {}
    for handin in handins:
        if handin.student not in folders:
            name = folder_name(handin.student)
            while name.casefold() in taken:  # two names that a folder cannot tell apart
                name += "+"
            taken.add(name.casefold())
            folders[handin.student] = out / "students" / name
        digest = handin.digest()
        mine = attempts[handin.student]
        number = mine.setdefault(digest, max(mine.values(), default=0) + 1)
        path = folders[handin.student] / f"attempt-{number}.json"
        jobs[path] = Job(replace(handin, attempt=number), path, digest, common)
    return list(jobs.values())


def plan_again(out: Path, settings: Settings, students: Iterable[str] = ()) -> list[Job]:
    """Plan to grade again what was handed in, or only that of some students.

    A hand-in that the grader could not even read is left out: it takes its file, and `plan`.

    Raises:
        LabError: nothing is graded in `out`, or not for such a student.
    """
    common, wanted = settings.digest(), set(students)
    known = records_in(out)
    unknown = wanted - {record.student for record in known.values()}
    if unknown or not known:
        whose = f" of {', '.join(sorted(unknown))}" if unknown else ""
        raise LabError(f"{out} holds no grades{whose}")
    jobs = []
    for path, record in known.items():
        if record.verdicts and (not wanted or record.student in wanted):
            time_of = datetime.fromisoformat(record.submitted) if record.submitted else None
            file = Path(record.file)
            handin = HandIn(
                record.student, file, (), record.attempt, time_of, record.marked_late, record.system
            )
            jobs.append(Job(handin, path, record.file_digest, common, submission_of(record)))
    return jobs


def grade_class(jobs: list[Job], settings: Settings, processes: int) -> Iterator[Record]:
    """Grade what is not graded yet; yield every record, those on disk first.

    Args:
        jobs: from `plan` or `plan_again`.
        settings: what is graded against.
        processes: how many hand-ins at a time; 1 grades in this process.
    """
    waiting = []
    for job in jobs:
        record = None if job.again else read_record(job.path)
        same = record is not None and not record.broken
        if record is not None and same and record.settings_digest == job.settings_digest:
            yield record
        else:
            waiting.append(job)
    if processes == 1:
        for job in waiting:
            yield grade_one(job, settings)
    else:
        yield from _in_processes(waiting, settings, processes)


def _in_processes(jobs: list[Job], settings: Settings, processes: int) -> Iterator[Record]:
    """Grade in a pool; whatever a dying process leaves is graded one by one in pools of one."""
    left = {job.path: job for job in jobs}
    with _pool(min(processes, max(1, len(jobs)))) as pool:
        futures = {pool.submit(grade_one, job, settings): job for job in jobs}
        try:
            for future in as_completed(futures):
                record = future.result()
                del left[futures[future].path]
                yield record
        except BrokenProcessPool:
            pass  # the pool is gone; `left` says what it had not finished
        except BaseException:  # Ctrl-C: finish what runs, start nothing more
            pool.shutdown(cancel_futures=True)
            raise
    for job in left.values():
        with _pool(1) as pool:
            try:
                yield pool.submit(grade_one, job, settings).result()
            except BrokenProcessPool:
                yield _broken(job, settings, DIED)


def _pool(processes: int) -> ProcessPoolExecutor:
    # A fresh interpreter each: threads of torch do not survive a fork.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker)


def _start_worker() -> None:
    """A worker leaves Ctrl-C to the parent, keeps to one core and ends with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process once its parent has been killed; a pool alone would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@functools.cache  # a worker meets one lab and grades many hand-ins
def _grader(settings: Settings) -> Grader:
    choice = settings.choice
    return Grader(
        settings.lab(),
        choice.variant,
        choice.seed,
        unsafe_local=settings.unsafe_local,
        tiers=settings.tiers,
    )


def grade_one(job: Job, settings: Settings) -> Record:
    """Grade a hand-in and write its record; a slip of the grader costs this hand-in alone."""
    start = time.perf_counter()
    grader = _grader(settings)
    try:
        submission = job.again or read_handin(job.handin, grader.lab)
        report = grader.grade(submission)
    except NoSandbox:  # no hand-in can be graded here
        raise
    except Exception as error:
        return _broken(job, settings, f"{BROKEN}: {type(error).__name__}: {error}")
    seconds = time.perf_counter() - start
    record = record_of(job.handin, submission, report, seconds)
    record.file_digest, record.settings_digest = job.file_digest, job.settings_digest
    record.write(job.path)
    return record


def read_handin(handin: HandIn, lab: Lab) -> Submission:
    """Read a hand-in; never raises for what a student may have done to it."""
    submission = read_bounded(handin.path, handin.members, lab)
    submission.student = handin.student
    note_files(submission, handin.file_name, handin.others)
    return submission


def _broken(job: Job, settings: Settings, words: str) -> Record:
    """The record of a hand-in at which the grader itself failed, and `words` say how."""
    lab, handin = settings.lab(), job.handin
    record = Record(
        lab=lab.slug,
        student=handin.student,
        file=handin.file_name,
        attempt=handin.attempt,
        submitted=handin.submitted.isoformat() if handin.submitted else None,
        marked_late=handin.marked_late,
        file_digest=job.file_digest,
        settings_digest=job.settings_digest,
        variant=settings.choice.variant,
        seconds=0.0,
        broken=[words],
        gradescope={"score": 0, "output": words, "tests": []},
    )
    record.write(job.path)
    return record
