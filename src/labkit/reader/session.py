"""What a notebook's session has run so far, as its kernel remembers it."""

from __future__ import annotations

from typing import Any


def cells_run(namespace: dict[str, Any]) -> list[str] | None:
    """The cells that were run, as they were typed, oldest first; None outside a notebook.

    A cell that did not compile is among them. IPython keeps two lists: `In` has magics turned into
    calls of `get_ipython()`, which no other Python knows, so the one of what was typed is taken
    where there is one.
    """
    ran = namespace.get("In")
    if type(ran) is not list:
        return None
    shell = namespace.get("get_ipython")
    history = getattr(shell() if callable(shell) else None, "history_manager", None)
    typed = getattr(history, "input_hist_raw", ran)
    return [source for source in typed if type(source) is str]
