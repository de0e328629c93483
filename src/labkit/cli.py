"""The `labkit` command: build, verify, grade."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from labkit.build import build_notebook, drift, notebook_text, starter_path
from labkit.grade import Grader
from labkit.lab import LabError, load_lab
from labkit.notebook import read_submission
from labkit.sandbox import NoSandbox
from labkit.verify import verify


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (LabError, NoSandbox) as error:
        print(f"labkit: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="labkit", description="build, verify and grade the labs")
    commands = parser.add_subparsers(required=True, metavar="build|verify|grade")

    build = commands.add_parser("build", help="make a lab's starter notebook from its master")
    build.add_argument("lab", nargs="+", help="slug or folder")
    build.add_argument("--check", action="store_true", help="only say whether it would change")
    build.set_defaults(run=_build)

    verifying = commands.add_parser("verify", help="grade reference, second solution and mutants")
    verifying.add_argument("lab", help="slug or folder")
    verifying.add_argument("--unsafe-local", action="store_true", help="without a sandbox")
    verifying.set_defaults(run=_verify)

    grading = commands.add_parser("grade", help="grade notebooks")
    grading.add_argument("lab", help="slug or folder")
    grading.add_argument("notebook", nargs="+", type=Path)
    grading.add_argument("--out", type=Path, help="folder for NAME/results.json")
    grading.add_argument("--variant", help="by default the lab's public one")
    grading.add_argument(
        "--unsafe-local",
        action="store_true",
        help="run submissions without a sandbox, with your own rights; for your own notebooks",
    )
    grading.set_defaults(run=_grade)
    return parser


def _build(options: argparse.Namespace) -> int:
    drifted = []
    for name in options.lab:
        lab = load_lab(name)
        if options.check:
            drifted += [words for words in [drift(lab)] if words]
            continue
        path = starter_path(lab)
        path.write_text(notebook_text(build_notebook(lab)), "utf8")
        print(f"wrote {path}")
    for words in drifted:
        print(f"labkit: {words}", file=sys.stderr)
    return 1 if drifted else 0


def _verify(options: argparse.Namespace) -> int:
    scores, problems = verify(load_lab(options.lab), unsafe_local=options.unsafe_local)
    print(scores)
    for problem in problems:
        print(f"labkit: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _grade(options: argparse.Namespace) -> int:
    lab = load_lab(options.lab)
    grader = Grader(lab, options.variant, unsafe_local=options.unsafe_local)
    for path in options.notebook:
        submission = read_submission(path, lab)
        if submission.variant not in (None, grader.variant):
            submission.notes.append(
                f"the notebook is of variant {submission.variant}, graded as {grader.variant}"
            )
        report = grader.grade(submission)
        print(f"{path}\n{report.text()}\n")
        if options.out is not None:
            report.write(options.out / path.stem / "results.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
