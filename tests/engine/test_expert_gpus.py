"""Experts shared by two GPUs: copies and capacities in captured graphs, and the exchange."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from quire import LLM, SamplingParams
from quire.kernels.runtime import compilations

SIZES: dict[str, Any] = {"max_model_len": 256, "max_num_seqs": 8, "num_blocks": 200}
PARAMS = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
# Eight requests and eight rows: steps of 1 to 8 tokens, some of them in padded graphs. The longest
# prompt comes first, as captured steps have the longest sequence in the first row, and of an expert
# that is full the first rows have the places.
PROMPTS = ["for i in range(10):\n", "def fibonacci(n):", "import os\n", "class A:"] * 2
PROMPTS = sorted(PROMPTS, key=len, reverse=True)


def run(**options: Any) -> tuple[list[list[int]], LLM]:
    """Return the tokens of a model in float32, and its engine."""
    llm = LLM("quire-mini-moe", dtype="float32", **SIZES, **options)
    return answers(llm), llm


def answers(llm: LLM) -> list[list[int]]:
    """Return the tokens of answers that end one after the other, so that one is left alone."""
    params = [
        SamplingParams(temperature=0, max_tokens=20 + 3 * n, ignore_eos=True)
        for n in range(len(PROMPTS))
    ]
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.gpu
def test_graphs_count_what_requests_asked_for() -> None:
    """Padding is nobody's: captured or kernel by kernel, the counts are the same."""
    found = []
    for graphs in (True, False):
        tokens, llm = run(cuda_graphs=graphs, record_expert_loads=True)
        worker = llm.engine.executor.worker  # type: ignore[attr-defined]
        assert (worker.runner.graphs is not None) is graphs
        found.append((tokens, llm.expert_loads()))
    assert found[0] == found[1]
    assert sum(found[0][1].tokens[0]) > 0


@pytest.mark.gpu
def test_graphs_turn_away_what_kernels_turn_away() -> None:
    """A padded step has the capacity of its tokens, not of its rows."""
    assert (
        run(cuda_graphs=True, expert_capacity_factor=1.0)[0]
        == run(cuda_graphs=False, expert_capacity_factor=1.0)[0]
        != run()[0]
    )


@pytest.fixture
def loads(tmp_path: Path) -> str:
    """Return a file of loads that differ from layer to layer."""
    table = {str(layer): [(7 * e + 3 * layer) % 16 for e in range(16)] for layer in range(4)}
    path = tmp_path / "loads.json"
    path.write_text(json.dumps({"num_experts": 16, "tokens": table}))
    return str(path)


@pytest.mark.gpu
@pytest.mark.two_gpus
@pytest.mark.whole_gpu
@pytest.mark.parametrize(
    "given",
    [
        {},  # the router spreads the pairs
        {"record_expert_loads": True},
        {"record_expert_loads": True, "expert_capacity_factor": 1.0},
    ],
    ids=["plain", "counted", "limited"],
)
@pytest.mark.parametrize("graphs", [True, False])
def test_two_gpus_with_copies(graphs: bool, given: dict[str, Any], loads: str) -> None:
    expected, alone = run(**given)
    found, llm = run(
        tensor_parallel_size=2,
        enable_expert_parallel=True,
        num_redundant_experts=4,
        expert_loads=loads,
        cuda_graphs=graphs,
        **given,
    )
    assert found == expected
    if given:
        assert llm.expert_loads() == alone.expert_loads()
    llm.engine.shutdown()


@pytest.mark.gpu
@pytest.mark.two_gpus
@pytest.mark.whole_gpu
@pytest.mark.parametrize("factor", [None, 1.0])
def test_two_gpus_exchange_tokens(factor: float | None, loads: str) -> None:
    given: dict[str, Any] = {"record_expert_loads": True, "expert_capacity_factor": factor}
    expected, alone = run(**given)
    found, llm = run(
        tensor_parallel_size=2,
        enable_expert_parallel=True,
        expert_dispatch="all_to_all",
        num_redundant_experts=2,
        expert_loads=loads,
        **given,
    )
    assert not llm.config.model.cuda_graphs
    assert found == expected
    assert llm.expert_loads() == alone.expert_loads()
    llm.engine.shutdown()


@pytest.mark.gpu
def test_copies_compile_nothing_while_serving(loads: str) -> None:
    """Two ranks on one GPU: the tokens of one rank, with the kernels of the warm-up."""
    llm = LLM(
        "quire-mini-moe",
        dtype="float32",
        tensor_parallel_size=2,
        distributed_executor_backend="lockstep",
        enable_expert_parallel=True,
        num_redundant_experts=4,
        expert_loads=loads,
        cuda_graphs=False,
        **SIZES,
    )
    with compilations() as names:
        found = answers(llm)
    assert names == []
    assert found == run()[0]


@pytest.mark.gpu
def test_an_exchange_compiles_nothing_while_serving() -> None:
    """Its warm-up brings router and experts every kind of number of rows."""
    from functools import partial

    from quire.layers.moe import MoE
    from quire.models.moe_config import MoEConfig
    from quire.parallel.expert_plan import ExpertPlan
    from quire.parallel.lockstep import Lockstep
    from quire.parallel.place import Place

    world, device = Lockstep(2), torch.device("cuda")
    config = MoEConfig(16, 2, 64, True, (0,))

    def layer(rank: int) -> MoE:
        plan = ExpertPlan(dispatch="all_to_all")
        place = Place(tensor=world.comm(rank), expert_parallel=True, experts=plan)
        moe = MoE(config, 128, "model.layers.0.mlp", torch.bfloat16, device, place)
        moe.fill_random(torch.Generator(device).manual_seed(0))
        return moe

    layers = [layer(rank) for rank in range(2)]
    for moe in layers:
        moe.warm_up()
    with compilations() as names:
        for number in (1, 2, 5, 31, 64, 65, 200, 700, 3000):
            x = torch.randn(number, 128, device=device).bfloat16()
            world.run([partial(moe, x) for moe in layers])
    assert names == []
