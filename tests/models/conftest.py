"""Makes the programs of `models/` importable: they are scripts, not a package."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "models"))
