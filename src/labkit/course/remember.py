"""What the results of a class were made with, kept beside them in `settings.json`.

A later run with other settings would change everybody's grade: it stops and says what differs.
The course key itself is not kept, only its fingerprint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from labkit.reader.lab import LabError

FILE = "settings.json"


def check_settings(out: Path, now: Mapping[str, str], change: bool) -> None:
    """Compare the settings of this run with those that `out` was made with.

    Args:
        out: the folder of the results.
        now: what decides the grades, in words by what it is.
        change: go on with the new ones.

    Raises:
        LabError: they differ, and `change` is not set; or the file is damaged.
    """
    path = out / FILE
    if not path.is_file() or change:
        return
    try:
        before = dict(json.loads(path.read_text("utf8")))
    except ValueError:
        raise LabError(f"{path} is damaged: delete it to go on with these settings") from None
    names = [*now, *(name for name in before if name not in now)]
    other = [n for n in names if before.get(n, "none") != now.get(n, "none")]
    if other:
        lines = [f"  {n}: {before.get(n, 'none')} -> {now.get(n, 'none')}" for n in other]
        raise LabError(
            f"{out} was made with other settings, and this run would change them:\n"
            + "\n".join(lines)
            + "\ngive the options that were given then, or --change to go on with the new ones"
        )


def keep_settings(out: Path, now: Mapping[str, str]) -> None:
    """Write what the results are made with."""
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dict(now), indent=1, ensure_ascii=False) + "\n"
    (out / FILE).write_text(text, "utf8")
