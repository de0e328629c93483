"""Forbidden, favoured and missing tokens on a CUDA device, in captured steps and beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import random_prompts
from runs import Folder
from sampling_rows import CPU, VOCAB, Row, batch_of, gather
from test_gpu_sampling import samplers
from test_no_token import MESSAGE, scaled_checkpoint
from torch import Tensor

from quire import LLM, Components, QuireError, SamplingParams
from quire.kernels.runtime import runs_triton
from quire.kernels.sampling import NO_TOKEN
from quire.runner.decode_graphs import DecodeGraphs, Ending
from quire.sampling import Penalties, SamplingTensors, TorchSampler
from quire.sampling.bias import bias_of_rows
from quire.sampling.processors import shape_logits
from quire.sampling.sampler import SamplerOutput
from quire.sampling.scoring import CHUNK_BYTES, score_tokens
from quire.sampling.trial import sample_with_everything

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")


def louder(output: list[int], logits: Tensor) -> Tensor:
    """A function of the output, wherever the logits are."""
    return logits * (1 + len(output) / 10)


ROWS: list[Row] = [
    ([1], [3, 3, 5], SamplingParams(temperature=0)),
    ([1, 2], [3, 3], SamplingParams(bad_words_ids=[[3, 3, 5], [4], [2, 3]], temperature=1.5)),
    ([4], [], SamplingParams(min_tokens=2, stop_token_ids=[2, 10**12], top_k=3)),
    ([4], [1, 1], SamplingParams(allowed_token_ids=[0, 2, 4], logit_bias={2: 1.5}, min_p=0.1)),
    ([4, 4], [1, 2], SamplingParams(logits_processors=[louder], frequency_penalty=0.5)),
    ([6], [5], SamplingParams(allowed_token_ids=[5], bad_words_ids=[[5, 5]])),
]


def test_rows_are_shaped_as_on_a_cpu() -> None:
    logits = torch.randn(len(ROWS), VOCAB, generator=torch.Generator().manual_seed(0)) * 3
    chosen = [(row, len(prompt) + len(output)) for row, (prompt, output, _) in enumerate(ROWS)]
    here = gather(batch_of(*ROWS), chosen)
    there = gather(batch_of(*ROWS, device=DEVICE), chosen)
    shaped = shape_logits(logits, here)
    torch.testing.assert_close(shape_logits(logits.to(DEVICE), there).cpu(), shaped)
    tokens = TorchSampler().choose(logits, here).tolist()
    assert tokens[-1] == NO_TOKEN
    assert NO_TOKEN not in tokens[:-1]
    for sampler in samplers():
        assert sampler(logits.to(DEVICE), there).tokens[:, 0].tolist() == tokens


@pytest.mark.parametrize(
    "options",
    [
        {"min_tokens": 12, "stop_token_ids": list(range(48))},
        {"logit_bias": {5: 3.0, 9: -3.0}},
        {"allowed_token_ids": list(range(20, 60))},
        {"bad_words_ids": [[i] for i in range(30)] + [[i, j] for i in (40, 41) for j in range(9)]},
        {"logits_processors": [louder]},
        {"min_tokens": 5, "logit_bias": {5: 3.0}, "allowed_token_ids": list(range(70))},
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_engine_shapes_as_on_a_cpu(
    options: dict[str, Any], temperature: float, checkpoint: Folder, monkeypatch: Any
) -> None:
    """Beside plain requests, which have the tokens that they have alone.

    A step leaves the graph's own sampling only while a request in it asks for more.
    """
    endings: list[tuple[bool, Ending]] = []
    ending = DecodeGraphs.ending

    def noted(self: DecodeGraphs, entries: Any) -> Ending:
        states = [self._parts.batch.state(entry.row) for entry in entries]
        asked = any(
            state.needs_uncaptured_sampling(entry.start + 1)
            for state, entry in zip(states, entries, strict=True)
        )
        endings.append((asked, chosen := ending(self, entries)))
        return chosen

    monkeypatch.setattr(DecodeGraphs, "ending", noted)
    prompts = random_prompts([3, 17, 8, 5], seed=20)
    plain = SamplingParams(temperature=temperature, seed=4, max_tokens=24)
    each = [replace(plain, **options), plain, replace(plain, **options, seed=5), plain]
    answers = []
    for device in (CPU, DEVICE):
        llm = LLM(
            checkpoint("qwen2"), dtype="float32", device=device, max_num_seqs=4, num_blocks=100
        )
        outputs = [o.outputs[0].token_ids for o in llm.generate(prompts, each)]
        alone = [llm.generate([prompts[i]], plain)[0].outputs[0].token_ids for i in (1, 3)]
        assert [outputs[1], outputs[3]] == alone
        answers.append(outputs)
    assert answers[0] == answers[1]
    if runs_triton(DEVICE):
        assert all(asked == (chosen is Ending.HIDDEN) for asked, chosen in endings)
        assert {asked for asked, _ in endings} == {True, False}


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_ends_in_an_error_and_the_device_lives(
    temperature: float, overlap: bool, checkpoint: Folder, tmp_path: Path
) -> None:
    """Captured steps see it, and the step queued behind them meets a token of the vocabulary."""
    folder = scaled_checkpoint(checkpoint("qwen2"), tmp_path / "nan", float("nan"))
    params = SamplingParams(temperature=temperature, max_tokens=8)
    llm = LLM(folder, device=DEVICE, max_num_seqs=4, num_blocks=100, overlap=overlap)
    for _ in range(2):
        with pytest.raises(QuireError, match=MESSAGE):
            llm.generate(random_prompts([3, 17], seed=20), params)
    torch.cuda.synchronize()
    sound = LLM(checkpoint("qwen2"), device=DEVICE, max_num_seqs=4, num_blocks=100)
    (output,) = sound.generate([[1, 2, 3]], params)
    assert len(output.outputs[0].token_ids) == 8


@pytest.mark.parametrize("captured", [False, True])
def test_an_id_that_a_sampler_made_up_is_named(captured: bool, checkpoint: Folder) -> None:
    """Where the values are read; the step queued behind it met a token of the vocabulary."""

    class Slip(TorchSampler):
        def __call__(self, logits: Tensor, sampling: Any, drafts: Any = None) -> SamplerOutput:
            return SamplerOutput(self.choose(logits, sampling)[:, None] * 0 + 10**6)

    class Captured(Slip):
        def greedy(self, logits: Tensor) -> Tensor:
            return logits.argmax(-1) * 0 + 10**6

        def draw(self, logits: Tensor, sampling: SamplingTensors) -> Tensor:
            return self.greedy(logits)

        def __call__(self, logits: Tensor, sampling: Any, drafts: Any = None) -> SamplerOutput:
            return SamplerOutput(self.choose(logits, sampling)[:, None])

    sampler = Captured if captured else Slip
    llm = LLM(
        checkpoint("qwen2"),
        device=DEVICE,
        max_num_seqs=4,
        num_blocks=100,
        components=Components(sampler=sampler),
    )
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    message = rf"^{sampler.__name__} returned token id 1000000 for row 0: must lie in \[0, "
    for _ in range(2):
        with pytest.raises(QuireError, match=message):
            llm.generate(random_prompts([3, 17], seed=20), params)
    torch.cuda.synchronize()  # no kernel read past the embedding
    assert not llm.engine.has_requests


@pytest.mark.whole_gpu
def test_a_budget_beyond_the_memory_is_named() -> None:
    """The trial step has 16,384 sequences of 2,048 tokens: one product of the MLP is 137 GB."""
    options: Any = {"max_num_batched_tokens": 2**25, "max_num_seqs": 2**14, "max_model_len": 2**11}
    with pytest.raises(QuireError, match="max_num_batched_tokens=33554432 does not fit beside"):
        LLM("quire-mini", device=DEVICE, **options)


def test_a_long_prompt_is_scored_in_little_memory() -> None:
    """2,000 tokens over a vocabulary of 49k: their float32 logits alone would be 393 MB."""
    num_tokens, vocab_size, size = 2000, 49_152, 64
    hidden = torch.randn(num_tokens, size, device=DEVICE, dtype=torch.bfloat16)
    head = torch.randn(vocab_size, size, device=DEVICE, dtype=torch.bfloat16)
    token_ids = torch.randint(0, vocab_size, (num_tokens,), device=DEVICE)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    scores = score_tokens(lambda states: states @ head.T, hidden, token_ids, 20, vocab_size)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < 5 * CHUNK_BYTES, f"{peak / 1e6:.0f} MB"
    exact = (hidden[-1:] @ head.T).float().log_softmax(-1)[0, token_ids[-1]]
    torch.testing.assert_close(scores.chosen[-1], exact)


def test_the_trial_takes_what_a_full_batch_of_everything_takes() -> None:
    """Every row with every option, drawn by each sampler."""
    num_rows, vocab_size, length = 64, 151_936, 500
    logits = torch.randn(num_rows, vocab_size, device=DEVICE)
    options: dict[str, Any] = {
        "temperature": 0.8,
        "top_p": 0.9,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.2,
        "logprobs": 20,
    }
    params = [SamplingParams(**options)] * num_rows
    token_ids = torch.randint(0, vocab_size, (num_rows, length), device=DEVICE)
    ends = torch.full((num_rows,), length, device=DEVICE)

    def peak_of(work: Callable[[], object]) -> int:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def choose() -> object:
        penalties = Penalties.build(params, token_ids, ends // 2, ends, vocab_size)
        seeds = range(num_rows)
        sampling = SamplingTensors.build(params, seeds, seeds, DEVICE, penalties)
        sampling.bias = bias_of_rows([None] * num_rows, [], vocab_size, DEVICE)
        return samplers()[-1](logits, sampling)

    choose()  # compiles kernels
    real, trial = peak_of(choose), peak_of(lambda: sample_with_everything(logits, length))
    assert 0.9 * real <= trial <= 1.5 * real, (real / 1e6, trial / 1e6)
