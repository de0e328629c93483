"""`quire bench peers`: quire and vLLM in turns on one GPU, on the same works.

The loads are those of `quire bench engine`: the same ids for both engines, greedy, the prefix
cache off, every token counted. Each turn is a process of its own (`peer_child`), so neither
engine finds the other's memory, and vLLM may live in another environment than quire, which it
needs: it pins another torch. vLLM runs in four settings and quire before every second of them
and at the end, so a drift of the machine falls on both.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from quire.analysis import catalog_json
from quire.bench.measurement import Row
from quire.bench.peer_rows import PeerRow, peer_row, with_baselines
from quire.bench.peer_settings import SETTINGS, Setting, Work, make_works, take_turns
from quire.errors import QuireError
from quire.models.architectures import find_architecture

VLLM_VERSION = "0.33.0"  # the one that the book reads, `book/engines.toml`
CHILD = Path(__file__).with_name("peer_child.py")
LIMIT_SECONDS = 1200.0  # of one turn; vLLM's first start on a machine compiles for 100 s and more


def run(
    models: Sequence[str], device: torch.device, vllm_python: str | None = None
) -> tuple[list[Row], str]:
    """Measure on a GPU; return the rows, and a note of what could not be measured.

    Raises:
        QuireError: no GPU, not its first, an unknown model, no interpreter of that name, or
            nothing could be measured.
    """
    if device.type != "cuda":
        raise QuireError(
            "bench peers runs models of real size; use --device cuda, or bench decode, which "
            "compares on a CPU"
        )
    if device.index:
        raise QuireError(
            f"--device {device}: both engines take the first GPU they see; set "
            f"CUDA_VISIBLE_DEVICES={device.index} instead"
        )
    configs = {name.rpartition("/")[2]: model_json(name) for name in models}
    python = vllm_python or sys.executable
    settings: tuple[Setting, ...] = SETTINGS
    notes: list[str] = []
    if find_vllm(python) is None:
        settings = ()
        notes.append(
            f"vLLM is not installed for {python}, so quire was measured alone. It pins another "
            "torch, so give it an environment of its own: python -m venv vllm-env && "
            f"vllm-env/bin/pip install vllm=={VLLM_VERSION}; then --vllm-python "
            "vllm-env/bin/python"
        )
        print(notes[0], file=sys.stderr, flush=True)
    rows, failed = measure(configs, take_turns(settings), make_works(), python, str(device), CHILD)
    if not rows:
        raise QuireError("nothing could be measured: " + "; ".join(failed))
    return with_baselines(rows), "; ".join([*notes, *failed])


def model_json(name: str) -> dict[str, Any]:
    """Return a catalogued model's `config.json` as transformers, and so vLLM, wants it.

    Raises QuireError for a name that the catalog lacks.
    """
    for known, raw in catalog_json().items():
        if name.lower() in (known.lower(), known.lower().split("/")[1]):
            return {"model_type": find_architecture(raw)[1].model_type, **raw}
    raise QuireError(f"model {name!r} is not in the catalog: {', '.join(catalog_json())}")


def find_vllm(python: str) -> str | None:
    """Return the version of vLLM that an interpreter has, or None.

    Raises QuireError if the interpreter cannot be started. vLLM is not imported: that takes 25 s.
    """
    question = (
        "from importlib.metadata import distributions as d;"
        "print(*(x.version for x in d() if (x.name or '').lower() == 'vllm'))"
    )
    try:
        answer = subprocess.run([python, "-c", question], capture_output=True, text=True)
    except OSError as error:
        raise QuireError(
            f"--vllm-python {python!r}: {error.strerror}; name the Python of the environment that "
            "has vLLM"
        ) from None
    if answer.returncode:
        raise QuireError(
            f"--vllm-python {python!r} is no Python: it ended with {answer.returncode} when asked "
            "for its packages; name the Python of the environment that has vLLM"
        )
    return next(iter(answer.stdout.split()), None)


def measure(
    models: Mapping[str, dict[str, Any]],
    turns: Sequence[Setting],
    works: dict[str, Work],
    python: str,
    device: str,
    child: Path,
) -> tuple[list[PeerRow], list[str]]:
    """Run all turns on each model; return the rows, and in words what failed.

    Args:
        models: the content of `config.json` by name.
        works: those that the settings name.
        python: the interpreter that has vLLM.
        child: the script that does a job (`peer_child`).

    A turn that fails does not end the others, and the works that it finished are kept.
    """
    rows: list[PeerRow] = []
    failed: list[str] = []
    for model, config in models.items():
        processes: Counter[str] = Counter()
        for setting in turns:
            processes[setting.name] += 1
            label = f"{setting.engine} ({setting.name}) on {model}"
            print(f"{time.strftime('%H:%M:%S')} {label}", file=sys.stderr, flush=True)
            answers, problem = do_job(config, setting, works, python, device, child)
            problems = [problem] if problem else []
            facts = {"engine": setting.engine, **(answers[0] if answers else {})}
            for answer in answers[1:]:
                work = works[answer["work"]]
                if wrong := [count for count in answer["tokens"] if count != work.num_tokens]:
                    problems.append(
                        f"{answer['work']}: {wrong[0]} tokens instead of {work.num_tokens}"
                    )
                    continue
                case = f"{model.lower()}-{answer['work']}"
                runs = [work.value(seconds) for seconds in answer["seconds"]]
                process = processes[setting.name]
                rows.append(peer_row(case, process, setting.name, facts, runs, work.cold))
            failed += [f"{label}: {problem}" for problem in problems]
            for problem in problems:
                print(f"{label}: {problem}", file=sys.stderr, flush=True)
    return rows, failed


def do_job(
    config: dict[str, Any],
    setting: Setting,
    works: dict[str, Work],
    python: str,
    device: str,
    child: Path,
) -> tuple[list[dict[str, Any]], str]:
    """Start a process for one setting; return its answers, and what went wrong or ""."""
    own = setting.engine == "quire"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = {
            "engine": setting.engine,
            "model": name,
            "arguments": {**setting.arguments, **({"device": device} if own else {})},
            "collector": setting.collector,
            "works": [
                {
                    "name": work,
                    "prompts": works[work].load[0],
                    "outputs": [params.output_limit for params in works[work].load[1]],
                    "runs": works[work].runs,
                }
                for work in setting.works
            ],
        }
        (folder / "config.json").write_text(json.dumps(config), "utf-8")
        (folder / "job.json").write_text(json.dumps(job), "utf-8")
        files = [str(folder / "job.json"), str(folder / "answers.jsonl")]
        command = [sys.executable if own else python, str(child), *files]
        problem = _run_process(command, setting.environment, folder / "log.txt")
        return _read_answers(folder / "answers.jsonl"), problem


def _run_process(command: list[str], environment: dict[str, str], log: Path) -> str:
    """Run a command and whatever it starts; return "" or what went wrong."""
    process: subprocess.Popen[bytes] | None = None
    before = signal.signal(signal.SIGTERM, _leave)
    with log.open("w", encoding="utf-8") as output:
        try:
            process = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # its group holds vLLM's engine process, too
            )
            code = process.wait(LIMIT_SECONDS)
            problem = f"ended with {code}" if code else ""
        except subprocess.TimeoutExpired:
            problem = f"took longer than {LIMIT_SECONDS:g} s"
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one waits for the group's end
            if process is not None:
                _end_group(process)
            signal.signal(signal.SIGTERM, before)
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    if problem:
        print("\n".join(lines[-20:]), file=sys.stderr, flush=True)
        problem += f"; its last words: {lines[-1].strip()}" if lines else "; it said nothing"
    return problem


def _leave(number: int, frame: object) -> NoReturn:
    """End as after an error: a signal that ends this process alone would leave the group."""
    raise SystemExit(128 + number)


def _end_group(process: subprocess.Popen[bytes], patience: float = 10.0) -> None:
    """End what a child has left running, and wait: it may hold the GPU's memory."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            break
        process.poll()  # so that the child itself, which leads the group, is gone
        time.sleep(0.05)
    process.wait()


def _read_answers(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a file of answers; a line that a crash cut off is none."""
    if not path.is_file():
        return []
    lines = path.read_text("utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
