"""Prompts that come alone: replayed, they say what they say when run kernel by kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoints
import pytest
from parallel_checkpoints import wide
from replayed_on_cpu import PARTS, Stages, UnhostedAttention

from quire import LLM, RequestOutput, SamplingParams, Trace
from quire.messages import ScheduledEntry
from quire.parallel.lockstep_executor import LockstepExecutor
from quire.runner import model_runner

Written = Callable[[str], Path]
PARAMS = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, logprobs=2, prompt_logprobs=1)
DRAWN = SamplingParams(temperature=0.9, seed=5, max_tokens=5, ignore_eos=True)
LENGTHS = [1, 2, 16, 17, 40, 63, 77]
SIZES: dict[str, Any] = {"max_num_seqs": 3, "max_model_len": 100, "block_size": 8}
# Of 100 tokens a step the last length captured is 100; of 24, longer prompts come in chunks.
REPLAYED = [(16, 2), (16, 16), (32, 17), (64, 40), (64, 63), (100, 77)]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return lambda name: checkpoints.write(tmp_path / name, wide(name))


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Stages:
    return Stages(monkeypatch)


def said(llm: LLM) -> list[RequestOutput]:
    """One prompt at a time; the second time with a prefix, where one is kept."""
    outputs = []
    for params in (PARAMS, DRAWN, replace(PARAMS, prompt_logprobs=None)):
        for length in LENGTHS:
            (prompt,) = checkpoints.random_prompts([length], seed=length)
            outputs += llm.generate([prompt], params, use_tqdm=False)
    return outputs


def assert_same(outputs: list[RequestOutput], expected: list[RequestOutput]) -> None:
    """Tokens are equal, log-probabilities nearly: a padded product may add in another order."""
    for output, other in zip(outputs, expected, strict=True):
        (one,), (two,) = output.outputs, other.outputs
        assert one.token_ids == two.token_ids
        rows = [*(one.logprobs or []), *(output.prompt_logprobs or [])]
        others = [*(two.logprobs or []), *(other.prompt_logprobs or [])]
        for row, its in zip(rows, others, strict=True):
            found = {token: v.logprob for token, v in (row or {}).items()}
            assert found == pytest.approx({t: v.logprob for t, v in (its or {}).items()}, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("qwen3-sharded", {}),
        ("qwen3-sharded", {"enable_prefix_caching": False, "overlap": True}),
        ("qwen2-two-groups", {}),
        ("mistral", {"kv_window": 24, "kv_sinks": 3, "enable_prefix_caching": False}),
        ("qwen3-sharded", {"kv_cache_dtype": "int8"}),
        ("mixtral", {}),
        ("llama3-scaled", {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}}),
    ],
)
def test_one_rank(name: str, options: dict[str, Any], stages: Stages, written: Written) -> None:
    folder = written(name)
    plain = LLM(folder, device="cpu", dtype="float32", components=PARTS, **SIZES, **options)
    expected = said(plain)
    assert not stages.seen.prompts
    assert_same(said(stages.one_rank(folder, **SIZES, **options)), expected)
    assert stages.seen.prompts[: len(REPLAYED)] == REPLAYED  # a single token is no prompt here
    assert all(size >= count > 1 for size, count in stages.seen.prompts)


def test_chunks(stages: Stages, written: Written) -> None:
    """A budget of 24 tokens is the last length captured: each chunk is replayed."""
    folder, options = written("mistral"), {"max_num_batched_tokens": 24, **SIZES}
    expected = said(LLM(folder, device="cpu", dtype="float32", **options))
    assert_same(said(stages.one_rank(folder, **options)), expected)
    chunks = [(16, 2), (16, 16), (24, 17), (24, 24), (16, 16), *[(24, 24)] * 2, (16, 15)]
    assert stages.seen.prompts[: len(chunks)] == chunks


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mistral", {"pipeline_parallel_size": 2}),
        ("qwen2-two-groups", {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}),
        (
            "qwen3-moe",
            {
                "tensor_parallel_size": 2,
                "enable_expert_parallel": True,
                "record_expert_loads": True,
            },
        ),
    ],
)
def test_ranks(name: str, options: dict[str, Any], stages: Stages, written: Written) -> None:
    """Every rank replays, and what is padding counts as no expert's load."""
    folder = written(name)
    records = {key: options[key] for key in ("record_expert_loads",) if key in options}
    alone = LLM(folder, device="cpu", dtype="float32", **SIZES, **records)
    expected = said(alone)
    llm = stages.engine(folder, **SIZES, **options)
    assert_same(said(llm), expected)
    executor = llm.engine.executor
    assert isinstance(executor, LockstepExecutor)
    ranks = len(executor.workers)
    assert sorted(stages.seen.prompts[: ranks * len(REPLAYED)]) == sorted(REPLAYED * ranks)
    if records:
        assert llm.expert_loads() == alone.expert_loads()


