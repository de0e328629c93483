"""Engines of several ranks, in lockstep: token for token what one rank says."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import checkpoints
import pytest
from parallel_checkpoints import wide
from runs import Run

from quire import LLM, QuireError, SamplingParams
from quire.components import Components
from quire.models.config import ModelConfig
from quire.parallel.place import split_layers
from quire.resources import shipped_models
from quire.scheduler import TokenBudgetScheduler

Written = Callable[[str], Path]
LENGTHS = [40, 1, 23, 33]
LOCKSTEP = {"distributed_executor_backend": "lockstep"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Return the folder of a wide checkpoint, written once."""
    root = tmp_path_factory.mktemp("wide")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            checkpoints.write(root / name, wide(name))
        return root / name

    return folder


MIXED = [
    SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, logprobs=3),
    SamplingParams(temperature=0.9, seed=3, top_k=20, top_p=0.9, max_tokens=20, n=3),
    SamplingParams(temperature=1.0, seed=5, max_tokens=24, min_p=0.05, prompt_logprobs=2),
    SamplingParams(
        temperature=0.7,
        seed=7,
        repetition_penalty=1.2,
        presence_penalty=0.3,
        min_tokens=4,
        stop_token_ids=[5, 9],
        logit_bias={3: 2.0},
        max_tokens=20,
    ),
]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "few blocks": {"num_blocks": 9, "max_model_len": 96, "watermark": 0.0},
    "chunks": {"max_num_batched_tokens": 16},
    "overlap": {"overlap": True},
    "int8 cache": {"kv_cache_dtype": "int8"},
    "window": {"kv_window": 24, "kv_sinks": 4},
    "host blocks": {
        "num_blocks": 14,
        "max_model_len": 128,
        "num_host_blocks": 20,
        "watermark": 0.0,
    },
    "n-gram": {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}},
}


def outputs(folder: Path, **options: Any) -> tuple[list[Any], Run]:
    run = Run.of(folder, max_num_seqs=4, **options)
    prompts = checkpoints.random_prompts(LENGTHS, seed=1)
    handles = [run.add(p, own) for p, own in zip(prompts, MIXED, strict=True)]
    handles += [run.add(prompts[0], MIXED[0])]  # whose prefix is cached by then
    found = []
    for output in run.finish_all(handles):
        scores = [[*(c.logprobs or [])] for c in output.outputs] + [output.prompt_logprobs or []]
        found.append(
            (
                [c.token_ids for c in output.outputs],
                [c.finish_reason for c in output.outputs],
                [
                    [(token, value.rank) for token, value in (row or {}).items()]
                    for rows in scores
                    for row in rows
                ],
            )
        )
    return found, run


LAYOUTS = [(2, 1), (2, 2), (4, 1), (1, 2), (1, 3)]  # ranks a stage, stages


@pytest.mark.parametrize("option", OPTIONS)
def test_an_engine_of_several_ranks_says_the_same(option: str, written: Written) -> None:
    names = ["qwen3-sharded", "llama-linear-biased", "qwen2-two-groups"]
    folder, options = written(names[list(OPTIONS).index(option) % 3]), OPTIONS[option]
    expected, alone = outputs(folder, **options)
    for tensor, pipeline in LAYOUTS[: None if option in ("plain", "few blocks") else 2]:
        if pipeline > 1 and option == "n-gram":
            continue  # refused, see below
        sizes = {"tensor_parallel_size": tensor, "pipeline_parallel_size": pipeline}
        found, run = outputs(folder, **sizes, **LOCKSTEP, **options)
        assert found == expected, (tensor, pipeline)
        if pipeline == 1:
            assert run.hits() == alone.hits()
            assert len(run.preemptions()) == len(alone.preemptions())
    if option == "few blocks":
        assert alone.preemptions()


@pytest.mark.parametrize("name", ["qwen3-moe", "mixtral"])
def test_engines_whose_ranks_share_experts_say_the_same(name: str, written: Written) -> None:
    expected, _ = outputs(written(name), num_blocks=9, max_model_len=96, watermark=0.0)
    for tensor, pipeline in [(2, 1), (4, 1), (2, 2)]:
        found, _ = outputs(
            written(name),
            num_blocks=9,
            max_model_len=96,
            watermark=0.0,
            tensor_parallel_size=tensor,
            pipeline_parallel_size=pipeline,
            enable_expert_parallel=True,
            **LOCKSTEP,
        )
        assert found == expected, (tensor, pipeline)


