"""Ranks on two GPUs: over NCCL and over peers' memory, in captured graphs."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
from runs import Run

from quire import LLM, QuireError, SamplingParams
from quire.components import Components
from quire.parallel.processes import RankError

pytestmark = [pytest.mark.gpu, pytest.mark.two_gpus, pytest.mark.whole_gpu]

PARAMS = [
    SamplingParams(temperature=0, max_tokens=40, ignore_eos=True),
    SamplingParams(temperature=0.9, seed=3, top_p=0.9, max_tokens=40, n=2, ignore_eos=True),
    SamplingParams(temperature=1.0, seed=5, max_tokens=40, logprobs=2, ignore_eos=True),
]
SIZES = {"max_model_len": 256, "max_num_seqs": 8, "num_blocks": 100}


def tokens(llm: LLM) -> list[list[list[int]]]:
    prompts = ["def fibonacci(n):", "import os\n", "class A:"]
    return [[c.token_ids for c in o.outputs] for o in llm.generate(prompts, PARAMS)]


def five(llm: LLM) -> list[list[int]]:
    """Five requests; each has one sample, as a second one begins in a step without a prompt."""
    prompts = checkpoints.random_prompts([40, 9, 23, 33, 8], seed=1)
    params = [replace(own, n=1) for own in (*PARAMS, PARAMS[0], PARAMS[0])]
    return [output.outputs[0].token_ids for output in llm.generate(prompts, params)]


@pytest.mark.parametrize("model", ["quire-mini", "quire-mini-moe"])
@pytest.mark.parametrize(
    "options",
    [
        {"tensor_parallel_size": 2},
        {"tensor_parallel_size": 2, "cuda_graphs": False},
        {"tensor_parallel_size": 2, "enable_expert_parallel": True},
        {"pipeline_parallel_size": 2},
        {"data_parallel_size": 2},
    ],
    ids=["matrices", "kernel by kernel", "experts", "pipeline", "replicas"],
)
def test_two_gpus_say_what_one_says(options: dict[str, Any], model: str) -> None:
    """float32: no rounding hides a wrong sum."""
    alone = tokens(LLM(model, dtype="float32", **SIZES))
    llm = LLM(model, dtype="float32", **SIZES, **options)
    assert tokens(llm) == alone
    llm.engine.shutdown()


@pytest.mark.parametrize("model", ["quire-mini", "quire-mini-moe"])
def test_stages_replay_their_decode_steps(model: str) -> None:
    """Five requests, three of them in one step: a graph of four rows, on both stages."""
    from replayed_only import ReplayedOnly  # needs Triton

    alone = five(LLM(model, dtype="float32", **SIZES))
    parts = Components(attention=ReplayedOnly)
    llm = LLM(model, dtype="float32", pipeline_parallel_size=2, components=parts, **SIZES)
    assert five(llm) == alone
    llm.engine.shutdown()


def test_a_step_that_is_not_replayed_is_seen() -> None:
    """What the test above relies on."""
    from replayed_only import ReplayedOnly  # needs Triton

    llm = LLM(
        "quire-mini",
        pipeline_parallel_size=2,
        cuda_graphs=False,
        components=Components(attention=ReplayedOnly),
        **SIZES,
    )
    with pytest.raises(QuireError, match="a decode step of 1 requests was not replayed"):
        llm.generate(["def fibonacci(n):"], PARAMS[0])
    llm.engine.shutdown()


@pytest.mark.four_gpus
@pytest.mark.parametrize("model", ["quire-mini", "quire-mini-moe"])
def test_two_stages_of_two_gpus_each(model: str) -> None:
    """The sums of a stage's ranks lie in its graphs, and what it hands on outside."""
    from replayed_only import ReplayedOnly  # needs Triton

    alone = five(LLM(model, dtype="float32", **SIZES))
    llm = LLM(
        model,
        dtype="float32",
        tensor_parallel_size=2,
        pipeline_parallel_size=2,
        components=Components(attention=ReplayedOnly),
        **SIZES,
    )
    assert five(llm) == alone
    llm.engine.shutdown()


def test_bfloat16_over_peers_memory(tmp_path: Path) -> None:
    """Sums of 16 bits go in one shot: greedy tokens stay among the best of the whole model."""
    folder = checkpoints.write(tmp_path, checkpoints.SPECS["qwen3-sharded"])
    model = checkpoints.transformers_model(folder)
    llm = LLM(folder, dtype="bfloat16", tensor_parallel_size=2, **SIZES)
    (output,) = llm.generate([[5, 6, 7, 8]], PARAMS[0])
    chosen = output.outputs[0].token_ids
    logits = checkpoints.oracle_logits(model, [5, 6, 7, 8, *chosen])[3:-1]
    ranks = (logits > logits.gather(1, torch.tensor(chosen)[:, None])).sum(1)
    assert int(ranks.max()) < 5
    llm.engine.shutdown()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_frees_both_gpus(rank: int) -> None:
    run = Run(LLM("quire-mini", tensor_parallel_size=2, **SIZES), None)  # type: ignore[arg-type]
    before = [torch.cuda.mem_get_info(gpu)[0] for gpu in (0, 1)]
    run.add([1, 2, 3], SamplingParams(max_tokens=200, ignore_eos=True))
    for _ in range(5):
        run.llm.engine.step()
    processes = run.llm.engine.executor.ranks._processes  # type: ignore[attr-defined]
    begin = time.monotonic()
    os.kill(processes[rank].pid, signal.SIGKILL)
    with pytest.raises(RankError, match=rf"rank {rank} was killed by signal 9 in step"):
        run.finish()
    assert time.monotonic() - begin < 10
    for gpu in (0, 1):
        assert torch.cuda.mem_get_info(gpu)[0] > before[gpu] + 100e6
