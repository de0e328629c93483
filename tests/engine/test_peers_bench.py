"""`quire bench peers`: fair turns, every run kept, and no failure that hides or loses a row."""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from quire import QuireError
from quire.bench import peers
from quire.bench.engine import Load, mix256, uniform_load
from quire.bench.measurement import Measurement, Row
from quire.bench.peer_rows import PeerRow, compare, peer_row, with_baselines
from quire.bench.peer_settings import OWN, SETTINGS, Setting, Work, make_works, take_turns
from quire.bench.peers import find_vllm, measure
from quire.cli import main
from quire.resources import load_measurement

CUDA = torch.device("cuda", 0)  # never used: every child here is a script without torch
TINY = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 150_000,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": True,
}
WORKS = {
    "batch1": Work(uniform_load(1, 4, 8), runs=3),
    "64x512x256": Work(uniform_load(2, 4, 5), runs=2),
    "mix256": Work(uniform_load(3, 4, 5), runs=2),
    "batch1-again": Work(uniform_load(1, 4, 8), runs=2, cold=0),
}

# A child that keeps its job, answers as the real one does, and spoils what `SPOIL` says.
FAKE_CHILD = """
import json, os, pathlib, subprocess, sys, time
job = json.load(open(sys.argv[1]))
seen = pathlib.Path(os.environ["SEEN"])
kept = {
    **job,
    "in_process": os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING"),
    "interpreter": os.environ.get("INTERPRETER", "own"),
}
(seen / f"{len(list(seen.iterdir())):02}.json").write_text(json.dumps(kept))
spoil = os.environ.get("SPOIL", "") if job["engine"] == "vllm" else ""
if spoil == "start":
    sys.exit("ValueError: free memory is less than asked for")
with open(sys.argv[2], "w") as out:
    def say(answer):
        print(json.dumps(answer), file=out, flush=True)
    say({"version": "9.9", "torch": "2.x", "max_num_seqs": 7, "start_seconds": 1.5})
    for number, work in enumerate(job["works"]):
        if spoil == "second" and number == 1:
            out.write('{"work": "64x5')
            out.flush()
            print("RuntimeError: an illegal memory access")
            print()
            os._exit(3)
        if spoil == "hang" and number == 1:
            grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            (seen / "pid").write_text(str(grandchild.pid))
            time.sleep(600)
        right = sum(work["outputs"])
        counts = [right] * work["runs"]
        if spoil == "count" and work["name"] == "mix256":
            counts[1] -= 1
        seconds = [4.0, 1.0, 2.0, 3.0, 1.0, 1.0, 1.0][: work["runs"]]
        say({"work": work["name"], "seconds": seconds, "tokens": counts})
"""

FAKE_VLLM = """
import gc, os, types
__version__ = "0.33.0"
def TokensPrompt(prompt_token_ids):
    return {"prompt_token_ids": prompt_token_ids}
class SamplingParams:
    def __init__(self, temperature, ignore_eos, max_tokens, detokenize):
        assert (temperature, ignore_eos, detokenize) == (0.0, True, False)
        self.max_tokens = max_tokens
class LLM:
    def __init__(self, model, **arguments):
        assert os.path.isfile(os.path.join(model, "config.json"))
        assert arguments["enable_prefix_caching"] is False
        assert arguments["load_format"] == "dummy"
        self.collector = arguments.get("max_num_seqs") != 8  # off in the setting for batch 1
        scheduler = types.SimpleNamespace(max_num_seqs=1024, max_num_batched_tokens=16384)
        self.llm_engine = types.SimpleNamespace(
            vllm_config=types.SimpleNamespace(scheduler_config=scheduler))
    def generate(self, prompts, params, use_tqdm):
        assert all(len(p["prompt_token_ids"]) == 4 for p in prompts)
        assert gc.isenabled() == self.collector
        one = lambda p: types.SimpleNamespace(token_ids=[0] * p.max_tokens)
        return [types.SimpleNamespace(outputs=[one(p)]) for p in params]
"""


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    """The command sets torch's threads for its process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The fake child, which keeps its jobs in `tmp_path / "seen"`."""
    (tmp_path / "seen").mkdir()
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    script = tmp_path / "child.py"
    script.write_text(FAKE_CHILD, "utf-8")
    monkeypatch.setattr(peers, "CHILD", script)
    monkeypatch.setattr(peers, "make_works", lambda: WORKS)
    return script


def jobs(child: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((child.parent / "seen").glob("*.json"))]


