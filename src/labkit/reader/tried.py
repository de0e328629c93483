"""Trying a frontier cell before it is handed in, as `labkit.submit` does in the notebook.

Its judge sees it only after the deadline. A lab whose `checks.py` has `FRONTIER` says how a cell is
tried: `{"policy": ("make_trace", play)}` runs the cell with the line `# frontier: policy` behind
the notebook's cell that defines `make_trace`, and calls `play` with the names of both.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

from labkit.reader.alone import DEFINES, run_alone, where
from labkit.reader.lab import import_checks
from labkit.reader.notebook import why_not_python
from labkit.reader.subject import Wrong
from labkit.reader.time_limit import TooSlow, time_limit, too_slow
from labkit.reader.work import Work

Play = Callable[[dict[str, Any]], None]


def doubts(work: Work) -> list[str]:
    """Sentences about frontier cells that do not do what their lab tries; the cells run here."""
    if not work.frontier:
        return []
    tried: dict[str, tuple[str, Play]] = getattr(import_checks(work.lab), "FRONTIER", {})
    found = []
    for name, source in work.frontier.items():
        if name in tried and why_not_python(source, name) is None:  # else `Work.missing` says it
            wrong = _try(work, name, *tried[name])
            found += [f"frontier {name}: {wrong}"] if wrong else []
    return found


def _try(work: Work, name: str, behind: str, play: Play) -> str | None:
    """Run a frontier cell and play with it; say what is wrong, or return None."""
    given = next((cell for cell in work.others if behind in DEFINES.findall(cell)), None)
    if given is None:
        return f"not tried, for no cell defines `{behind}`"
    cells = {behind: given, name: work.frontier[name]}
    try:
        with time_limit(), contextlib.redirect_stdout(io.StringIO()):
            play(run_alone(work.lab, cells))
    except KeyboardInterrupt:
        raise
    except Wrong as wrong:
        return str(wrong)
    except TooSlow:
        return too_slow()
    except BaseException as error:  # exit included
        return where(error)
    return None
