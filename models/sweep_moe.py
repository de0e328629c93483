"""Trains quire-mini-moe once for each weight of the balance loss, side by side on one GPU.

    python models/sweep_moe.py --tokens 400000000 --seconds 240 --out runs/moe

The step of a model this small leaves much of a GPU idle between its kernels, so processes that
share it take less time than one after another. `--out` receives, for each weight, one `.tar` with
the checkpoint folder and `training.json`, the log, and `gate.json`: the gate's record of each run
(`moe_gate.py`). Which run ships, if one does, is left to the reader of that file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from train import CORPUS, MODELS

WEIGHTS = ("0", "0.001", "0.01")
# A compiling process starts this many helpers, so that three do not crowd 16 cores.
COMPILERS = "5"


def collect(name: str, run: Path, out: Path) -> dict[str, object]:
    """Packs a finished run into `out` and returns its gate record with the run's name."""
    with tarfile.open(out / f"{name}.tar", "w") as archive:
        archive.add(run, arcname=name)
    record = json.loads((run / "training.json").read_text())
    chosen = ("steps", "tokens", "seconds", "validation_bits_per_byte")
    return {"run": name, **{key: record[key] for key in chosen}, **record["gate"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", nargs="+", default=WEIGHTS)
    parser.add_argument("--tokens", type=int, required=True, help="training budget of each run")
    parser.add_argument("--seconds", type=float, required=True, help="limit on each training")
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--out", type=Path, required=True)
    options, more = parser.parse_known_args()  # what is not known here goes to train_moe.py
    options.out.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": COMPILERS, "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryDirectory() as folder:
        running: dict[str, subprocess.Popen[bytes]] = {}
        for weight in options.weights:
            name = f"aux-{weight}"
            command = [
                *(sys.executable, str(MODELS / "train_moe.py"), "--aux", weight),
                *("--tokens", str(options.tokens), "--seconds", str(options.seconds)),
                *("--corpus", str(options.corpus), "--out", str(Path(folder) / name)),
                *more,
            ]
            with open(options.out / f"{name}.log", "wb") as log:
                running[name] = subprocess.Popen(
                    command, env=environment, stdout=log, stderr=subprocess.STDOUT
                )
        gates, failed = [], []
        for name, process in running.items():
            if process.wait() == 0:
                gates.append(collect(name, Path(folder) / name, options.out))
            else:
                failed.append(f"{name} ended with {process.returncode}: see {name}.log")
    (options.out / "gate.json").write_text(json.dumps(gates, indent=1) + "\n")
    for record in gates:
        shown = ("run", "passes", "verdicts", "heldout_bits_per_byte", "max_over_mean", "seconds")
        print(json.dumps({key: record[key] for key in shown}))
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
