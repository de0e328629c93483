"""The commands a reader types: generate, info, bench; their output, files and errors."""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

import pytest
import torch

from quire import LLM, SamplingParams
from quire.bench import steps
from quire.bench.decode import Reference
from quire.cli import main
from quire.config import EngineOptions
from quire.parallel.options import ParallelOptions
from quire.rank_flags import add_rank_arguments, rank_options

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


def test_generate_without_a_token(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", PROMPT, "--max-tokens", "0", "--device", "cpu", "--model", DRAFT]) == 0
    shown = capsys.readouterr()
    assert shown.out == PROMPT
    assert "[0 tokens in" in shown.err
    assert "ended by length" in shown.err


@pytest.fixture
def closed_pipe() -> Iterator[io.TextIOWrapper]:
    """Standard output whose reader has gone."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", encoding="utf-8") as stream:
        yield stream


@pytest.mark.parametrize("arguments", [["info", "Qwen/Qwen3-0.6B"], ["generate", PROMPT]])
def test_a_reader_who_leaves_is_no_error(
    arguments: list[str],
    closed_pipe: io.TextIOWrapper,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What `quire … | head -1` comes to: the status of SIGPIPE, and nothing said."""
    options = [] if arguments[0] == "info" else ["--device", "cpu", "--model", DRAFT]
    monkeypatch.setattr("sys.stdout", closed_pipe)
    assert main([*arguments, *options]) == 141
    assert capsys.readouterr().err == ""


def test_as_a_module_in_a_pipe() -> None:
    """The interpreter, too, ends without a word about the pipe."""
    script = '"$0" -m quire info Qwen/Qwen3-0.6B | true; echo ${PIPESTATUS[0]}'
    command = ["bash", "-c", script, sys.executable]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("141\n", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert main(["info", "Qwen/Qwen3-0.6B"]) == 2
        error = capsys.readouterr().err
    assert error.startswith("quire: [Errno 28] No space left")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", b"na\\xefve \\u65e5 "), ("utf-8", "naïve 日 ".encode())]
)
def test_a_narrow_encoding_shows_escapes(
    encoding: str, shown: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding=encoding))
    options = ["--model", DRAFT, "--max-tokens", "1", "--device", "cpu"]
    assert main(["generate", "naïve 日 ", *options]) == 0
    assert written.getvalue().startswith(shown)


