"""The benchmarks of ranks, as far as they go without GPUs: rows, loads, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from quire import QuireError
from quire.analysis import catalog_config
from quire.bench import collectives, parallel
from quire.bench.engine import mix256
from quire.models.config import ModelConfig
from quire.parallel.options import ParallelOptions

CUDA = torch.device("cuda")


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


def large() -> ModelConfig:
    config = catalog_config("Qwen3-8B")
    assert config is not None
    return config


def test_gpus_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(QuireError, match=r"bench parallel needs two GPUs, and torch sees 1"):
        parallel.run(large(), "qwen3-8b", CUDA)
    with pytest.raises(QuireError, match=r"bench collectives needs two GPUs, and torch sees 1"):
        collectives.run(CUDA)


@pytest.mark.usefixtures("four_gpus")
def test_layouts_that_are_not_there() -> None:
    with pytest.raises(QuireError, match=r"layout 'tp8' needs 8 GPUs, torch sees 4"):
        parallel.run(large(), "qwen3-8b", CUDA, ("tp8",))
    with pytest.raises(QuireError, match=r"layout 'ring': must be one of one, tp2, "):
        parallel.run(large(), "qwen3-8b", CUDA, ("ring",))


@pytest.mark.usefixtures("four_gpus")
def test_runs_stand_beside_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(_: ModelConfig, options: ParallelOptions) -> dict[str, parallel.Value]:
        return {"batch1": (8.0 / options.num_ranks, "ms_per_token", "ms")}

    monkeypatch.setattr(parallel, "measure", measure)
    rows = parallel.run(large(), "qwen3-8b", CUDA)
    found = {row.case: row for row in rows}
    names = ["one", "tp2", "pp2", "dp2", "tp4", "tp2pp2", "tp2dp2", "dp4"]
    assert list(found) == [f"qwen3-8b-{name}-batch1" for name in names]
    assert found["qwen3-8b-one-batch1"].baselines == {}
    assert found["qwen3-8b-tp4-batch1"].value == 2.0
    assert found["qwen3-8b-tp4-batch1"].baselines == {"one": 8.0}
    assert found["qwen3-8b-tp2dp2-batch1"].parameters == {"gpus": 4}
    (row,) = parallel.run(large(), "qwen3-8b", CUDA, ("tp2",))
    assert row.baselines == {}


def test_replicas_have_as_much_each_and_no_prompt_twice() -> None:
    prompts, params = mix256()
    several, theirs = parallel.for_each((prompts, params), 4)
    assert len({tuple(prompt) for prompt in several}) == len(several) == 4 * len(prompts)
    assert [len(prompt) for prompt in several] == 4 * [len(prompt) for prompt in prompts]
    assert theirs == 4 * params
    assert several[: len(prompts)] == prompts


@pytest.mark.usefixtures("four_gpus")
def test_rows_of_collectives(monkeypatch: pytest.MonkeyPatch) -> None:
    def spawn(_: Any, args: tuple[int, str, str], nprocs: int) -> None:
        size, _, answers = args
        assert size == nprocs
        found = {
            "all-reduce": {8: {"nccl": 12.0, "launched": 30.0, "one-shot": 6.0}},
            "sum-norm": {8: {"fused": 3.0, "apart": 8.0}},
            "all-to-all": {8192: {"nccl": 40.0 * size}},
        }
        torch.save(found, Path(answers))

    monkeypatch.setattr(collectives, "spawn", spawn)
    rows = {row.case: row for row in collectives.run(CUDA)}
    assert {row.parameters["ranks"] for row in rows.values()} == {2, 4}
    assert rows["all-reduce-8kb-nccl-x2"].baselines == {}
    assert rows["all-reduce-8kb-launched-x4"].baselines == {"nccl": 12.0}
    fused = rows["sum-norm-8kb-x4"]
    assert (fused.value, fused.baselines) == (3.0, {"apart": 8.0})
    assert fused.parameters == {"ranks": 4, "kilobytes": 8}
    assert rows["all-to-all-8192kb-nccl-x4"].value == 160.0