def install_vllm(folder: Path, monkeypatch: pytest.MonkeyPatch, module: str = FAKE_VLLM) -> None:
    (folder / "site" / "vllm").mkdir(parents=True)
    (folder / "site" / "vllm" / "__init__.py").write_text(module, "utf-8")
    info = folder / "site" / "vllm-0.33.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.33.0\n")
    monkeypatch.setenv("PYTHONPATH", str(folder / "site"), prepend=os.pathsep)


# ---- what is run


def test_quire_stands_before_every_second_setting_and_at_the_end() -> None:
    turns = [turn.name for turn in take_turns(SETTINGS)]
    own = OWN.name
    assert turns == [own, "default", "in-process", own, "batch-1", "throughput", own]
    assert take_turns([]) == [OWN]


def test_the_works_are_those_of_bench_engine() -> None:
    def plain(load: Load) -> list[Any]:
        return [load[0], [params.output_limit for params in load[1]]]

    works = make_works()
    assert plain(works["mix256"].load) == plain(mix256())
    assert plain(works["64x512x256"].load) == plain(uniform_load(64, 512, 256))
    assert plain(works["batch1"].load) == plain(uniform_load(1, 128, 256))
    assert works["batch1-again"].load == works["batch1"].load
    named = {work for setting in (OWN, *SETTINGS) for work in setting.works}
    assert named == set(works)
    assert all(work.runs - work.cold >= 3 for work in works.values()), "too few for a range"


def test_both_engines_get_the_same_ids_and_each_setting_its_own_arguments(child: Path) -> None:
    other = child.with_name("python")
    other.write_text(f'#!/bin/sh\nINTERPRETER=other exec "{sys.executable}" "$@"\n', "utf-8")
    other.chmod(0o755)
    python = str(other)
    rows, failed = measure({"Tiny": TINY}, take_turns(SETTINGS), WORKS, python, "cpu", child)
    assert not failed
    first, default, in_process, _, batch1, throughput, _ = jobs(child)
    assert first["engine"] == "quire"
    assert first["interpreter"] == "own"
    assert {default["interpreter"], batch1["interpreter"]} == {"other"}
    assert first["works"] == default["works"] == in_process["works"]
    assert [work["name"] for work in batch1["works"]] == ["batch1", "batch1-again"]
    assert [work["name"] for work in throughput["works"]] == ["64x512x256", "mix256"]
    for work in (*batch1["works"], *throughput["works"]):
        assert work in first["works"]
    assert [job["in_process"] for job in (default, in_process, batch1)] == [None, "0", "0"]
    assert [job["collector"] for job in (default, batch1)] == [True, False]
    assert batch1["arguments"]["compilation_config"]["compile_sizes"] == [1]
    assert throughput["arguments"]["performance_mode"] == "throughput"
    for job in (default, in_process, batch1, throughput):
        assert job["arguments"]["enable_prefix_caching"] is False
        assert job["arguments"]["max_model_len"] == first["arguments"]["max_model_len"]
    assert first["arguments"]["enable_prefix_caching"] is False
    # 4 works of quire three times, of vLLM twice; 2 of each of the special settings
    assert len(rows) == 4 * 3 + 4 * 2 + 2 * 2
    assert len({row.case for row in rows}) == len(rows)


def test_every_run_is_kept_and_a_cold_one_is_in_no_median(child: Path) -> None:
    rows, _ = measure({"Tiny": TINY}, [OWN, SETTINGS[0], OWN], WORKS, sys.executable, "cpu", child)
    by_case = {row.case: row for row in rows}
    one = by_case["tiny-batch1/quire/as-benched/2"]
    assert (one.metric, one.unit, one.cold) == ("ms_per_token", "ms", 1)
    assert one.runs == [4.0 / 8 * 1e3, 1.0 / 8 * 1e3, 2.0 / 8 * 1e3]
    assert one.value == statistics.median(one.runs[1:])
    assert one.parameters == {"process": 2, "max_num_seqs": 7, "start_seconds": 1.5}
    load = by_case["tiny-mix256/vllm-9.9/default/1"]
    assert (load.metric, load.unit) == ("tokens_per_second", "tokens/s")
    assert load.runs == [15 / 4.0, 15 / 1.0]
    assert load.value == 15.0
    again = by_case["tiny-batch1-again/quire/as-benched/1"]
    assert again.cold == 0
    assert again.value == (4.0 + 1.0) / 2 / 8 * 1e3


# ---- what goes wrong