def test_standard_input_that_is_no_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\xff"), encoding="utf-8"))
    assert main(["generate", "-", "--device", "cpu"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("quire: standard input is no utf-8: byte 0xff at position 1")


CLOSED = [
    (["info", "Qwen/Qwen3-0.6B"], ">&-", "quire: standard output is closed"),
    (["generate", "x", "--model", DRAFT, "--device", "cpu"], ">&-", "quire: standard output is"),
    (["generate", "-", "--device", "cpu"], "<&-", "quire: prompt '-' reads standard input, which"),
    (["info", "Qwen/Qwen3-0.6B", "--batch", "0"], "2>&-", ""),
]


@pytest.mark.parametrize(("arguments", "redirection", "said"), CLOSED)
def test_a_stream_that_the_shell_closed(arguments: list[str], redirection: str, said: str) -> None:
    """Python has None for it, which nothing can be written to or read from."""
    script = f'"$0" -m quire "$@" {redirection}'
    command = ["bash", "-c", script, sys.executable, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.startswith(said)
    assert run.stderr.count("\n") == bool(said)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--dtype", "int4", "--batch", "1"], "109 tokens  a step; a decode step of 1 is faster"),
        (["--dtype", "int4", "--batch", "256"], "a decode step of 256 is slower"),
        (["--dtype", "int4", "--hardware", "t4"], "not measured  on NVIDIA T4"),
    ],
)
def test_info_says_where_four_bits_lose(
    options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", "Qwen/Qwen3-8B", *options]) == 0
    assert told in capsys.readouterr().out
    assert main(["info", "Qwen/Qwen3-8B"]) == 0
    assert "INT4" not in capsys.readouterr().out


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
    assert "transformers continuous" in capsys.readouterr().out
    written = json.loads((tmp_path / "decode-cpu.json").read_text("utf-8"))
    assert written["command"] == " ".join(["quire", *arguments, "--threads", "1"])
    rows = {(row["case"], row["metric"]): row for row in written["rows"]}
    ways = {"one by one", "padded", "continuous"}
    assert set(rows["batch1", "tokens_per_second"]["baselines"]) == {"transformers"}
    assert set(rows["batch32", "tokens_per_second"]["baselines"]) == {
        f"transformers {way}" for way in ways
    }
    assert all(rate > 0 for row in rows.values() for rate in row["baselines"].values())


def test_transformers_gives_quires_tokens_in_each_of_its_ways() -> None:
    llm = LLM(DRAFT, device="cpu", dtype="float32", enable_prefix_caching=False)
    prompts = [[5, 6, 7], [9, 10], [300] * 5]
    params = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
    expected = [list(o.outputs[0].token_ids) for o in llm.generate(prompts, params)]
    reference = Reference(DRAFT, 6)
    for way in (reference.one_by_one, reference.padded, reference.continuous):
        assert sorted(way(prompts)) == sorted(expected)


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


def test_generate_guesses_ahead_and_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", PROMPT, "--max-tokens", "30", "--device", "cpu", "--model", DRAFT]
    assert main(arguments) == 0
    plain = capsys.readouterr().out
    assert main([*arguments, "--speculative-config", '{"method": "ngram"}']) == 0
    assert capsys.readouterr().out == plain


def test_a_draft_model_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", PROMPT, "--device", "cpu", "--max-tokens", "12", "--temperature", "0"]
    assert main(arguments) == 0
    plain = capsys.readouterr().out
    assert main([*arguments, "--draft", "quire-mini-draft"]) == 0
    assert capsys.readouterr().out == plain
    both = ["--draft", "quire-mini-draft", "--speculative-config", '{"method": "ngram"}']
    assert main([*arguments, *both]) == 2
    assert "--draft quire-mini-draft with --speculative-config" in capsys.readouterr().err


def test_a_speculative_config_that_is_no_json(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", PROMPT, "--speculative-config", "{method: ngram}"])
    assert "'{method: ngram}' is no JSON" in capsys.readouterr().err


def test_a_scheme_for_the_layers(capsys: pytest.CaptureFixture[str]) -> None:
    """`--quantization` reaches the engine, and what is no scheme is refused in a line."""
    arguments = ["generate", "def add(a, b):", "--max-tokens", "4"]
    assert main([*arguments, "--quantization", "int4-g32"]) == 0
    assert "[4 tokens in" in capsys.readouterr().err
    assert main([*arguments, "--quantization", "int1"]) == 2
    assert "scheme 'int1'" in capsys.readouterr().err


def test_every_option_of_ranks_is_a_flag() -> None:
    """With the type, the default and the description that `ParallelOptions` has."""
    parser = argparse.ArgumentParser()
    add_rank_arguments(parser)
    assert rank_options(parser.parse_args([])) == asdict(ParallelOptions())
    given = ["--tensor-parallel-size", "2", "--enable-expert-parallel"]
    wanted = asdict(ParallelOptions(tensor_parallel_size=2, enable_expert_parallel=True))
    assert rank_options(parser.parse_args(given)) == wanted
    assert set(wanted) <= set(EngineOptions.__annotations__)
    shown = " ".join(parser.format_help().split())
    assert "ranks that share every layer's matrices and heads. (default: 1)" in shown
    for field in fields(ParallelOptions):
        action = next(a for a in parser._actions if a.dest == field.name)
        assert len(action.help or "") > len("(default: None)"), f"{field.name} is not described"


def test_generate_on_ranks_that_take_turns(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", PROMPT, "--max-tokens", "12", "--device", "cpu", "--model", DRAFT]
    assert main(arguments) == 0
    plain = capsys.readouterr().out
    for sizes in (["--tensor-parallel-size", "2"], ["--pipeline-parallel-size", "2"]):
        ranks = [*sizes, "--distributed-executor-backend", "lockstep"]
        assert main([*arguments, *ranks]) == 0
        assert capsys.readouterr().out == plain
    assert main([*arguments, "--tensor-parallel-size", "0"]) == 2
    assert "tensor_parallel_size=0" in capsys.readouterr().err
    assert main([*arguments, "--distributed-executor-backend", "ray"]) == 2
    assert "must be one of mp" in capsys.readouterr().err


@pytest.mark.parametrize(("rank", "said"), [("0", "reads standard input"), ("1", "MASTER_ADDR")])
def test_only_the_first_rank_reads_standard_input(
    rank: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torchrun's ranks share it: a second reader would take the prompt from the first."""
    monkeypatch.setenv("RANK", rank)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setattr("sys.stdin", None)
    options = ["--model", DRAFT, "--device", "cpu", "--tensor-parallel-size", "2"]
    backend = ["--distributed-executor-backend", "external_launcher"]
    assert main(["generate", "-", *options, *backend]) == 2
    assert said in capsys.readouterr().err
