"""Configurations of well-known models, for arithmetic without a download."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from quire.models.config import ModelConfig

CATALOG_FILE = Path(__file__).with_name("models.toml")


@cache
def catalog_json() -> dict[str, dict[str, Any]]:
    """Return the catalog's `config.json` contents by model name, sources left out."""
    tables: dict[str, dict[str, Any]] = tomllib.loads(CATALOG_FILE.read_text("utf-8"))
    return {
        name: {key: value for key, value in table.items() if key != "checked"}
        for name, table in tables.items()
    }


def catalog_config(name: str) -> ModelConfig | None:
    """Return the configuration of `name` or None; case and the owner may be left out."""
    wanted = name.lower()
    for known, raw in catalog_json().items():
        if wanted in (known.lower(), known.lower().split("/")[1]):
            return ModelConfig.from_dict(raw)
    return None
