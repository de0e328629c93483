"""`labkit bundle`: a lab as the zip that Gradescope takes as an autograder.

Gradescope unpacks it to `/autograder/source`, runs `setup.sh` once, copies `run_autograder` to
`/autograder` and runs it for each submission, which lies in `/autograder/submission`; it reads
`/autograder/results/results.json`
(https://gradescope-autograders.readthedocs.io/en/latest/specs/). The zip holds labkit and the lab
as source, and the engine with its small model where the hidden tests run it; `setup.sh` installs
the libraries with apt and pip.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from labkit.author.zips import files_under, write_zip
from labkit.grading.variants import Choice
from labkit.reader.lab import Lab, LabError

ROOT = Path(__file__).resolve().parents[3]
TEMPLATES = Path(__file__).with_name("templates")
GRADING = ("hypothesis", "jupytext", "nbformat")  # of the extra `labs`: what grading one needs
ENGINE = ("models/quire-mini", "models/quire-mini-draft", "measurements")


def runs_engine(lab: Lab) -> bool:
    """Whether a hidden test imports quire."""
    sources = [path.read_text("utf8") for path in (lab.folder / "hidden").glob("*.py")]
    return any("import quire" in source or "from quire" in source for source in sources)


def requirements(lab: Lab) -> list[str]:
    """What pip has to install, from `pyproject.toml`."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]
    named = [*project["dependencies"], *project["optional-dependencies"]["labs"]]
    wanted = [line for line in named if line.startswith((*GRADING, "numpy", *lab.packages))]
    if runs_engine(lab):
        wanted += [line for line in project["dependencies"] if line not in wanted]
    return sorted(set(wanted))


def bundle_files(
    lab: Lab, choice: Choice, *, unsafe_local: bool, tiers: tuple[str, ...] = ()
) -> dict[str, bytes]:
    """The files of the zip, by name.

    Raises:
        LabError: labkit runs from a wheel, which holds no hidden tests, or no such variant.
    """
    lab.variant(choice.variant)
    if not (ROOT / "pyproject.toml").is_file() or not (lab.folder / "hidden").is_dir():
        raise LabError("a bundle is made in a clone of the repository: a wheel has no hidden tests")
    # The course's key stays at home: variant and seed of this lab are all that follows here.
    settings = {"lab": lab.slug, **asdict(choice), "unsafe_local": unsafe_local, "tiers": tiers}
    files = {
        "setup.sh": (TEMPLATES / "setup.sh").read_bytes(),
        "run_autograder": (TEMPLATES / "run_autograder").read_bytes(),
        "requirements.txt": ("\n".join(requirements(lab)) + "\n").encode(),
        "autograde.json": (json.dumps(settings, indent=1) + "\n").encode(),
        "pyproject.toml": (ROOT / "pyproject.toml").read_bytes(),
        "LICENSE": (ROOT / "LICENSE").read_bytes(),
    }
    files |= files_under(ROOT / "src" / "labkit", "src/labkit")
    files |= files_under(lab.folder, f"labs/{lab.slug}")
    if runs_engine(lab):
        files |= files_under(ROOT / "src" / "quire", "src/quire")
        for name in ENGINE:
            files |= files_under(ROOT / name, name)
    needless = (f"labs/{lab.slug}/mutants/", f"labs/{lab.slug}/second.py")
    return {name: data for name, data in files.items() if not name.startswith(needless)}


def bundle(
    lab: Lab,
    path: Path,
    choice: Choice,
    *,
    unsafe_local: bool = False,
    tiers: tuple[str, ...] = (),
) -> None:
    """Write the zip, which grades `tiers` alone, () being all; see `bundle_files`."""
    files = bundle_files(lab, choice, unsafe_local=unsafe_local, tiers=tiers)
    write_zip(path, files, executable=frozenset({"setup.sh", "run_autograder"}))
