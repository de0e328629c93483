"""The commands a reader types: generate, info, bench; their output, files and errors."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from quire import LLM, SamplingParams
from quire.bench import steps
from quire.cli import main

PROMPT = "def fibonacci(n):\n"
DRAFT = "quire-mini-draft"  # the quicker one


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    """A benchmark sets how many threads torch uses, for the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_generate_prints_what_the_engine_generates(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", PROMPT, "--max-tokens", "12", "--device", "cpu"]) == 0
    shown = capsys.readouterr()
    params = SamplingParams(max_tokens=12, temperature=0)
    (expected,) = LLM("quire-mini", device="cpu").generate(PROMPT, params)
    assert shown.out == PROMPT + expected.outputs[0].text
    assert "[12 tokens in" in shown.err
    assert "tokens/s" in shown.err
    assert "ended by length" in shown.err


def test_generate_reads_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(PROMPT))
    assert main(["generate", "-", "--max-tokens", "2", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith(PROMPT)


def test_generate_stops_at_a_stop_string(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", PROMPT, "--max-tokens", "40", "--stop", "\n", "--device", "cpu"]
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert "\n" not in shown.out.removeprefix(PROMPT)
    assert "ended by stop" in shown.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["generate", "a\udcff", "--device", "cpu"], ["'\\udcff' at position 1", "surrogate"]),
        (["generate", "x", "--model", "quire-maxi"], ["'quire-maxi'", "quire-mini"]),
        (["generate", "x", "--temperature", "-1", "--device", "cpu"], ["temperature=-1.0", "0"]),
        (["generate", "", "--device", "cpu"], ["prompt ''", "at least one"]),
        (["generate", "x", "--dtype", "float12"], ["'float12'", "float32"]),
        (["bench", "pitfalls", "--device", "cpu"], ["--device cuda"]),
        (["bench", "engine", "--device", "cpu"], ["--device cuda", "bench decode"]),
    ],
)
def test_an_error_is_one_line_that_names_value_and_remedy(
    arguments: list[str], named: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("quire: ")
    assert error.count("\n") == 1
    for words in named:
        assert words in error


def shell(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash that calls `$quire`, the command as a module."""
    quire = f"{shlex.quote(sys.executable)} -m quire"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", script],
        env=os.environ | {"quire": quire} | environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


def test_a_reader_who_leaves_ends_the_command_quietly() -> None:
    """`head` closes the pipe after a few bytes; that is no error to be told about."""
    for script in ("$quire info Qwen/Qwen3-0.6B | head -c 1", "$quire bench --help | head -c 1"):
        run = shell(f"{script}; echo status $?")
        assert run.stderr == ""
        assert run.stdout[1:] in ("status 0\n", "status 141\n")
    # A reader who is gone before the first byte comes.
    run = shell("{ sleep 0.1; exec $quire info Qwen/Qwen3-0.6B; } | true; echo ${PIPESTATUS[0]}")
    assert (run.stdout, run.stderr) == ("141\n", "")


def test_a_full_disk_is_one_line() -> None:
    run = shell("$quire info Qwen/Qwen3-0.6B > /dev/full")
    assert run.returncode == 2
    assert run.stderr.startswith("quire: ")
    assert run.stderr.count("\n") == 1


def test_a_narrow_encoding_shows_escapes() -> None:
    """In a terminal that knows ASCII only, and for bytes that are no text."""
    command = f'$quire generate "$PROMPT" --model {DRAFT} --max-tokens 1 --device cpu'
    narrow = shell(command, PROMPT="naïve 日 ", PYTHONIOENCODING="ascii")
    assert narrow.returncode == 0
    assert narrow.stdout.startswith("na\\xefve \\u65e5 ")
    wide = shell(command, PROMPT="naïve 日 ", PYTHONIOENCODING="utf-8")
    assert wide.stdout.startswith("naïve 日 ")


def test_standard_input_that_is_no_text() -> None:
    run = shell("printf 'a\\377' | $quire generate - --device cpu", PYTHONIOENCODING="utf-8:strict")
    assert run.returncode == 2
    assert run.stderr.startswith("quire: standard input is no utf-8: byte 0xff at position 1")
    assert run.stdout == ""


def test_info_prints_the_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "Qwen/Qwen3-0.6B", "--hardware", "h200"]) == 0
    shown = capsys.readouterr().out
    assert "596,049,920" in shown
    assert "TPOT" in shown


def test_bench_cpu_compares_and_writes_a_measurement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", "decode", "--device", "cpu", "--tokens", "3", "--model", DRAFT]
    assert main([*arguments, "--threads", "1", "--out", str(tmp_path)]) == 0
    assert "ratio" in capsys.readouterr().out
    written = json.loads((tmp_path / "decode-cpu.json").read_text("utf-8"))
    assert written["command"] == " ".join(["quire", *arguments, "--threads", "1"])
    rows = {(row["case"], row["metric"]): row for row in written["rows"]}
    for case in ("batch1", "batch32"):
        rate = rows[case, "tokens_per_second"]
        ratio = rate["value"] / rate["baselines"]["transformers"]
        assert rows[case, "ratio"]["value"] == pytest.approx(ratio)


def test_bench_steps_times_prefill_and_decode(tmp_path: Path) -> None:
    arguments = ["bench", "steps", "--device", "cpu", "--max-batch", "2", "--model", DRAFT]
    assert main([*arguments, "--threads", "1", "--out", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "steps-cpu.json").read_text("utf-8"))
    cases = [row["case"] for row in written["rows"]]
    assert "decode-batch2" in cases
    assert all(row["value"] > 0 for row in written["rows"])


def test_bench_steps_says_when_a_batch_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Room for one request of 256 tokens and its output, not for two.
    monkeypatch.setattr(steps, "LLM", partial(LLM, num_blocks=30))
    command = ["bench", "steps", "--device", "cpu", "--max-batch", "2", "--model", DRAFT]
    assert main([*command, "--threads", "1"]) == 2
    assert "2 requests of 256 tokens never decoded together" in capsys.readouterr().err
