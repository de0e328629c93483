"""What the judges of frontier tasks share: finding a notebook's policy, and the command."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from labkit.lab import Lab, LabError
from labkit.subject import Wrong
from labkit.variants import choose, read_key
from labkit.work import load_notebook

MARK = "# frontier: policy"


def policy_cell(notebook: Path) -> str:
    """Return the source of the notebook's cell that has the line `# frontier: policy`.

    Raises:
        SystemExit: it has none, or the file is no notebook.
    """
    try:
        cells = load_notebook(notebook)["cells"]
    except LabError as error:
        raise SystemExit(str(error)) from None
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and MARK in source.split("\n"):
            return source
    raise SystemExit(f"{notebook} has no cell with the line {MARK!r}")


def run(lab: Lab, description: str, judge: Callable[[str, int], float]) -> None:
    """Judge one notebook, named on the command line, on the seed of the course's key.

    `judge` takes a policy's source and a seed, prints its report and returns the bonus.

    Raises:
        SystemExit: the policy failed, in words.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--course-key-file", type=Path)
    options = parser.parse_args()
    key = None if options.course_key_file is None else read_key(options.course_key_file)
    try:
        judge(policy_cell(options.notebook), choose(lab, key).seed)
    except Wrong as wrong:
        raise SystemExit(str(wrong)) from None
