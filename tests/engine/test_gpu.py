"""The engine on a CUDA device: float32 exactly, bfloat16 and float16 by the top-five rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import checkpoints
import pytest
import torch
from checkpoints import SPECS, WINDOW
from transformers import PreTrainedModel

from quire import LLM, QuireError, SamplingParams
from quire.resources import shipped_models
from quire.sampling import SamplingTensors, TorchSampler
from quire.sampling.noise import Purpose, exponential, uniform

pytestmark = pytest.mark.gpu

NUM_TOKENS = 128
RAGGED = [1, 2, 5, WINDOW - 1, WINDOW, WINDOW + 1, 40, 77]
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)

Folder = Callable[[str], Path]
Oracle = Callable[[str], PreTrainedModel]


@pytest.fixture(autouse=True)
def exact_float32() -> None:
    """float32 means float32, not TF32, on both sides of a comparison."""
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("budget", [7, 4096])
def test_float32_is_transformers(
    name: str, budget: int, checkpoint: Folder, oracle: Oracle
) -> None:
    """Tokens and log-probabilities of a ragged batch, against transformers on the CPU."""
    llm = LLM(
        checkpoint(name),
        dtype="float32",
        device="cuda",
        max_num_seqs=5,
        max_num_batched_tokens=budget,
    )
    params = SamplingParams(
        temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=0, prompt_logprobs=0
    )
    prompts = checkpoints.random_prompts(RAGGED, seed=2)
    for output in llm.generate(prompts, params):
        prompt, completion = output.prompt_token_ids, output.outputs[0]
        logits = checkpoints.oracle_logits(oracle(name), prompt + completion.token_ids)
        assert completion.token_ids == logits[len(prompt) - 1 : -1].argmax(-1).tolist()
        assert completion.logprobs is not None
        assert output.prompt_logprobs is not None
        rows = [*output.prompt_logprobs[1:], *completion.logprobs]
        tokens = torch.tensor([*prompt[1:], *completion.token_ids])
        expected = logits[:-1].log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
        values = [
            row[token].logprob for row, token in zip(rows, tokens.tolist(), strict=True) if row
        ]
        torch.testing.assert_close(torch.tensor(values), expected, atol=1e-4, rtol=0)
    checkpoints.assert_empty(llm)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["quire-mini", "quire-mini-draft"])
def test_half_precision_follows_the_top_five_rule(name: str, dtype: str) -> None:
    """Where two greedy texts part, each side's token is among the other's five best."""
    folder = shipped_models()[name]
    model = checkpoints.transformers_model(folder, getattr(torch, dtype)).to("cuda")
    llm = LLM(folder, dtype=dtype, device="cuda", max_num_seqs=8)
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=5)
    prompts = ["def fibonacci(n):\n", "import os", "class Stack:\n", "for i in range("]
    agreed = 0
    for output in llm.generate(prompts, params):
        prompt, ours = output.prompt_token_ids, output.outputs[0]
        theirs = checkpoints.oracle_greedy(model, prompt, NUM_TOKENS)
        parted = [i for i in range(NUM_TOKENS) if ours.token_ids[i] != theirs[i]]
        agreed += parted[0] if parted else NUM_TOKENS
        if parted:
            first = parted[0]
            assert ours.logprobs is not None
            assert theirs[first] in ours.logprobs[first]
            logits = checkpoints.oracle_logits(model, prompt + theirs[:first])[-1]
            assert ours.token_ids[first] in logits.topk(5).indices.tolist()
    assert agreed >= NUM_TOKENS // 2  # a broken model would part at once


def test_dtype_of_the_device() -> None:
    major, _ = torch.cuda.get_device_capability()
    llm = LLM("quire-mini-draft")
    assert llm.config.device.type == "cuda"
    assert llm.config.dtype is (torch.bfloat16 if major >= 8 else torch.float16)
    assert next(llm.engine._runner._model.parameters()).dtype is llm.config.dtype


def test_noise_is_the_same_to_the_bit() -> None:
    seeds = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 123456789])
    positions = torch.tensor([0, 5, 4095, 1, 2, 3])
    for purpose in Purpose:
        here = uniform(seeds, positions, purpose, 5000)
        there = uniform(seeds.cuda(), positions.cuda(), purpose, 5000)
        assert torch.equal(here, there.cpu())
        variates = exponential(seeds.cuda(), positions.cuda(), purpose, 5000)
        torch.testing.assert_close(
            variates.cpu(), exponential(seeds, positions, purpose, 5000), rtol=1e-5, atol=0
        )


def test_sampler_draws_the_same_tokens() -> None:
    """Same logits, same seeds: the device does not matter."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 300, generator=generator) * 3
    params = [
        SamplingParams(
            temperature=(0.0, 0.7, 1.5)[i % 3],
            top_k=(0, 40)[i % 2],
            top_p=(1.0, 0.9)[i % 2],
            min_p=(0.0, 0.01)[i % 2],
        )
        for i in range(500)
    ]
    tokens = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        sampling = SamplingTensors.build(params, range(500), range(500), device)
        tokens.append(TorchSampler().choose(logits.to(device), sampling).tolist())
    assert tokens[0] == tokens[1]


def test_seeds_in_a_batch(checkpoint: Folder) -> None:
    """Alone, in a batch, on either device: the same sampled tokens in float32."""
    prompts = checkpoints.random_prompts([3, 1, 17, 8, 40, 5, 2], seed=20)
    params = [
        SamplingParams(temperature=1.3, top_p=0.95, seed=i, max_tokens=24, frequency_penalty=0.2)
        for i in range(len(prompts))
    ]
    answers = []
    for device in ("cpu", "cuda"):
        llm = LLM(checkpoint("qwen2"), dtype="float32", device=device, max_num_seqs=4)
        together = [o.outputs[0].token_ids for o in llm.generate(prompts, params)]
        alone = [
            llm.generate([p], own)[0].outputs[0].token_ids
            for p, own in zip(prompts, params, strict=True)
        ]
        assert together == alone
        answers.append(together)
    assert answers[0] == answers[1]


def test_reused_memory_is_not_read(checkpoint: Folder, oracle: Oracle) -> None:
    """torch's allocator hands out used memory; the cache must not show it."""
    poison = [torch.full((1 << 20,), torch.nan, device="cuda") for _ in range(64)]
    del poison
    llm = LLM(checkpoint("mistral"), dtype="float32", device="cuda", max_num_seqs=8)
    for output in llm.generate(checkpoints.random_prompts(RAGGED, seed=8), GREEDY):
        prompt, tokens = output.prompt_token_ids, output.outputs[0].token_ids
        logits = checkpoints.oracle_logits(oracle("mistral"), prompt + tokens)
        assert tokens == logits[len(prompt) - 1 : -1].argmax(-1).tolist()


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(QuireError, match=r"device='cuda:99': torch sees \d+ CUDA devices"):
        LLM("quire-mini-draft", device="cuda:99")


def test_a_cache_larger_than_the_gpu(checkpoint: Folder) -> None:
    with pytest.raises(QuireError, match=r"the KV cache needs .* lower max_num_seqs"):
        LLM(checkpoint("qwen2"), device="cuda", max_num_seqs=10**7)
