"""`labkit.save`, `restore` and `submit`, as a reader calls them in the notebook.

They find the notebook (Colab hands it over, elsewhere it is a file), write the work to one
small file (`labkit.reader.work`) in Drive, beside the notebook or through the browser's
download, and put it back. Only the standard library is used, so nothing has to be installed for it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from labkit.reader.lab import Lab, load_lab
from labkit.reader.notebook import find
from labkit.reader.session import cells_run
from labkit.reader.tried import doubts
from labkit.reader.work import (
    SaveError,
    keep_what_was_saved,
    load_notebook,
    progress_of,
    put_back,
    read_work,
    summary,
    unsaved_cells,
    work_of,
)

DRIVE = Path("/content/drive/MyDrive")  # where Colab mounts a reader's Drive


def save(path: str | Path | None = None, notebook: str | Path | None = None) -> Path:
    """Save the work to one small file: in Drive where it is mounted, else beside the notebook.

    In Colab without Drive the browser downloads the file.

    Args:
        path: where to; by default `<lab>.save.json`.
        notebook: the notebook's file, where labkit does not find it by itself.

    Raises:
        SaveError: the notebook is not found, or the folder cannot be written to.
    """
    return _write(sys._getframe(1).f_globals, path, notebook, "save")


def submit(path: str | Path | None = None, notebook: str | Path | None = None) -> Path:
    """Write the small file to hand in, `<lab>.submit.json`, and say what is missing.

    Frontier cells are run and tried, as far as the lab says how (`labkit.reader.tried`).

    Args and errors are those of `save`.
    """
    return _write(sys._getframe(1).f_globals, path, notebook, "submit")


def restore(path: str | Path | None = None, notebook: str | Path | None = None) -> Path:
    """Put saved work back: writes a copy of this notebook that holds it, to be opened.

    Args:
        path: the saved file; by default the one in Drive or beside the notebook, and in Colab
            you are asked for it.
        notebook: the notebook's file, where labkit does not find it by itself.

    Raises:
        SaveError: no saved file, or the notebook is not found.
    """
    lab, variant = _declared(sys._getframe(1).f_globals)
    found, place = _open(sys._getframe(1).f_globals, lab, notebook, "restore")
    saved = read_work(_saved_file(lab, path))
    if saved.lab.slug != lab.slug:
        raise SaveError(f"the saved work is of the lab {saved.lab.slug}, this one is {lab.slug}")
    made, names = put_back(found, saved)
    target = _folder() / f"{place.stem}-restored.ipynb"
    target.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", "utf8")
    if saved.variant != variant:
        print(f"note: the work was saved from variant {saved.variant}, this notebook is {variant}")
    print(f"put back: {', '.join(names) or 'nothing, the saved file is empty'}")
    print(f"open {target}: it is this notebook with your work in it")
    _download(target)
    return target


def keep_progress(namespace: dict[str, Any], task: str, passed: int, total: int) -> str | None:
    """Remember a check's outcome and the cells run so far; return a line about all tasks.

    Outside a notebook nothing is kept.
    """
    ran = cells_run(namespace)
    if ran is None:
        return None
    lab, variant = _declared(namespace)
    work = work_of(lab, {"cells": []}, ran)
    work.variant, work.progress = variant, {task: [passed, total]}
    path = _folder() / f"{lab.slug}.save.json"
    try:
        if path.is_file():
            keep_what_was_saved(work, read_work(path))
        work.write(path)
    except SaveError as error:
        return f"progress is not kept: {error}"
    done = [t.name for t in lab.tasks if (p := work.progress.get(t.name)) and p[0] == p[1]]
    return f"so far {len(done)} of {len(lab.tasks)} tasks pass their public checks; kept in {path}"


def _write(
    namespace: dict[str, Any], path: str | Path | None, notebook: str | Path | None, kind: str
) -> Path:
    lab, variant = _declared(namespace)
    content, _ = _open(namespace, lab, notebook, kind)
    ran = [] if _colab() else cells_run(namespace)
    work = work_of(lab, content, ran)
    work.variant = variant
    said = [] if _colab() else unsaved_cells(work_of(lab, content), work)
    saved = _folder() / f"{lab.slug}.save.json"
    if saved.is_file():
        previous = read_work(saved)
        if kind == "save":
            said += keep_what_was_saved(work, previous)
        else:
            work.progress = progress_of(work, previous)
    target = Path(path) if path is not None else _folder() / f"{lab.slug}.{kind}.json"
    work.write(target)
    tried = doubts(work) if kind == "submit" else []
    print("\n".join([*said, *summary(work, target, kind, tried)]))
    _download(target)
    return target


def _declared(namespace: dict[str, Any]) -> tuple[Lab, str]:
    declared = namespace.get("LAB")
    if not isinstance(declared, str):
        raise SaveError("run the notebook's first cell: it sets LAB, the name of this lab")
    slug, _, variant = declared.partition("/")
    lab = load_lab(slug)
    return lab, lab.variant(variant or None)


def _colab() -> bool:
    return "google.colab" in sys.modules


def _folder() -> Path:
    """Where files go: Drive where Colab has mounted it, else the working folder."""
    return DRIVE / "labkit" if _colab() and DRIVE.is_dir() else Path.cwd()


def _download(path: Path) -> None:
    """Have Colab's browser fetch a file that would vanish with the runtime."""
    if _colab() and not path.is_relative_to(DRIVE):
        from google.colab import files

        files.download(str(path))


