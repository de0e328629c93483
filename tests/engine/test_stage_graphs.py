"""Stages of a pipeline that replay their decode steps: token for token what one rank says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import checkpoints
import pytest
import torch
from parallel_checkpoints import wide
from replayed_on_cpu import Stages

from quire import LLM, SamplingParams, Trace
from quire.parallel.comm import Comm
from quire.parallel.lockstep_executor import LockstepExecutor
from quire.parallel.place import Place
from quire.runner.decode_graphs import DecodeGraphs, Ending, batch_sizes

Written = Callable[[str], Path]
LENGTHS = [40, 1, 23, 33, 8]
GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
DRAWN = SamplingParams(temperature=0.9, seed=3, top_k=20, top_p=0.9, max_tokens=20, min_p=0.02)
SCORED = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=3)
SIZES: dict[str, Any] = {"max_num_seqs": 6, "max_model_len": 128}
FEW_BLOCKS: dict[str, Any] = {"num_blocks": 9, "watermark": 0.0}


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return lambda name: checkpoints.write(tmp_path / name, wide(name))


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Stages:
    return Stages(monkeypatch)


def said(llm: LLM, params: list[SamplingParams]) -> list[Any]:
    prompts = checkpoints.random_prompts(LENGTHS, seed=1)
    outputs = [output.outputs[0] for output in llm.generate(prompts, params, use_tqdm=False)]
    ranks = [[[v.rank for v in row.values()] for row in o.logprobs or []] for o in outputs]
    return [(o.token_ids, own) for o, own in zip(outputs, ranks, strict=True)]


KINDS = {
    "greedy": [GREEDY] * 5,
    "drawn": [DRAWN, GREEDY, DRAWN, GREEDY, DRAWN],
    "scored": [SCORED, GREEDY, DRAWN, GREEDY, GREEDY],
}


@pytest.mark.parametrize(
    ("name", "tensor", "pipeline", "kind", "options"),
    [
        ("qwen3-sharded", 1, 2, "greedy", {}),
        ("mistral", 1, 3, "drawn", {}),
        ("qwen2-two-groups", 2, 2, "scored", {}),
        ("mistral", 2, 2, "drawn", FEW_BLOCKS),
        ("qwen3-sharded", 1, 2, "drawn", {"overlap": True, "max_num_batched_tokens": 16}),
        ("mixtral", 1, 2, "drawn", {}),
    ],
)
def test_replayed_stages_say_what_one_rank_says(
    name: str,
    tensor: int,
    pipeline: int,
    kind: str,
    options: dict[str, Any],
    stages: Stages,
    written: Written,
) -> None:
    folder, params = written(name), KINDS[kind]
    expected = said(LLM(folder, device="cpu", dtype="float32", **SIZES, **options), params)
    trace = Trace()
    llm = stages.engine(
        folder,
        tensor_parallel_size=tensor,
        pipeline_parallel_size=pipeline,
        trace=trace,
        **SIZES,
        **options,
    )
    assert said(llm, params) == expected

    executor = cast(LockstepExecutor, llm.engine.executor)
    graphs = executor.workers[0].runner.graphs
    assert graphs is not None
    steps = [step.scheduled for step in trace.steps if step.scheduled.entries]
    replayed = [step for step in steps if graphs.fits(step)]
    num_ranks = tensor * pipeline
    assert stages.seen.endings.total() == len(replayed) * num_ranks
    assert len(replayed) > 20
    # Only the last stage chooses: the others' graphs end with what they hand on.
    handed_on = len(replayed) * tensor * (pipeline - 1)
    assert stages.seen.endings[Ending.HIDDEN] >= handed_on
    if kind == "greedy":
        assert stages.seen.endings[Ending.GREEDY] == len(replayed) * tensor
    if options == FEW_BLOCKS:
        assert any(step.preempted_ids for step in steps)
    for worker in executor.workers:
        its = worker.runner.graphs
        assert its is not None
        place = worker._model.place
        endings = set(Ending) if place.is_last else {Ending.HIDDEN}
        assert {ending for _, _, ending in its._graphs} == endings
        assert len(its._received) == (0 if place.is_first else SIZES["max_num_seqs"])


def test_padded_rows_travel(stages: Stages, written: Written) -> None:
    """Of five requests three decode in one step, in a graph of four rows, and two in the other."""
    llm = stages.engine(written("mistral"), pipeline_parallel_size=2, **SIZES)
    said(llm, KINDS["greedy"])
    sizes = Counter(stages.seen.message_rows)
    assert sizes.keys() == {sum(LENGTHS), 4, 2}  # the prompts are one step
    assert sizes[4] == sizes[2] == GREEDY.output_limit - 1


def test_loads_of_experts_leave_padding_out(stages: Stages, written: Written) -> None:
    folder = written("qwen3-moe")
    options: dict[str, Any] = {"record_expert_loads": True, **SIZES}
    alone = LLM(folder, device="cpu", dtype="float32", **options)
    llm = stages.engine(
        folder,
        tensor_parallel_size=2,
        pipeline_parallel_size=2,
        enable_expert_parallel=True,
        **options,
    )
    assert said(llm, KINDS["greedy"]) == said(alone, KINDS["greedy"])
    assert llm.expert_loads() == alone.expert_loads()
    assert stages.seen.endings[Ending.GREEDY] > 0


class End:
    """A rank's end of a group, whose peers fill what it receives with their number."""

    graph_safe = True

    def __init__(self, rank: int, size: int, *, in_place: bool) -> None:
        self.rank, self.size, self._in_place = rank, size, in_place
        self.sent: list[tuple[int, list[float]]] = []

    def receive(self, like: torch.Tensor, source: int) -> torch.Tensor:
        received = like if self._in_place else torch.empty_like(like)
        return received.fill_(source + 1)

    def send(self, x: torch.Tensor, target: int) -> None:
        self.sent.append((target, x.flatten().tolist()))


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_messages_stand_around_the_work(rank: int, in_place: bool) -> None:
    end = End(rank, 3, in_place=in_place)
    place = Place(pipeline=cast(Comm, end))
    assert place.graph_safe
    received, handed_on = torch.zeros(2, 1), torch.zeros(2, 1)

    def work() -> None:
        assert not end.sent
        handed_on.copy_(received + 10)

    place.queue(work, 1, received, handed_on)
    assert received.flatten().tolist() == [float(rank)] * 2
    assert end.sent == ([] if rank == 2 else [(rank + 1, [rank + 10.0] * 2)])


