"""The `labkit` command: for readers, authors and instructors."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labkit.reader.lab import Lab, LabError, load_lab
from labkit.sandbox.process import NoSandbox


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (LabError, NoSandbox, OSError) as error:  # an OSError names the file
        print(f"labkit: {error}", file=sys.stderr)
        return 2


def _later(package: str, name: str) -> Callable[[argparse.Namespace], int]:
    """A command of `labkit.<package>.commands`, imported when it is called.

    A reader's installation has no libraries for authors and grading.
    """

    def run(options: argparse.Namespace) -> int:
        try:
            module = importlib.import_module(f"labkit.{package}.commands")
        except ModuleNotFoundError as error:
            raise LabError(
                f"labkit {name} needs {error.name}: install what is needed for labs, in a clone of "
                "the repository with pip install -e '.[labs]'"
            ) from None
        return int(getattr(module, name)(options))

    return run


def _at_least_one(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1, not {text!r}")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="labkit",
        description="The labs of the book. Readers: save, restore, submit. Authors: new, build, "
        "verify. Instructors: key, release, grade, regrade, bundle.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], words: str
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=words, description=words)
        made.set_defaults(run=run)
        return made

    def takes_lab(made: argparse.ArgumentParser) -> None:
        made.add_argument("lab", metavar="LAB", help="slug or folder")

    def takes_key(made: argparse.ArgumentParser) -> None:
        made.add_argument(
            "--course-key-file",
            type=Path,
            metavar="FILE",
            help="secret that chooses variant and seeds; without it the public default",
        )

    def takes_tiers(made: argparse.ArgumentParser) -> None:
        made.add_argument(
            "--tiers",
            type=lambda text: tuple(filter(None, text.split(","))),
            default=(),
            metavar="TIER,…",
            help="grade and count these alone, as core or core,depth; by default all",
        )

    def takes_unsafe(made: argparse.ArgumentParser) -> None:
        made.add_argument(
            "--unsafe-local",
            action="store_true",
            help="run hand-ins without a sandbox, with your own rights; for your own notebooks",
        )

    def takes_class(made: argparse.ArgumentParser) -> None:
        made.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the results")
        made.add_argument("--course", type=Path, metavar="FILE", help="course.toml with the rules")
        made.add_argument(
            "--jobs",
            type=_at_least_one,
            default=os.cpu_count() or 1,
            metavar="N",
            help="hand-ins graded at a time (default: %(default)s, one a core)",
        )
        made.add_argument(
            "--blind", action="store_true", help="tables of written answers hold codes, no names"
        )
        made.add_argument(
            "--change",
            action="store_true",
            help="go on though key, tiers or rules differ from those DIR was made with",
        )
        takes_tiers(made)
        takes_key(made)
        takes_unsafe(made)

    made = command("save", _save, "write a notebook's work to a small file")
    made.add_argument("notebook", type=Path, metavar="NOTEBOOK")
    made.add_argument("--to", type=Path, metavar="FILE", help="by default LAB.save.json beside it")
    made = command("restore", _restore, "put saved work back into a copy of a notebook")
    made.add_argument("notebook", type=Path, metavar="NOTEBOOK")
    made.add_argument("saved", type=Path, metavar="SAVED")
    made.add_argument("--to", type=Path, metavar="FILE", help="by default NOTEBOOK-restored.ipynb")
    made = command("submit", _submit, "write the file to hand in, and say what is missing")
    made.add_argument("notebook", type=Path, metavar="NOTEBOOK")
    made.add_argument("--to", type=Path, metavar="FILE", help="by default LAB.submit.json")

    made = command(
        "new", _later("author", "new"), "make a new lab that runs, to be changed into your own"
    )
    made.add_argument("slug", metavar="SLUG", help="lower-case words joined by hyphens")
    made.add_argument("--in", dest="folder", type=Path, metavar="DIR", help="by default labs/")
    made = command("build", _later("author", "build"), "make starter notebooks from their masters")
    made.add_argument("lab", nargs="+", metavar="LAB", help="slug or folder")
    made.add_argument("--check", action="store_true", help="only say whether it would change")
    made.add_argument("--solution", type=Path, metavar="FILE", help="write the solved notebook")
    made.add_argument("--nbgrader", type=Path, metavar="FILE", help="write nbgrader's source")
    takes_key(made)
    made = command(
        "verify",
        _later("author", "verify"),
        "grade reference, second solution, starter and mutants",
    )
    takes_lab(made)
    made.add_argument(
        "--across",
        action="store_true",
        help="in place of that, show what each variant's solution and quire's own code earn in "
        "every other variant",
    )
    takes_unsafe(made)

    made = command("key", _later("author", "key"), "make a course key")
    made.add_argument("file", type=Path, metavar="FILE")
    made = command(
        "release", _later("author", "release"), "make the folder and zip that students get"
    )
    takes_lab(made)
    takes_key(made)
    made.add_argument("--out", type=Path, default=Path("release"), metavar="DIR")
    made = command(
        "grade",
        _later("course", "grade"),
        "grade a class: notebooks, submit files, folders or zips",
    )
    takes_lab(made)
    made.add_argument("submission", nargs="+", type=Path, metavar="SUBMISSION")
    takes_class(made)
    made = command(
        "regrade", _later("course", "regrade"), "grade again what is graded, and say what changed"
    )
    takes_lab(made)
    made.add_argument("--student", action="append", default=[], help="only this one; repeatable")
    takes_class(made)
    made = command(
        "bundle", _later("author", "bundle"), "make the zip that Gradescope takes as an autograder"
    )
    takes_lab(made)
    takes_key(made)
    made.add_argument("--out", type=Path, metavar="FILE", help="by default LAB-gradescope.zip")
    takes_tiers(made)
    takes_unsafe(made)
    return parser


# ---- readers


def _work_in(notebook: Path) -> tuple[Lab, dict[str, Any]]:
    """A notebook's content and the lab that it says it is of."""
    from labkit.reader.work import load_notebook

    content = load_notebook(notebook)
    slug = content.get("metadata", {}).get("labkit", {}).get("lab")
    name = slug if isinstance(slug, str) else notebook.stem
    return load_lab(name, notebook.parent), content


def _save(options: argparse.Namespace) -> int:
    return _write_work(options, "save")


def _submit(options: argparse.Namespace) -> int:
    return _write_work(options, "submit")


def _write_work(options: argparse.Namespace, kind: str) -> int:
    from labkit.reader.work import keep_what_was_saved, progress_of, read_work, summary, work_of

    lab, content = _work_in(options.notebook)
    work = work_of(lab, content)
    saved = options.notebook.with_name(f"{lab.slug}.save.json")
    target = options.to or options.notebook.with_name(f"{lab.slug}.{kind}.json")
    said: list[str] = []
    if saved.is_file() and kind == "save":
        said += keep_what_was_saved(work, read_work(saved))
    elif saved.is_file():
        work.progress = progress_of(work, read_work(saved))
    work.write(target)
    print("\n".join([*said, *summary(work, target, kind)]))
    return 0


def _restore(options: argparse.Namespace) -> int:
    import json

    from labkit.reader.work import load_notebook, put_back, read_work

    notebook = options.notebook
    made, names = put_back(load_notebook(notebook), read_work(options.saved))
    target = options.to or notebook.with_name(f"{notebook.stem}-restored.ipynb")
    target.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", "utf8")
    print(f"wrote {target} with {', '.join(names) or 'nothing: the saved file is empty'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
