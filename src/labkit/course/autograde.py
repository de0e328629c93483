"""What a Gradescope bundle runs for each submission.

Its command is `python -m labkit.course.autograde /autograder`.

Nothing is written where the grader itself fails, so that Gradescope reports a failure of the
autograder, not a score of 0.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from labkit.course.files import readable
from labkit.course.reading import read_bounded
from labkit.course.record import note_files
from labkit.grading.grade import Grader
from labkit.reader.lab import Lab, load_lab
from labkit.reader.notebook import Submission, unreadable

SUFFIXES = (".ipynb", ".json")


def autograde(root: Path) -> Path:
    """Grade `root/submission`; write and return `root/results/results.json`."""
    settings = json.loads((root / "source" / "autograde.json").read_text("utf8"))
    lab = load_lab(root / "source" / "labs" / settings["lab"])
    submission = choose(root / "submission", lab)
    grader = Grader(
        lab,
        settings["variant"],
        settings["seed"],
        unsafe_local=settings["unsafe_local"],
        tiers=tuple(settings["tiers"]),
    )
    report = grader.grade(submission)
    target = root / "results" / "results.json"
    report.write(target)
    return target


def choose(folder: Path, lab: Lab) -> Submission:
    """Read the file with the most cells that can be graded; name the others."""
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix in SUFFIXES and path.is_file() and not path.is_symlink()
    ]
    if not paths:
        return unreadable(lab, "neither a notebook (.ipynb) nor a submit file (.json) is here")
    read = [(read_bounded(path, (), lab), path) for path in paths]
    submission, chosen = max(read, key=lambda pair: len(pair[0].cells))
    others = [readable(path.name) for path in paths if path != chosen]
    note_files(submission, readable(chosen.name), others)
    return submission


if __name__ == "__main__":
    autograde(Path(sys.argv[1]))