def test_stages_work_on_different_requests(written: Written) -> None:
    """Once all decode, each step has half of them, and no request is in two steps in flight."""
    run = Run.of(written("mistral"), pipeline_parallel_size=2, max_num_seqs=4, **LOCKSTEP)
    prompts = checkpoints.random_prompts([5, 6, 7, 8], seed=1)
    run.generate(prompts, SamplingParams(temperature=0, max_tokens=9, ignore_eos=True))
    steps = [
        {entry.request_id for entry in recorded.scheduled.entries}
        for recorded in run.trace.steps
        if recorded.scheduled.entries
    ]
    assert [len(step) for step in steps[1:]] == [2] * 16
    assert all(not step & following for step, following in pairwise(steps[1:]))


def test_layers_are_split_by_what_a_stage_reads() -> None:
    """Qwen3-8B's head weighs 3.2 layers: 20 and 16."""
    shape = {
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 151936,
    }
    config = ModelConfig.from_dict(shape)
    sizes = [[len(stage) for stage in split_layers(config, n)] for n in (1, 2, 3, 4)]
    assert sizes == [[36], [20, 16], [13, 13, 10], [10, 10, 10, 6]]
    mini = ModelConfig.from_folder(shipped_models()["quire-mini"])
    for number in range(1, mini.num_layers + 1):
        stages = split_layers(mini, number)
        assert [layer for stage in stages for layer in stage] == list(range(mini.num_layers))
        assert all(stages)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pipeline_parallel_size": 9}, r"pipeline_parallel_size=9: .*num_hidden_layers=8"),
        (
            {"pipeline_parallel_size": 2, "speculative_config": {"method": "ngram"}},
            r"pipeline_parallel_size=2 with speculative_config",
        ),
        (
            {
                "pipeline_parallel_size": 2,
                "components": Components(scheduler=TokenBudgetScheduler),
            },
            r"pipeline_parallel_size=2 with a scheduler of your own",
        ),
    ],
)
def test_what_a_pipeline_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(QuireError, match=message):
        LLM("quire-mini", device="cpu", **LOCKSTEP, **options)


def test_a_rank_that_chooses_otherwise_is_named(written: Written) -> None:
    run = Run.of(
        written("mistral"), tensor_parallel_size=2, distributed_executor_backend="lockstep"
    )
    runner = run.llm.engine.executor.workers[1].runner  # type: ignore[attr-defined]
    compute = runner._parts.model.compute_logits
    runner._parts.model.compute_logits = lambda hidden: -compute(hidden)
    run.add([1, 2, 3], MIXED[0])
    with pytest.raises(QuireError, match=r"step \d: rank 1 chose .*rank 0"):
        run.finish()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensor_parallel_size": 0}, r"tensor_parallel_size=0: must be .*at least 1"),
        (
            {"distributed_executor_backend": "ray"},
            r"'ray': must be one of mp, external_launcher",
        ),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(QuireError, match=message):
        LLM("quire-mini", device="cpu", **options)


def test_functions_of_a_request_are_refused(written: Written) -> None:
    run = Run.of(
        written("mistral"), tensor_parallel_size=2, distributed_executor_backend="lockstep"
    )
    params = SamplingParams(logits_processors=[lambda ids, logits: logits])
    with pytest.raises(QuireError, match="logits_processors with 2 ranks: each rank would call"):
        run.add([1, 2, 3], params)
    assert not run.llm.engine.has_requests


@pytest.mark.parametrize("number", ["auto", 3])
def test_draft_models_guess_on_every_rank(number: int | str) -> None:
    """Each rank has all of the draft model, so their guesses are the same; three steps ahead."""
    prompts, params = ["def f(x):", "import os"], SamplingParams(max_tokens=16, seed=2)
    found = []
    for size in (1, 2):
        llm = LLM(
            "quire-mini",
            device="cpu",
            max_model_len=64,
            max_num_seqs=2,
            tensor_parallel_size=size,
            distributed_executor_backend="lockstep",
            overlap=size == 2,
            speculative_config={
                "method": "draft_model",
                "model": "quire-mini-draft",
                "num_speculative_tokens": number,
            },
        )
        found.append([output.outputs[0].token_ids for output in llm.generate(prompts, params)])
        assert bool(llm.engine.executor.round_costs) == (number == "auto")
    assert found[0] == found[1]
