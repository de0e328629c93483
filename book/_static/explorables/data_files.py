"""Writing the files of `data/` that explorables load, as every script here does it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("data")
Maker = Callable[[str], dict[str, Any]]  # from a model's name or folder to what a file holds


def write_data(makers: Mapping[str, Maker], model: str = "", out: Path = FOLDER) -> None:
    """Write `<name>.json` of each maker and print its size.

    Args:
        makers: by the name of the explorable.
        model: what a maker that runs a model is told; "" where none does.
        out: folder to write to; it is made where there is none.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name, maker in makers.items():
        path = out / f"{name}.json"
        content = json.dumps(maker(model), ensure_ascii=False, separators=(",", ":"))
        path.write_text(content + "\n", "utf-8")
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")
