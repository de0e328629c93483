"""`labkit new`, `build`, `verify`, `key`, `release` and `bundle`, from the command's options."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from labkit.author.across import across, across_table
from labkit.author.build import build_notebook, drift, nbgrader_source, notebook_text, starter_path
from labkit.author.bundle import bundle as write_bundle
from labkit.author.new import scaffold
from labkit.author.release import release as write_release
from labkit.author.verify import file_problems, score_table, verify_rows
from labkit.grading.tiers import check_tiers
from labkit.grading.variants import Choice, choose, new_key, read_key
from labkit.reader.lab import Lab, LabError, labs_folder, load_lab


def new(options: argparse.Namespace) -> int:
    """Write a new lab that runs."""
    folder = scaffold(options.slug, options.folder or labs_folder())
    print(f"wrote {folder}: change it, then labkit build {folder} and labkit verify {folder}")
    return 0


def build(options: argparse.Namespace) -> int:
    """Write starters, or a solved notebook or nbgrader's source of the key's variant."""
    other = [path for path in (options.solution, options.nbgrader) if path is not None]
    if options.course_key_file is not None and not other:
        raise LabError(
            "a starter in the repository is the public variant's: with a course key give "
            "--solution or --nbgrader, and make the students' notebook with labkit release"
        )
    if other and len(options.lab) > 1:
        raise LabError(f"{other[0]} can hold one lab only, not {', '.join(options.lab)}")
    drifted = []
    for name in options.lab:
        lab = load_lab(name)
        if options.check:
            drifted += [words for words in [drift(lab)] if words]
            continue
        variant = _choice(options, lab).variant
        made = {}
        if options.solution is not None:
            made[options.solution] = build_notebook(lab, variant, solution=True)
        if options.nbgrader is not None:
            made[options.nbgrader] = nbgrader_source(lab, variant)
        for path, notebook in (made or {starter_path(lab): build_notebook(lab)}).items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(notebook_text(notebook), "utf8")
            print(f"wrote {path}, variant {variant}")
    for words in drifted:
        print(f"labkit: {words}", file=sys.stderr)
    return 1 if drifted else 0


def verify(options: argparse.Namespace) -> int:
    """Grade every solution that a lab comes with, or with `--across` in every other variant."""
    from tqdm import tqdm  # of the libraries for labs, which the other commands do without

    lab = load_lab(options.lab)
    if options.across:
        print(across_table(lab, list(across(lab, unsafe_local=options.unsafe_local))))
        return 0
    problems = file_problems(lab)
    solutions = verify_rows(lab, unsafe_local=options.unsafe_local)
    rows = list(tqdm(solutions, desc=f"verifying {lab.slug}", unit=" solutions", disable=None))
    problems += [f"{row.name}: {row.problem}" for row in rows if row.problem]
    print(score_table(lab, rows))
    for problem in problems:
        print(f"labkit: {problem}", file=sys.stderr)
    return 1 if problems else 0


def key(options: argparse.Namespace) -> int:
    """Make a course key."""
    made = new_key(options.file)
    print(f"wrote {options.file}, fingerprint {made.fingerprint}: keep it, and keep it secret")
    return 0


def release(options: argparse.Namespace) -> int:
    """Write what students get, and say which variant it is."""
    lab = load_lab(options.lab)
    variant = _choice(options, lab).variant
    for path in write_release(lab, options.out, variant):
        print(f"wrote {path}")
    print(f"variant {variant}: {lab.variants[variant]}; {_key_in_words(options)}")
    return 0


def bundle(options: argparse.Namespace) -> int:
    """Write Gradescope's zip, and say which variant it grades."""
    lab = load_lab(options.lab)
    path = options.out or Path(f"{lab.slug}-gradescope.zip")
    choice, tiers = _choice(options, lab), check_tiers(lab, options.tiers)
    write_bundle(lab, path, choice, unsafe_local=options.unsafe_local, tiers=tiers)
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
    print(f"variant {choice.variant}; {_key_in_words(options)}")
    return 0


def _choice(options: argparse.Namespace, lab: Lab) -> Choice:
    file = options.course_key_file
    return choose(lab, None if file is None else read_key(file))


def _key_in_words(options: argparse.Namespace) -> str:
    if options.course_key_file is None:
        return "no course key: the public variant and seeds, for a workshop and not for marks"
    return f"course key of fingerprint {read_key(options.course_key_file).fingerprint}"