def _saved_file(lab: Lab, path: str | Path | None) -> Path:
    if path is not None:
        return Path(path)
    for kind in ("save", "submit"):
        found = _folder() / f"{lab.slug}.{kind}.json"
        if found.is_file():
            return found
    if not _colab():
        raise SaveError(
            f"no {lab.slug}.save.json in {_folder()}: name the file, restore('path/to/it')"
        )
    from google.colab import files

    uploaded: dict[str, bytes] = files.upload()
    if not uploaded:
        raise SaveError("no file was chosen")
    return Path(next(iter(uploaded)))


def _open(
    namespace: dict[str, Any], lab: Lab, notebook: str | Path | None, function: str
) -> tuple[dict[str, Any], Path]:
    """This notebook's content and its file name; `function` is what the reader called."""
    if notebook is None and _colab():
        from google.colab import _message

        reply = _message.blocking_request("get_ipynb", timeout_sec=30)
        if reply is None:
            raise SaveError("Colab did not hand over the notebook within 30 s: run the cell again")
        return reply["ipynb"], Path(f"{lab.slug}.ipynb")
    path = Path(notebook) if notebook is not None else _notebook_file(namespace, lab, function)
    return load_notebook(path), path


def _notebook_file(namespace: dict[str, Any], lab: Lab, function: str) -> Path:
    """The file of the running notebook: as the server or the editor names it, else by its cells."""
    for named in (os.environ.get("JPY_SESSION_NAME"), namespace.get("__vsc_ipynb_file__")):
        for path in (Path(named), Path.cwd() / Path(named).name) if named else ():
            if path.suffix == ".ipynb" and path.is_file():
                return path
    matching = [path for path in sorted(Path.cwd().glob("*.ipynb")) if _holds(path, lab)]
    if len(matching) == 1:
        return matching[0]
    found = ", ".join(path.name for path in matching) or "none"
    raise SaveError(
        f"which notebook? {found} in {Path.cwd()} fit: save the notebook, then name its file, "
        f'as in labkit.{function}(notebook="{lab.slug}.ipynb")'
    )


def _holds(path: Path, lab: Lab) -> bool:
    """Whether a notebook holds tasks of a lab; labs share names of tasks, so not of another's."""
    try:
        content = load_notebook(path)
    except SaveError:
        return False
    found = find(lab, content, content["cells"])
    return bool(found.cells) and found.other_lab is None
