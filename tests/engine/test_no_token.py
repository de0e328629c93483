"""Logits from which no token can be chosen: an error by name, and the engine goes on."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
from runs import run_async
from safetensors.torch import load_file, save_file

from quire import LLM, AsyncEngine, QuireError, RequestOutput, SamplingParams, Trace
from quire.kernels.sampling import NO_TOKEN, greedy_torch, sample_torch
from quire.sampling.sampler import gather_logprobs

NAN, INF = float("nan"), float("inf")
GREEDY = SamplingParams(temperature=0, max_tokens=6)
MESSAGE = r"request '.*' has no next token in step \d+: its logits hold NaN or infinity, or every"


@pytest.mark.parametrize(
    "broken",
    [
        [NAN, 1.0, 2.0, 3.0],
        [3.0, 2.0, 1.0, NAN],
        [NAN] * 4,
        [-INF] * 4,
        [-INF, NAN, -INF, -INF],
        [0.0, INF, 0.0, 0.0],
        [INF] * 4,
        [INF, NAN, -INF, 0.0],
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1.0, 100.0])
@pytest.mark.parametrize("limits", [(0, 1.0, 0.0), (2, 1.0, 0.0), (0, 0.5, 0.0), (1, 1e-9, 1.0)])
def test_a_row_without_a_distribution(
    broken: list[float], temperature: float, limits: tuple[int, float, float]
) -> None:
    """Its neighbours, forbidden tokens among theirs, are drawn as ever."""
    sound = [[0.0, 3.0, 1.0, -INF], [-INF, -INF, -INF, -5.0]]
    logits = torch.tensor([sound[0], broken, sound[1]])
    top_k, top_p, min_p = (torch.tensor([limit] * 3) for limit in limits)
    seeds = torch.arange(3)
    arguments: dict[str, Any] = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
    for own in (arguments, dict.fromkeys(arguments)):
        tokens = sample_torch(
            logits, torch.tensor([temperature] * 3), **own, seeds=seeds, positions=seeds
        ).tolist()
        assert tokens[1] == NO_TOKEN
        assert tokens[0] in (0, 1, 2)
        assert tokens[2] == 3
    assert greedy_torch(logits).tolist() == [1, NO_TOKEN, 3]


@pytest.mark.parametrize("broken", [[NAN, 1.0, 2.0], [1.0, INF, 2.0], [-INF] * 3, [INF, INF, NAN]])
def test_log_probabilities_of_such_a_row_are_nan(broken: list[float]) -> None:
    logits = torch.tensor([[0.0, 1.0, -INF], broken])
    for token in range(3):
        values = gather_logprobs(logits, torch.tensor([token, token]), 2)
        assert values.chosen.isnan().tolist() == [False, True]
        assert values.top_values.isnan().any(-1).tolist() == [False, True]
    assert gather_logprobs(logits, torch.tensor([NO_TOKEN] * 2), 0).chosen[1].isnan()


def scaled_checkpoint(source: Path, target: Path, scale: float) -> Path:
    """Copy a checkpoint with the last norm's weights multiplied."""
    shutil.copytree(source, target)
    file = target / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"] *= scale
    save_file(weights, file, metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("params", [GREEDY, SamplingParams(seed=1, max_tokens=6, logprobs=2)])
def test_a_model_that_overflows_in_float16(
    overlap: bool, params: SamplingParams, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = scaled_checkpoint(checkpoint("qwen2"), tmp_path / "loud", 1e6)
    llm = LLM(folder, device="cpu", dtype="float16", max_num_seqs=2, overlap=overlap)
    for _ in range(2):
        with pytest.raises(QuireError, match=MESSAGE + r".*dtype='bfloat16' or 'float32'"):
            llm.generate([[1, 2, 3]], params)
        checkpoints.assert_empty(llm)
    exact = LLM(folder, device="cpu", dtype="float32", max_num_seqs=2)
    assert len(exact.generate([[1, 2, 3]], params)[0].outputs[0].token_ids) == 6


def test_nan_in_a_checkpoint(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = scaled_checkpoint(checkpoint("qwen2"), tmp_path / "nan", NAN)
    with pytest.raises(QuireError, match=MESSAGE + r".*NaN in the checkpoint"):
        LLM(folder, device="cpu").generate([[1, 2, 3]], GREEDY)


@pytest.mark.parametrize("num_top", [0, 2])
def test_a_prompt_is_not_scored_with_nan(
    num_top: int, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """In a step that scores and chooses nothing."""
    folder = scaled_checkpoint(checkpoint("qwen2"), tmp_path / "nan", NAN)
    llm = LLM(folder, device="cpu", max_num_seqs=2, max_num_batched_tokens=4)
    message = r"request '.*' has no log-probabilities for its prompt from position 1 on in step 1"
    with pytest.raises(QuireError, match=message):
        llm.generate([list(range(1, 10))], replace(GREEDY, prompt_logprobs=num_top))
    checkpoints.assert_empty(llm)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"allowed_token_ids": [5, 6], "bad_words_ids": [[5], [6]]},
        {"allowed_token_ids": [5], "stop_token_ids": [5], "min_tokens": 1},
        {"logits_processors": [lambda output, logits: logits * (NAN if output[2:] else 1)]},
        {"logits_processors": [lambda output, logits: logits - (INF if output else 0)]},
    ],
)
def test_a_request_that_forbids_every_token(
    options: dict[str, Any], overlap: bool, checkpoint: Callable[[str], Path]
) -> None:
    llm = LLM(checkpoint("qwen2"), device="cpu", max_num_seqs=3, overlap=overlap)
    answer = llm.generate([[1, 2, 3]], GREEDY)[0].outputs[0].token_ids
    with pytest.raises(QuireError, match=MESSAGE):
        llm.generate([[1, 2, 3], [4, 5]], [GREEDY, SamplingParams(max_tokens=6, **options)])
    checkpoints.assert_empty(llm)
    assert llm.generate([[1, 2, 3]], GREEDY)[0].outputs[0].token_ids == answer


# One 5 and then nothing: every token is forbidden behind it.
ONE_FIVE: dict[str, Any] = {"allowed_token_ids": [5], "bad_words_ids": [[5, 5]], "max_tokens": 6}


@pytest.mark.parametrize("overlap", [False, True])
def test_only_the_request_without_a_token_ends(
    overlap: bool, checkpoint: Callable[[str], Path]
) -> None:
    """Beside it nothing is lost or computed twice; what it had said stands."""
    folder = checkpoint("qwen2")
    trace = Trace()
    llm = LLM(folder, device="cpu", max_num_seqs=4, overlap=overlap, trace=trace)
    answer = llm.generate([[1, 2, 3]], GREEDY)[0].outputs[0].token_ids
    trace.steps.clear()
    llm.engine.add_request("sound", [1, 2, 3], GREEDY)
    llm.engine.add_request("broken", [4], SamplingParams(n=2, **ONE_FIVE))
    last: dict[str, RequestOutput] = {}
    while llm.engine.has_requests:
        last |= {output.request_id: output for output in llm.engine.step()}
    assert last["sound"].outputs[0].token_ids == answer
    assert last["broken"].finished
    assert [c.finish_reason for c in last["broken"].outputs] == ["error", "error"]
    assert last["broken"].outputs[0].token_ids == [5]
    assert sum(step.scheduled.num_tokens for step in trace.steps) <= 3 + 5 + 2 * (1 + 2)
    checkpoints.assert_empty(llm)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_token_that_nobody_asked_for_is_not_missed(
    overlap: bool, checkpoint: Callable[[str], Path]
) -> None:
    """A step ahead is computed behind the end of a request, which is not an error then."""
    llm = LLM(checkpoint("qwen2"), device="cpu", max_num_seqs=4, overlap=overlap)
    (output,) = llm.generate([[4]], SamplingParams(stop_token_ids=[5], **ONE_FIVE))
    assert output.outputs[0].token_ids == [5]
    assert output.outputs[0].finish_reason == "stop"
    checkpoints.assert_empty(llm)


def test_a_stream_without_a_token(checkpoint: Callable[[str], Path]) -> None:
    """What was said comes first, then the error."""
    llm = LLM(checkpoint("qwen2"), device="cpu", max_num_seqs=2)
    stream = llm.stream([4], SamplingParams(**ONE_FIVE))
    assert next(stream).outputs[0].token_ids == [5]
    with pytest.raises(QuireError, match=MESSAGE):
        next(stream)
    checkpoints.assert_empty(llm)


def test_other_streams_go_on(checkpoint: Callable[[str], Path]) -> None:
    """A request that forbids every token ends its own stream, not the engine."""
    folder = checkpoint("qwen2")
    params = replace(GREEDY, max_tokens=20)
    answer = LLM(folder, device="cpu").generate([[1, 2, 3]], params)[0].outputs[0].token_ids

    async def last_of(engine: AsyncEngine, prompt: list[int], own: SamplingParams) -> list[int]:
        async for output in engine.generate(prompt, own):
            tokens = output.outputs[0].token_ids
        return tokens

    async def main() -> None:
        async with AsyncEngine(folder, device="cpu", max_num_seqs=3) as engine:
            broken = SamplingParams(**ONE_FIVE)
            requests = [([1, 2, 3], params), ([4], broken), ([1, 2, 3], params), ([6], broken)]
            tasks = [asyncio.create_task(last_of(engine, *request)) for request in requests]
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert found[0] == found[2] == answer
            for error in (found[1], found[3]):
                assert isinstance(error, QuireError)
                assert re.match(MESSAGE, str(error))
            assert await last_of(engine, [1, 2, 3], params) == answer

    run_async(main())


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("error", [KeyError("no such state"), SystemExit("no such state")])
def test_a_function_that_raises_costs_its_own_request_alone(
    overlap: bool, error: BaseException, checkpoint: Callable[[str], Path]
) -> None:
    """Whatever a caller's function does, the others' streams go on, in the same steps."""

    def fails_later(output: list[int], logits: torch.Tensor) -> torch.Tensor:
        if len(output) == 2:
            raise error
        return logits

    async def serve() -> tuple[list[int], BaseException | list[int]]:
        engine = AsyncEngine(checkpoint("qwen2"), device="cpu", overlap=overlap)

        async def read(params: SamplingParams) -> list[int]:
            tokens: list[int] = []
            async for output in engine.generate([5, 6, 7], params):
                tokens = output.outputs[0].token_ids
            return tokens

        long = replace(GREEDY, max_tokens=12, ignore_eos=True)
        try:
            good, bad = await asyncio.gather(
                read(long),
                read(replace(long, logits_processors=[fails_later])),
                return_exceptions=True,
            )
        finally:
            await asyncio.to_thread(engine.close)
        assert isinstance(good, list)
        return good, bad

    good, bad = run_async(serve())
    assert len(good) == 12
    assert isinstance(bad, QuireError)
    message = rf"request '.*': logits processor .* raised {type(error).__name__}: '?no such state"
    assert re.match(message, str(bad))
