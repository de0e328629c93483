"""Which task cells of a class look alike, by the fingerprints of the library copydetect.

Cells are reduced to tokens with names, comments and layout taken out, and every run of 25
characters of the rest is a fingerprint; what the starter and the given cells hold counts for
nobody. A high figure is a reason to talk with two people and proof of nothing.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from labkit.course.record import Record

LENGTH = 25  # of a fingerprint, in characters of the reduced text
WINDOW = 1  # keep every fingerprint: a larger window keeps others in each run of Python
SHOWN = 0.8  # pairs that share less are not listed
LEAST = 100  # characters of reduced text, about fifteen lines: below, a cell says too little


@dataclass(frozen=True)
class Pair:
    """Two students' cells of one task; `share` is the larger of the two shares in common."""

    task: str
    first: str
    second: str
    share: float
    length: int  # characters of reduced text in common


def alike(records: Iterable[Record], boilerplate: Mapping[str, str]) -> list[Pair]:
    """Compare every two students' cells, task by task; the most alike first.

    Args:
        records: one of each student.
        boilerplate: by task, what everybody was given.
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
        for (first, a), (second, b) in itertools.combinations(cells, 2):
            if len(a.hashes & b.hashes) < SHOWN / 2 * min(len(a.hashes), len(b.hashes)):
                continue  # far below what is listed, and cheap to see
            common, shares, _ = compare_files(a, b)
            if max(shares) >= SHOWN:
                share = min(1.0, float(max(shares)))
                pairs.append(Pair(task, first, second, share, int(common)))
    return sorted(pairs, key=lambda pair: (-pair.share, -pair.length, pair.task, pair.first))
