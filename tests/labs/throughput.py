"""How long grading takes: a class of the first lab, graded on so many cores.

    PYTHONPATH=src python tests/labs/throughput.py [SUBMISSIONS] [CORES]

Of each hundred submissions 55 are right, 35 carry one to three of the lab's mutants, 5 are
untouched starters, 3 have a task that does not compile and 2 one that never ends. Prints wall
seconds a submission, and processor seconds of the graders themselves; what the children use
comes on top and is in the wall time.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import random
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from labkit.author.build import build_notebook, notebook_text
from labkit.author.verify import load_mutants
from labkit.grading.cells import reference_cells
from labkit.grading.grade import Grader
from labkit.reader.cells import TASK_LINE
from labkit.reader.lab import Lab, load_lab
from labkit.reader.notebook import parse

SLUG = "autoregressive-decoding"


def submissions(lab: Lab, count: int) -> list[bytes]:
    """Notebooks of a class, in an order that mixes them; the same each time."""
    rng = random.Random(1)
    solved = json.loads(notebook_text(build_notebook(lab, solution=True)))
    starter = notebook_text(build_notebook(lab)).encode()
    mutants = [m for m in load_mutants(lab) if m.variant == lab.default_variant and not m.at_most]
    second = reference_cells(lab, None, "second.py")
    made = []
    for number in range(count):
        place = number % 100
        if place < 55:
            made.append(_notebook(solved, second if number % 2 else {}))
        elif place < 90:
            chosen = rng.sample(mutants, rng.randint(1, 3))
            made.append(_notebook(solved, {t: s for m in chosen for t, s in m.cells.items()}))
        elif place < 95:
            made.append(starter)
        elif place < 98:
            made.append(_notebook(solved, {"stream": "# task: stream\ndef penalise(:\n"}))
        else:
            made.append(_notebook(solved, {"sampler": "# task: sampler\nwhile True:\n    pass\n"}))
    rng.shuffle(made)
    return made


def _notebook(solved: dict[str, object], cells: dict[str, str]) -> bytes:
    notebook = json.loads(json.dumps(solved))
    for cell in notebook["cells"]:
        line = TASK_LINE.search("".join(cell["source"]))
        if cell["cell_type"] == "code" and line and line.group(1) in cells:
            cell["source"] = cells[line.group(1)]
    return json.dumps(notebook).encode()


@functools.cache  # one a process
def _grader() -> Grader:
    return Grader(load_lab(SLUG))


def _grade(data: bytes) -> tuple[int, float, float]:
    grader = _grader()
    report = grader.grade(parse(data, grader.lab))
    assert report.broken == []
    return os.getpid(), report.score, resource.getrusage(resource.RUSAGE_SELF).ru_utime


def main() -> None:
    """Grade a class and print the figures."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    cores = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    made = submissions(load_lab(SLUG), count)
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    start = time.perf_counter()
    with ProcessPoolExecutor(cores, mp_context=context) as pool:
        found = list(pool.map(_grade, made))
    seconds = time.perf_counter() - start
    graders = {process: used for process, _, used in found}
    full = sum(score == load_lab(SLUG).automatic_points for _, score, _ in found)
    print(f"{count} submissions on {cores} cores: {seconds:.0f} s, {seconds / count:.2f} s each")
    print(f"processor time of the graders: {sum(graders.values()) / count:.2f} s a submission")
    print(f"full points: {full}; mean {sum(score for _, score, _ in found) / count:.1f}")


if __name__ == "__main__":
    main()
