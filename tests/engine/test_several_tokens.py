"""Steps that give a request several tokens: everything is as if they had come one by one."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

sys.path.insert(0, str(Path(__file__).parent / "protocols"))
from fake_device import EOS, VOCAB_SIZE, FakeDevice

from quire import QuireError, RequestOutput, SamplingParams
from quire.config import EngineConfig
from quire.engine import LLMEngine
from quire.kv.block_hash import extend_chain
from quire.kv.block_pool import LRUBlockPool
from quire.kv.kv_cache_manager import PagedKVCacheManager
from quire.messages import Logprob, SchedulerOutput, StepResult
from quire.models.config import ModelConfig
from quire.request import FinishReason, Request
from quire.scheduler import TokenBudgetScheduler
from quire.speculation.controller import LengthController
from quire.speculation.costs import RoundCosts

LETTERS = "abcdefghijkl"
MODEL = ModelConfig("Fake", VOCAB_SIZE, 8, 8, 1, 1, 1, 8, max_position=64, eos_token_ids=(EOS,))


class Letters:
    """A tokenizer of twelve letters."""

    def decode(self, token_ids: list[int]) -> str:
        return "".join(LETTERS[i] for i in token_ids)

    def has_text(self, token_id: int, *, skip_special_tokens: bool) -> bool:
        return True

    def is_byte(self, token_id: int) -> bool:
        return False

    def special_text(self, token_id: int) -> str | None:
        return None

    def with_texts(self, rows: list[dict[int, Logprob]]) -> list[dict[int, Logprob]]:
        return rows


@dataclass
class FakeStep:
    """A step that was queued."""

    output: SchedulerOutput
    result: StepResult

    def wait(self) -> StepResult:
        return self.result


class FakeRunner:
    """The fake device as a runner, which also scores each token by its position."""

    round_costs = RoundCosts({})
    is_done = False

    def __init__(self, config: EngineConfig, most_drafts: int) -> None:
        self.device = FakeDevice(config, 1, most_drafts)
        self.num_steps = 0

    def execute(self, output: SchedulerOutput) -> FakeStep:
        """Carry a step out at once; who asked for it hears of it when it waits for it."""
        self.num_steps += 1
        return FakeStep(output, self._scored(self.device.execute(output)))

    def _scored(self, result: StepResult) -> StepResult:
        scores: dict[str, list[dict[int, Logprob]]] = {}
        for row in self.device.rows.values():
            tokens = result.token_ids.get(row.request_id, [])
            if tokens and row.params.logprobs is not None:
                end = len(row.token_ids)
                places = range(end - len(tokens), end)
                scores[row.request_id] = [
                    {token: Logprob(-hash((place, token)) % 97 / 10, 1 + place)}
                    for place, token in zip(places, tokens, strict=True)
                ]
        return replace(result, logprobs=scores)

    def settle(self, in_flight: Any) -> None:
        pass


def serve(
    requests: list[tuple[list[int], SamplingParams]],
    most_drafts: int,
    budget: int,
    num_blocks: int = 199,
    **options: Any,
) -> tuple[list[RequestOutput], set[bytes], int]:
    """Return the outputs, the names of the published blocks, and the number of steps."""
    config = EngineConfig.of(
        max_model_len=48,
        max_num_seqs=4,
        max_num_batched_tokens=budget,
        device=torch.device("cpu"),
        dtype=torch.float32,
        block_size=8,
        **options,
    )
    pool = LRUBlockPool(1 + num_blocks)
    scheduler = TokenBudgetScheduler(config, PagedKVCacheManager([pool], 8, True))
    runner = FakeRunner(config, most_drafts)
    engine = LLMEngine(config, MODEL, scheduler, runner, Letters())  # type: ignore[arg-type]
    handles = [engine.add_request(str(i), *request) for i, request in enumerate(requests)]
    while engine.has_requests:
        engine.step()
    outputs = [handle.snapshot() for handle in handles]
    for output in outputs:
        assert output.metrics is not None
        assert len(output.metrics.token_times) == len(output.outputs[0].token_ids)
        output.metrics = None
    assert pool.num_free == num_blocks
    return outputs, set(pool._published), runner.num_steps


params_strategy = st.builds(
    SamplingParams,
    n=st.integers(1, 2),
    seed=st.integers(0, 50),
    max_tokens=st.integers(1, 40),
    stop=st.lists(st.text(LETTERS, min_size=1, max_size=2), max_size=2),
    stop_token_ids=st.lists(st.integers(1, VOCAB_SIZE - 1), max_size=1),
    ignore_eos=st.booleans(),
    min_tokens=st.just(0),
    logprobs=st.sampled_from([None, 0]),
)
requests_strategy = st.lists(
    st.tuples(st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=20), params_strategy),
    min_size=1,
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(requests=requests_strategy, most_drafts=st.integers(1, 3), budget=st.integers(4, 40))
def test_outputs_and_published_blocks_are_those_of_single_tokens(
    requests: list[tuple[list[int], SamplingParams]], most_drafts: int, budget: int
) -> None:
    """Text, ids, log-probabilities, reasons; stops, lengths and ends fall inside a step."""
    one_by_one, named, _ = serve(requests, 0, budget)
    at_once, named_at_once, _ = serve(requests, most_drafts, budget)
    assert at_once == one_by_one
    assert named_at_once == named


def full_blocks(outputs: list[RequestOutput]) -> set[bytes]:
    """The names of all blocks that prompts with their outputs fill."""
    names: set[bytes] = set()
    for output in outputs:
        for completion in output.outputs:
            text = [*output.prompt_token_ids, *completion.token_ids]
            chain: list[bytes] = []
            extend_chain(chain, Request("", text, SamplingParams()), len(text) // 8, 8)
            names.update(chain)
    return names


def on_device(number: int | str) -> dict[str, Any]:
    """A draft model that the fake device stands for, in an engine whose results come late."""
    config = {"method": "draft_model", "model": "fake", "num_speculative_tokens": number}
    return {"overlap": True, "speculative_config": config}


@settings(max_examples=150, deadline=None)
@given(
    requests=requests_strategy,
    most_drafts=st.integers(1, 3),
    budget=st.integers(4, 40),
    num_blocks=st.sampled_from([7, 12, 199]),
)
def test_steps_that_are_queued_before_the_drafts_ahead_are_judged(
    requests: list[tuple[list[int], SamplingParams]],
    most_drafts: int,
    budget: int,
    num_blocks: int,
) -> None:
    """The same, where each result arrives when the next step is queued; also when blocks lack."""
    one_by_one, named, _ = serve(requests, 0, budget)
    overlapped, named_too, _ = serve(
        requests, most_drafts, budget, num_blocks, **on_device(most_drafts)
    )
    assert overlapped == one_by_one
    assert named_too <= full_blocks(one_by_one)
    if num_blocks == 199:  # else some were evicted
        assert named <= named_too  # and perhaps one that the last token fills, computed in vain


@settings(max_examples=60, deadline=None)
@given(requests=requests_strategy, budget=st.integers(6, 40), data=st.data())
def test_a_number_of_guesses_that_is_chosen_before_the_last_ones_are_judged(
    requests: list[tuple[list[int], SamplingParams]], budget: int, data: st.DataObject
) -> None:
    one_by_one, named, _ = serve(requests, 0, budget)
    choose = st.sampled_from([0, 1, 2, 4])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LengthController, "choose", lambda self, output, batch: data.draw(choose))
        patch.setattr(LengthController, "observe", lambda self, *args: None)
        overlapped, named_too, _ = serve(requests, 4, budget, **on_device("auto"))
    assert overlapped == one_by_one
    assert named <= named_too <= full_blocks(one_by_one)


def test_no_request_waits_for_a_verdict() -> None:
    """One request is in every step but the last, which its own end makes superfluous."""
    request = ([1, 2, 3], SamplingParams(max_tokens=40, ignore_eos=True, seed=3))
    _, _, at_once = serve([request], 3, 40, **{**on_device(3), "overlap": False})
    _, _, overlapped = serve([request], 3, 40, **on_device(3))
    assert at_once < 30
    assert overlapped <= at_once + 3


def test_several_tokens_do_come_in_one_step() -> None:
    request = ([1, 2, 3], SamplingParams(max_tokens=40, ignore_eos=True, seed=3))
    _, _, num_steps = serve([request], 0, 40)
    _, _, num_fewer = serve([request], 3, 40)
    assert num_steps == 40
    assert num_fewer < 30


def test_the_end_among_the_tokens_of_a_step() -> None:
    """What lies behind it is neither said nor counted as computed."""
    request = Request("r", [1] * 5, SamplingParams(max_tokens=9, stop_token_ids=[7]))
    request.num_computed_tokens, request.num_placeholders, request.num_unverified = 8, 1, 3
    request.accept([4, 7, 9, 9], num_drafts=3, max_model_len=99)
    assert request.output_token_ids == [4, 7]
    assert request.finish_reason is FinishReason.STOP
    assert request.num_computed_tokens == request.num_tokens - 1 == 6
    assert (request.num_placeholders, request.num_unverified) == (0, 0)


@pytest.mark.parametrize("tokens", [[], [1, 2, 3]])
def test_more_tokens_than_the_step_had_positions_for(tokens: list[int]) -> None:
    request = Request("r", [1], SamplingParams())
    with pytest.raises(QuireError, match=rf"gave {len(tokens)} tokens for request 'r'.* 1 to 2"):
        request.accept(tokens, num_drafts=1, max_model_len=99)
