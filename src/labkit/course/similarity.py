"""Which task cells look alike, by the fingerprints of the library copydetect.

Every two students' cells are compared, and each with the solutions that lie in the repository: the
master's and the second one's, in every variant. Cells are reduced to tokens with names, comments
and layout taken out, and every run of 25 characters of the rest is a fingerprint; what the starter
and the given cells hold counts for nobody. A high figure is a reason to talk with people and proof
of nothing.
"""

from __future__ import annotations

import io
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from labkit.course.record import Record
from labkit.grading.cells import reference_cells
from labkit.reader.lab import Lab

LENGTH = 25  # of a fingerprint, in characters of the reduced text
WINDOW = 1  # keep every fingerprint: a larger window keeps others in each run of Python
SHOWN = 0.8  # pairs that share less are not listed
LEAST = 100  # characters of reduced text, about fifteen lines: below, a cell says too little


@dataclass(frozen=True)
class Pair:
    """Two cells of one task; `share` is the larger of the two shares in common.

    `second` is a student, or what a published solution is called.
    """

    task: str
    first: str
    second: str
    share: float
    length: int  # characters of reduced text in common


def published(lab: Lab) -> dict[str, dict[str, str]]:
    """By task, the solutions that everybody can read: their names and sources, each source once."""
    found: dict[str, dict[str, str]] = {task.name: {} for task in lab.tasks}
    for file in ("master.py", "second.py"):
        variants: dict[tuple[str, str], list[str]] = defaultdict(list)  # by task and source
        for variant in lab.variants if (lab.folder / file).is_file() else ():
            for task, source in reference_cells(lab, variant, file).items():
                variants[task, source].append(variant)
        for (task, source), names in variants.items():
            found[task][f"published: {file} ({', '.join(names)})"] = source
    return found


def alike(
    records: Iterable[Record],
    boilerplate: Mapping[str, str],
    solutions: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Pair]:
    """Compare every two students' cells, and each with the solutions, task by task.

    Args:
        records: one of each student.
        boilerplate: by task, what everybody was given.
        solutions: by task, sources by name, with which the students' are compared.

    Returns:
        The pairs that share most of their text, the most alike first.
    """
    from copydetect import CodeFingerprint, compare_files

    def prints(source: str, known: Iterable[int] = ()) -> CodeFingerprint:
        known = np.array(list(known), dtype=np.int64)
        return CodeFingerprint("cell.py", LENGTH, WINDOW, boilerplate=known, fp=io.StringIO(source))

    kept = list(records)
    pairs = []
    for task, given in boilerplate.items():
        known = prints(given).hashes
        cells = [(r.student, prints(r.cells[task], known)) for r in kept if task in r.cells]
        cells = [(student, made) for student, made in cells if made.token_coverage >= LEAST]
        known_to_all = (solutions or {}).get(task, {})
        made_public = [(name, prints(source, known)) for name, source in known_to_all.items()]
        compared = itertools.chain(
            itertools.combinations(cells, 2), itertools.product(cells, made_public)
        )
        for (first, a), (second, b) in compared:
            if len(a.hashes & b.hashes) < SHOWN / 2 * min(len(a.hashes), len(b.hashes)):
                continue  # far below what is listed, and cheap to see
            common, shares, _ = compare_files(a, b)
            if max(shares) >= SHOWN:
                share = min(1.0, float(max(shares)))
                pairs.append(Pair(task, first, second, share, int(common)))
    return sorted(pairs, key=lambda pair: (-pair.share, -pair.length, pair.task, pair.first))