@pytest.mark.parametrize(
    ("spoil", "said", "kept"),
    [
        ("start", r"ended with 1; its last words: ValueError: free memory", []),
        ("second", r"ended with 3; its last words: RuntimeError: an illegal", ["batch1"]),
        ("count", r"mix256: 14 tokens instead of 15", ["batch1", "64x512x256", "batch1-again"]),
    ],
)
def test_a_turn_that_fails_says_why_and_loses_nothing_else(
    spoil: str,
    said: str,
    kept: list[str],
    child: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SPOIL", spoil)
    rows, failed = measure(
        {"Tiny": TINY}, take_turns(SETTINGS[:1]), WORKS, sys.executable, "cpu", child
    )
    [words] = failed
    assert re.match(rf"vllm \(default\) on Tiny: {said}", words)
    assert words in capsys.readouterr().err
    assert [row.work for row in rows if row.engine == "vllm"] == [f"tiny-{work}" for work in kept]
    assert len([row for row in rows if row.engine == "quire"]) == 2 * len(WORKS)


def test_a_turn_that_hangs_is_ended_with_what_it_started(
    child: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = child.parent / "seen" / "pid"
    os.mkfifo(pipe)
    grandchild: list[int] = []

    class Popen(subprocess.Popen[bytes]):
        """A child whose time is over as soon as it hangs, on a machine of any speed."""

        def wait(self, timeout: float | None = None) -> int:
            if timeout == peers.LIMIT_SECONDS:
                grandchild.append(int(pipe.read_text()))
                timeout = 0.01
            return super().wait(timeout)

    monkeypatch.setenv("SPOIL", "hang")
    monkeypatch.setattr(subprocess, "Popen", Popen)
    rows, [words] = measure({"Tiny": TINY}, SETTINGS[:1], WORKS, sys.executable, "cpu", child)
    assert f"took longer than {peers.LIMIT_SECONDS:g} s" in words
    assert [row.work for row in rows] == ["tiny-batch1"]
    status = Path(f"/proc/{grandchild[0]}/stat")
    assert not status.exists() or ") Z " in status.read_text()


ENDED = """
import sys
from pathlib import Path
from quire.bench.peers import _run_process

pipe, log = sys.argv[1:]
started = f"import os, time; open({pipe!r}, 'w').write(str(os.getpid())); time.sleep(600)"
_run_process([sys.executable, "-c", started], {}, Path(log))
"""


def test_what_a_turn_started_ends_with_the_benchmark(tmp_path: Path) -> None:
    """Also where it is ended by `kill`, or by a scheduler whose time is up."""
    pipe = tmp_path / "pid"
    os.mkfifo(pipe)
    bench = subprocess.Popen([sys.executable, "-c", ENDED, str(pipe), str(tmp_path / "log.txt")])
    child = int(pipe.read_text())  # waits until it runs
    bench.terminate()
    assert bench.wait(60) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "peers", "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("quire: bench peers ")
    assert error.count("\n") == 1
    assert "--device cuda" in error
    assert "bench decode" in error


def test_what_cannot_be_asked_for_is_named_before_anything_runs(
    child: Path, tmp_path: Path
) -> None:
    with pytest.raises(QuireError, match=r"cuda:1.*CUDA_VISIBLE_DEVICES=1"):
        peers.run(["Qwen3-0.6B"], torch.device("cuda", 1))
    with pytest.raises(QuireError, match=r"'Qwen9-1B' is not in the catalog: .*Qwen/Qwen3-8B"):
        peers.run(["Qwen9-1B"], CUDA)
    absent = str(tmp_path / "no" / "python")
    with pytest.raises(QuireError, match=re.escape(f"--vllm-python {absent!r}: No such file")):
        peers.run(["Qwen3-0.6B"], CUDA, absent)
    with pytest.raises(QuireError, match=r"'false' is no Python: it ended with 1"):
        peers.run(["Qwen3-0.6B"], CUDA, "false")
    assert not jobs(child)


def test_where_vllm_is_not_installed_quire_is_measured_alone(
    child: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find_vllm(sys.executable) is None
    rows, note = peers.run(["Qwen3-0.6B"], CUDA)
    assert f"pip install vllm=={peers.VLLM_VERSION}" in note
    assert "--vllm-python vllm-env/bin/python" in note
    assert note in capsys.readouterr().err
    assert [job["engine"] for job in jobs(child)] == ["quire"]
    assert [row.case.partition("/")[0] for row in rows] == [f"qwen3-0.6b-{work}" for work in WORKS]


def test_where_vllm_is_installed_quires_rows_carry_it(
    child: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_vllm(tmp_path, monkeypatch)
    assert find_vllm(sys.executable) == "0.33.0"
    rows, note = peers.run(["Qwen/Qwen3-8B"], CUDA)
    assert not note
    [first, *_] = rows
    assert first.case == "qwen3-8b-batch1/quire/as-benched/1"
    assert set(first.baselines) == {f"vllm 9.9 {n}" for n in ("default", "in-process", "batch-1")}
    monkeypatch.setenv("SPOIL", "start")
    rows, note = peers.run(["Qwen3-8B"], CUDA)
    assert note.count("ended with 1") == len(SETTINGS)
    assert {type(row) for row in rows} == {PeerRow}


def test_nothing_measured_is_an_error(child: Path) -> None:
    child.write_text("raise SystemExit('CUDA out of memory')", "utf-8")
    with pytest.raises(QuireError, match=r"nothing could be measured: quire .*out of memory"):
        peers.run(["Qwen3-0.6B"], CUDA)


def test_the_command_writes_rows_and_note_and_tells_by_its_code_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = peer_row("m-batch1", 1, "as benched", FACTS, [2.0, 1.0], 1)
    asked: list[Any] = []

    def run(*arguments: Any) -> tuple[list[Row], str]:
        asked.append(arguments)
        return [row], "vllm (default) on m: ended with 3"

    monkeypatch.setattr(peers, "run", run)
    command = ["bench", "peers", "--device", "cpu", "--vllm-python", "/opt/v/bin/python"]
    assert main([*command, "--out", str(tmp_path), "--commit", "0123456"]) == 1
    assert asked == [(("Qwen3-0.6B", "Qwen3-8B"), torch.device("cpu"), "/opt/v/bin/python")]
    written = json.loads((tmp_path / "peers-cpu.json").read_text("utf-8"))
    assert written["note"] == "vllm (default) on m: ended with 3"
    assert written["command"] == "quire bench peers --device cpu"
    assert PeerRow(**written["rows"][0]) == row
    assert "m-batch1/quire/as-benched/1" in capsys.readouterr().out


# ---- the child itself


def test_the_child_times_quire(tmp_path: Path) -> None:
    own = Setting("quire", "small", {"max_model_len": 64, "enable_prefix_caching": False})
    rows, failed = measure({"Tiny": TINY}, [own], WORKS, sys.executable, "cpu", peers.CHILD)
    assert not failed
    assert [row.work for row in rows] == [f"tiny-{work}" for work in WORKS]
    assert {row.torch for row in rows} == {torch.__version__}
    assert [len(row.runs) for row in rows] == [work.runs for work in WORKS.values()]
    assert all(run > 0 for row in rows for run in row.runs)
    assert rows[0].parameters["max_num_seqs"] == 32


def test_the_child_times_vllm_by_the_same_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_vllm(tmp_path, monkeypatch)
    (tmp_path / "site" / "torch.py").write_text("__version__ = '2.14.0'")  # vLLM's own torch
    rows, failed = measure({"Tiny": TINY}, SETTINGS, WORKS, sys.executable, "cpu", peers.CHILD)
    assert not failed
    assert {(row.version, row.torch) for row in rows} == {("0.33.0", "2.14.0")}
    assert rows[0].parameters["max_num_seqs"] == 1024
    assert [row.setting for row in rows].count("throughput") == 2


def test_the_child_does_not_take_the_benchmarks_for_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder holds load.py, engine.py, …: a package of the peer may import its own."""
    own = "import load\nassert load.WHOSE == 'vllm'\n"
    install_vllm(tmp_path, monkeypatch, own + FAKE_VLLM)
    (tmp_path / "site" / "load.py").write_text("WHOSE = 'vllm'")
    (tmp_path / "site" / "torch.py").write_text("__version__ = '2.14.0'")
    _, failed = measure({"Tiny": TINY}, SETTINGS[:1], WORKS, sys.executable, "cpu", peers.CHILD)
    assert not failed


# ---- what the rows say

FACTS = {"engine": "quire", "version": "0.1.0", "torch": "2.11.0"}


def vllm(version: str = "0.33.0") -> dict[str, Any]:
    return {"engine": "vllm", "version": version, "torch": "2.14.0"}


def test_a_comparison_favours_the_peer_where_there_is_a_choice() -> None:
    rows = [
        peer_row("m-batch1", 1, "as benched", FACTS, [9.0, 1.0, 1.2], 1),
        peer_row("m-batch1", 2, "as benched", FACTS, [9.0, 0.8, 1.1], 1),
        peer_row("m-batch1", 1, "default", vllm(), [9.0, 3.0, 3.2], 1),
        peer_row("m-batch1", 1, "in-process", vllm(), [2.0, 2.4, 2.6], 1),
        peer_row("m-batch1", 1, "default", vllm("0.26.0"), [1.5, 2.0, 2.2], 1),
        peer_row("m-mix256", 1, "as benched", FACTS, [100.0, 200.0, 240.0], 1),
        peer_row("m-mix256", 1, "default", vllm(), [160.0, 100.0, 110.0], 1),
        peer_row("m-mix256", 1, "batch-1", vllm(), [1.0, 90.0, 100.0], 1),
    ]
    one, load = compare(rows, "0.33.0")
    assert one.quire == [1.0, 1.2, 0.8, 1.1]
    assert one.best.setting == "in-process"
    assert one.ratio == pytest.approx(2.5 / 1.05)
    assert one.least == pytest.approx(2.0 / 1.2)  # a cold run of vLLM's counts, of quire's none
    assert load.best.setting == "default"
    assert load.ratio == pytest.approx(220 / 105)
    assert load.least == pytest.approx(200 / 160)
    [either, _] = compare(rows)
    assert either.best.version == "0.26.0"
    assert either.fastest == 1.5


def test_a_work_of_one_engine_alone_is_not_compared() -> None:
    assert compare([peer_row("m-batch1", 1, "as benched", FACTS, [1.0], 0)]) == []
    assert compare([peer_row("m-batch1", 1, "default", vllm(), [1.0], 0)]) == []


def test_quires_rows_carry_the_best_median_of_each_setting() -> None:
    rows = [
        peer_row("m-batch1", 1, "as benched", FACTS, [1.0], 0),
        peer_row("m-batch1", 1, "default", vllm(), [3.0], 0),
        peer_row("m-batch1", 2, "default", vllm(), [2.0], 0),
        peer_row("m-mix256", 1, "default", vllm(), [30.0], 0),
        peer_row("m-mix256", 2, "default", vllm(), [20.0], 0),
        peer_row("m-mix256", 1, "as benched", FACTS, [50.0], 0),
    ]
    given = with_baselines(rows)
    assert [row.baselines for row in given if row.case.endswith("as-benched/1")] == [
        {"vllm 0.33.0 default": 2.0},
        {"vllm 0.33.0 default": 30.0},
    ]
    assert [row.case for row in given] == [row.case for row in rows]


def test_a_row_is_written_with_its_runs(tmp_path: Path) -> None:
    row = peer_row("m-mix256", 3, "batch-1", vllm(), [10.0, 30.0, 20.0], 1)
    assert row.case == "m-mix256/vllm-0.33.0/batch-1/3"
    path = Measurement("peers-x", "t", "quire bench peers", [row]).save(tmp_path, "0123456")
    [written] = json.loads(path.read_text("utf-8"))["rows"]
    assert written["runs"] == [10.0, 30.0, 20.0]
    assert PeerRow(**written) == row


# ---- the recorded run


def test_the_recorded_run_holds_six_works_and_their_runs() -> None:
    recorded = load_measurement("peers-h200")
    rows = [PeerRow(**row) for row in recorded["rows"]]
    for row in rows:
        assert row.value == statistics.median(row.warm)
        assert row.cold in (0, 1)
        assert len(row.warm) >= 1
    works = [f"qwen3-{size}-{load}" for size in ("0.6b", "8b") for load in list(WORKS)[:3]]
    found = {comparison.work: comparison for comparison in compare(rows, "0.33.0")}
    assert set(works) <= set(found)
    for row in rows:
        if row.engine == "quire":
            assert row.baselines
    settings = {row.setting for row in rows if row.version == "0.33.0"}
    assert settings == {setting.name for setting in SETTINGS}


def test_the_recorded_weights_of_8_and_4_bits_stand_in_no_comparison() -> None:
    """They ran on another machine: rows of works of their own, which quire has not run."""
    rows = [PeerRow(**row) for row in load_measurement("peers-h200")["rows"]]
    narrow = {f"qwen3-8b-{form}-{load}" for form in ("fp8", "awq") for load in WORKS}
    assert narrow <= {row.work for row in rows}
    assert not narrow & {comparison.work for comparison in compare(rows)}
