"""Where the shipped models and measured figures lie: in a clone or inside the wheel."""

import json
from pathlib import Path
from typing import Any


def data_dir() -> Path:
    """Return the folder that holds `models/` and `measurements/`.

    A wheel carries them under `quire/_data`; in a clone (an editable install) they are
    the repository's own folders, two levels above this package.
    """
    package = Path(__file__).resolve().parent
    packaged = package / "_data"
    return packaged if packaged.is_dir() else package.parents[1]


def shipped_models() -> dict[str, Path]:
    """Map each shipped model's name to its folder."""
    return {
        folder.name: folder
        for folder in sorted((data_dir() / "models").glob("*/"))
        if (folder / "config.json").is_file()
    }


def load_measurement(measurement_id: str) -> dict[str, Any]:
    """Read `measurements/<measurement_id>.json`.

    Raises:
        FileNotFoundError: no such measurement; the message lists those there are.
    """
    folder = data_dir() / "measurements"
    path = folder / f"{measurement_id}.json"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.json"))) or "none"
        raise FileNotFoundError(
            f"no measurement {measurement_id!r} in {folder}; there are: {known}"
        )
    measurement: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return measurement