@pytest.mark.gpu
@pytest.mark.parametrize("model", ["quire-mini", "quire-mini-moe"])
@pytest.mark.parametrize("pipeline", [2, 3])
def test_stages_on_a_gpu_replay_graphs(
    pipeline: int, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks that take turns on one GPU: each captures alone, and all say what one rank says."""
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("no Triton kernels serve here")
    sizes: list[tuple[bool, int]] = []
    replay = DecodeGraphs.replay

    def noted(self: DecodeGraphs, entries: Any, ending: Ending) -> torch.Tensor:
        sizes.append((self._parts.model.place.is_last, len(entries)))
        return replay(self, entries, ending)

    monkeypatch.setattr(DecodeGraphs, "replay", noted)
    options: dict[str, Any] = {"dtype": "float32", "num_blocks": 100, **SIZES}
    params = KINDS["scored"]
    expected = said(LLM(model, **options), params)
    sizes.clear()
    llm = LLM(
        model,
        pipeline_parallel_size=pipeline,
        distributed_executor_backend="lockstep",
        **options,
    )
    assert said(llm, params) == expected
    executor = cast(LockstepExecutor, llm.engine.executor)
    assert all(worker.runner.graphs is not None for worker in executor.workers)
    by_stage = Counter(is_last for is_last, _ in sizes)
    assert by_stage[False] == (pipeline - 1) * by_stage[True] > 20
    if pipeline == 2:  # three of five requests, in a graph of four
        assert {size for _, size in sizes} - set(batch_sizes(SIZES["max_num_seqs"])) == {3}
