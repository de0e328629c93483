"""Ranks in processes of their own, over gloo: the same answers, and no fault that hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import checkpoints
import faulty_parts
import pytest
from runs import Run

from quire import LLM, CheckpointError, QuireError, SamplingParams
from quire.components import Components
from quire.parallel.processes import RankError

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
PARAMS = [
    SamplingParams(temperature=0.9, seed=3, top_p=0.9, max_tokens=16, n=2),
    SamplingParams(temperature=1.0, seed=5, max_tokens=16, prompt_logprobs=1, logprobs=2),
    SamplingParams(temperature=0.7, seed=7, repetition_penalty=1.2, max_tokens=16),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = {"num_key_value_heads": 2, "vocab_size": 97, "num_attention_heads": 8}
    spec = checkpoints.Spec("qwen3", {"hidden_size": 128, **options})
    return checkpoints.write(tmp_path_factory.mktemp("ranks"), spec)


def pids(llm: LLM) -> list[int]:
    return [p.pid for p in llm.engine.executor.ranks._processes]  # type: ignore[attr-defined]


def engine(folder: Path, **options: Any) -> Run:
    return Run.of(folder, tensor_parallel_size=2, max_model_len=96, max_num_seqs=4, **options)


def tokens(run: Run) -> list[list[list[int]]]:
    prompts = checkpoints.random_prompts([30, 5, 17], seed=1)
    handles = [run.add(p, own) for p, own in zip(prompts, PARAMS, strict=True)]
    return [[c.token_ids for c in output.outputs] for output in run.finish_all(handles)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"overlap": True, "num_blocks": 9, "watermark": 0.0},
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}},
    ],
    ids=["plain", "overlap, few blocks", "n-gram"],
)
def test_processes_say_what_one_rank_says(options: dict[str, Any], folder: Path) -> None:
    alone = Run.of(folder, max_model_len=96, max_num_seqs=4, **options)
    run = engine(folder, **options)
    assert tokens(run) == tokens(alone)
    assert len(run.preemptions()) == len(alone.preemptions())
    started = pids(run.llm)
    run.llm.engine.shutdown()
    assert faulty_parts.wait_until_ended(started, 5)


def test_a_pipeline_of_shared_stages(folder: Path) -> None:
    run = Run.of(
        folder,
        tensor_parallel_size=2,
        pipeline_parallel_size=2,
        max_model_len=96,
        max_num_seqs=4,
    )
    assert tokens(run) == tokens(Run.of(folder, max_model_len=96, max_num_seqs=4))


def test_four_ranks_copy_kv_heads(folder: Path) -> None:
    run = Run.of(folder, tensor_parallel_size=4, max_model_len=96, max_num_seqs=4)
    assert tokens(run) == tokens(Run.of(folder, max_model_len=96, max_num_seqs=4))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_run(rank: int, folder: Path) -> None:
    run = engine(folder)
    run.add([1, 2, 3], GREEDY)
    for _ in range(3):
        run.llm.engine.step()
    started = pids(run.llm)
    begin = time.monotonic()
    os.kill(started[rank], signal.SIGKILL)
    with pytest.raises(RankError, match=rf"rank {rank} was killed by signal 9 in step \d+; .*lost"):
        run.finish()
    assert time.monotonic() - begin < 10
    assert faulty_parts.wait_until_ended(started, 5)
    with pytest.raises(RankError, match=rf"rank {rank} was killed"):
        run.llm.engine.step()


def test_a_rank_that_fails_alone_is_named(folder: Path) -> None:
    run = engine(folder, components=Components(sampler=faulty_parts.FailsAlone))
    started = pids(run.llm)
    run.add([1, 2, 3], GREEDY)
    with pytest.raises(RankError, match=r"rank 1 raised ValueError \(bits flipped\) in step 3"):
        run.finish()
    assert faulty_parts.wait_until_ended(started, 5)


def test_what_all_ranks_raise_is_raised_and_the_engine_goes_on(folder: Path) -> None:
    run = engine(folder, components=Components(sampler=faulty_parts.FailsEverywhere))
    handle = run.add([1, 2, 3], GREEDY)
    with pytest.raises(QuireError, match="no fifth token today"):
        run.finish()
    run.llm.engine.abort_request(handle.request_id)
    again = run.add([1, 2, 3, 4, 5, 6], GREEDY)
    (output,) = run.finish_all([again])
    assert len(output.outputs[0].token_ids) == 12


def test_a_rank_that_chooses_otherwise_is_named(folder: Path) -> None:
    run = engine(folder, components=Components(sampler=faulty_parts.ChoosesOtherwise))
    run.add([1, 2, 3], GREEDY)
    with pytest.raises(QuireError, match=r"step 3: rank 1 chose other tokens than rank 0"):
        run.finish()


def test_a_broken_checkpoint_is_the_error_it_always_is(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[: 1 << 16])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        engine(tmp_path)


def test_what_cannot_be_sent_is_refused(folder: Path) -> None:
    class Local(faulty_parts.FailsAlone):
        pass

    with pytest.raises(QuireError, match=r"cannot be sent .*Local.*module that can be imported"):
        engine(folder, components=Components(sampler=Local))


SCRIPT = """
import sys
from quire import LLM, SamplingParams
llm = LLM(sys.argv[1], device="cpu", tensor_parallel_size=2, max_model_len=64, max_num_seqs=2)
print([p.pid for p in llm.engine.executor.ranks._processes], flush=True)
llm.generate([[1, 2, 3]], SamplingParams(max_tokens=4))
print("done", flush=True)
if len(sys.argv) > 2:
    input()
"""


def script(folder: Path, tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    """Run a script that makes an engine outside any `if __name__ == "__main__"`."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    command = [sys.executable, str(path), str(folder), *arguments]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ.copy()
    )


def test_a_script_needs_no_main_guard(folder: Path, tmp_path: Path) -> None:
    with script(folder, tmp_path) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    listed, done = output.splitlines()
    assert done == "done"
    assert faulty_parts.wait_until_ended([int(p) for p in listed.strip("[]").split(",")], 5)


def test_ranks_end_with_an_engine_that_was_killed(folder: Path, tmp_path: Path) -> None:
    with script(folder, tmp_path, "wait") as process:
        assert process.stdout is not None
        listed = process.stdout.readline()
        assert process.stdout.readline() == "done\n"
        process.kill()
    assert faulty_parts.wait_until_ended([int(p) for p in listed.strip("[]\n").split(",")], 5)
