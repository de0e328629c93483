"""The schema of `measurements/<id>.json`, and the facts of the machine that wrote it."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


@dataclass(frozen=True)
class Row:
    """One measured value. `baselines` are values of the same metric from the same run."""

    case: str
    metric: str
    value: float
    unit: str
    baselines: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, float] = field(default_factory=dict)  # batch, context, …


@dataclass(frozen=True)
class Measurement:
    """A figure's data with all one needs to measure it again."""

    id: str
    title: str
    command: str
    rows: list[Row]
    note: str = ""  # how it was timed, what was left out

    def save(self, folder: Path, commit: str | None = None) -> Path:
        """Write `<folder>/<id>.json` and return its path.

        Args:
            commit: the source's commit; by default asked of git.
        """
        content = {
            "id": self.id,
            "title": self.title,
            "hardware": hardware(),
            "software": software(),
            "date": datetime.date.today().isoformat(),
            "command": self.command,
            "commit": commit or _commit(),
            "note": self.note,
            "rows": [asdict(row) for row in self.rows],
        }
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.id}.json"
        path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        return path


def hardware() -> dict[str, str]:
    """Name this machine's processor and, where there is one, its GPU and driver."""
    facts = {"cpu": _cpu_name(), "cpu_cores": str(os.cpu_count())}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts["gpu"] = properties.name
        facts["gpu_memory_gib"] = f"{properties.total_memory / 2**30:.0f}"
        facts["driver"] = _driver()
    return facts


def software() -> dict[str, str]:
    """Name the versions that a time depends on."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("triton", "transformers", "quire"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    if torch.version.cuda:
        versions["cuda"] = torch.version.cuda
    return versions


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return answer.splitlines()[0].strip()


def _commit() -> str:
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip()