def test_a_draft_model(stages: Stages, written: Written) -> None:
    """It reads a prompt behind the model, and guesses as it does without graphs."""
    folder = written("qwen3-sharded")
    options: dict[str, Any] = {
        **SIZES,
        "enable_prefix_caching": False,
        "speculative_config": {
            "method": "draft_model",
            "model": str(folder),
            "num_speculative_tokens": 3,
        },
    }

    def kept(llm: LLM) -> list[tuple[int, int]]:
        trace = llm.engine.trace = Trace()
        for length in LENGTHS:
            (prompt,) = checkpoints.random_prompts([length], seed=length)
            llm.generate([prompt], DRAWN, use_tqdm=False)
        return trace.acceptance()

    expected = kept(LLM(folder, device="cpu", dtype="float32", components=PARTS, **options))
    assert not stages.seen.prompts
    found = kept(stages.one_rank(folder, **options))
    assert found == expected
    assert sum(number for _, number in found) > 20
    lengths = [count for _, count in stages.seen.prompts]
    assert lengths == [n for n in LENGTHS if n > 1 for _ in range(2)]


def test_which_steps_are_replayed(stages: Stages, tmp_path: Path) -> None:
    """One request of 2 to so many tokens; a step that holds anything else is not."""
    folder = checkpoints.write(tmp_path, wide("mistral", max_position_embeddings=2048))
    llm = stages.one_rank(folder, max_num_seqs=3, max_model_len=2000, num_blocks=400)
    graphs = llm.engine.executor.worker.runner.prompt_graphs  # type: ignore[attr-defined]

    def entry(num_tokens: int, num_drafts: int = 0) -> ScheduledEntry:
        return ScheduledEntry("a", 0, 0, num_tokens, True, (), num_drafts)

    sizes = {n: graphs.padded_length([entry(n)]) for n in (1, 2, 16, 129, 1023, 1024, 1025)}
    assert sizes == {1: None, 2: 16, 16: 16, 129: 192, 1023: 1024, 1024: 1024, 1025: None}
    assert graphs.padded_length([entry(4, 3)]) is None
    assert graphs.padded_length([entry(4), entry(4)]) is None


def test_a_budget_of_one_token_captures_nothing(stages: Stages, written: Written) -> None:
    llm = stages.one_rank(written("mistral"), max_num_batched_tokens=1, **SIZES)
    (output,) = llm.generate([[1, 2, 3]], DRAWN, use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 5
    assert not stages.seen.prompts


def test_a_backend_that_does_not_say_so_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, stages: Stages, written: Written
) -> None:
    """One that serves captured decode steps need not know of captured prompts."""
    made: list[str] = []

    class Decodes:
        def __init__(self, parts: object) -> None:
            made.append("decodes")
            self.pool = None

    class Prompts:
        def __init__(self, parts: object, pool: object) -> None:
            made.append("prompts")

    monkeypatch.setattr(model_runner, "DecodeGraphs", Decodes)
    monkeypatch.setattr(model_runner, "PromptGraphs", Prompts)

    class Older(UnhostedAttention):
        captures_prompts = False

    llm = LLM(written("mistral"), device="cpu", dtype="float32", components=PARTS, **SIZES)
    runner = llm.engine.executor.worker.runner  # type: ignore[attr-defined]
    for backend in (UnhostedAttention(), Older()):
        made.clear()
        runner._capture(backend)
        assert made == (["decodes"] if isinstance(backend, Older) else ["decodes", "prompts"])
