"""The engine against transformers on the same weights, in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import checkpoints
import pytest
import torch
from checkpoints import (
    MAX_POSITION,
    SPECS,
    TOLERANCE,
    VOCAB_SIZE,
    WINDOW,
    assert_greedy,
    decoder_logits,
    load_decoder,
    oracle_greedy,
    oracle_logits,
)
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from quire import LLM, RequestOutput, SamplingParams
from quire.models.config import ModelConfig
from quire.resources import shipped_models

NUM_TOKENS = 128
RAGGED = [1, 2, 5, WINDOW - 1, WINDOW, WINDOW + 1, 40, 77]
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)

Folder = Callable[[str], Path]
Oracle = Callable[[str], PreTrainedModel]


def load(folder: Path, **options: int) -> LLM:
    return LLM(folder, dtype="float32", device="cpu", **{"max_num_seqs": 8, **options})


def logprob_matrix(output: RequestOutput) -> Tensor:
    """Prompt log-probabilities of the whole vocabulary, [len(prompt) - 1, V]."""
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    rows = [row for row in output.prompt_logprobs if row is not None]
    assert [next(iter(row)) for row in rows] == output.prompt_token_ids[1:]
    return torch.tensor([[row[v].logprob for v in range(VOCAB_SIZE)] for row in rows])


# --- the decoder alone -------------------------------------------------------


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("chunks", [[90], [1] * 30 + [60], [50, 1, 39]], ids=["one", "ones", "mix"])
def test_decoder_logits(name: str, chunks: list[int], checkpoint: Folder, oracle: Oracle) -> None:
    (token_ids,) = checkpoints.random_prompts([90], seed=3)
    expected = oracle_logits(oracle(name), token_ids)
    assert expected.std() > 0.5  # else the comparison would say little
    logits = decoder_logits(load_decoder(checkpoint(name)), token_ids, chunks)
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)


# --- the engine --------------------------------------------------------------


@pytest.mark.parametrize("name", SPECS)
def test_one_prompt(name: str, checkpoint: Folder, oracle: Oracle) -> None:
    (prompt,) = checkpoints.random_prompts([9], seed=1)
    (output,) = load(checkpoint(name)).generate(prompt, GREEDY)
    assert output.outputs[0].token_ids == oracle_greedy(oracle(name), prompt, NUM_TOKENS)


@pytest.mark.parametrize("name", SPECS)
def test_ragged_batch(name: str, checkpoint: Folder, oracle: Oracle) -> None:
    prompts = checkpoints.random_prompts(RAGGED, seed=2)
    llm = load(checkpoint(name))
    for output, prompt in zip(llm.generate(prompts, GREEDY), prompts, strict=True):
        assert output.prompt_token_ids == prompt
        assert len(output.outputs[0].token_ids) == NUM_TOKENS
        assert_greedy(oracle(name), output)
    checkpoints.assert_empty(llm)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("budget", [1, 3, 7, 64])
def test_chunked_prefill(name: str, budget: int, checkpoint: Folder, oracle: Oracle) -> None:
    """More requests than rows, prompts in chunks beside decodes: logits and tokens stay."""
    prompts = checkpoints.random_prompts(RAGGED, seed=4)
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, prompt_logprobs=100)
    llm = load(checkpoint(name), max_num_seqs=3, max_num_batched_tokens=budget)
    for output in llm.generate(prompts, params):
        assert_greedy(oracle(name), output)
        prompt = output.prompt_token_ids
        assert output.prompt_logprobs is not None
        assert len(output.prompt_logprobs) == len(prompt)
        if len(prompt) > 1:
            expected = oracle_logits(oracle(name), prompt)[:-1].log_softmax(-1)
            torch.testing.assert_close(logprob_matrix(output), expected, atol=TOLERANCE, rtol=0)
    checkpoints.assert_empty(llm)


def test_output_logprobs(checkpoint: Folder, oracle: Oracle) -> None:
    (prompt,) = checkpoints.random_prompts([12], seed=5)
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, logprobs=100)
    completion = load(checkpoint("qwen2")).generate(prompt, params)[0].outputs[0]
    logits = oracle_logits(oracle("qwen2"), prompt + completion.token_ids)[len(prompt) - 1 : -1]
    assert completion.logprobs is not None
    values = [[row[v].logprob for v in range(VOCAB_SIZE)] for row in completion.logprobs]
    torch.testing.assert_close(torch.tensor(values), logits.log_softmax(-1), atol=TOLERANCE, rtol=0)


def test_to_the_last_position(checkpoint: Folder, oracle: Oracle) -> None:
    (prompt,) = checkpoints.random_prompts([MAX_POSITION - 30], seed=6)
    (output,) = load(checkpoint("mistral")).generate([prompt], GREEDY)
    assert len(output.outputs[0].token_ids) == 30
    assert output.outputs[0].finish_reason == "length"
    assert_greedy(oracle("mistral"), output)


def test_rows_are_reused_clean(checkpoint: Folder, oracle: Oracle) -> None:
    """A request reads nothing of the longer one that had its row and its block before."""
    llm = load(checkpoint("llama3-scaled"), max_num_seqs=2)
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    for lengths in ([100, 90], [3, 50], [1, 2, 60, 4]):
        for output in llm.generate(checkpoints.random_prompts(lengths, seed=7), params):
            assert_greedy(oracle("llama3-scaled"), output)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """`torch.empty` gives NaN, so that whoever reads what nobody wrote is found out."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("name", ["qwen2-two-groups", "llama3-scaled"])
def test_never_written_memory_is_not_read(name: str, checkpoint: Folder, oracle: Oracle) -> None:
    assert torch.empty(3).isnan().all()
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    prompts = checkpoints.random_prompts(RAGGED, seed=8)
    for output in load(checkpoint(name)).generate(prompts, params):
        assert_greedy(oracle(name), output)


def test_a_batch_in_another_order(checkpoint: Folder) -> None:
    prompts = checkpoints.random_prompts(RAGGED, seed=9)
    llm = load(checkpoint("qwen3-sharded"), max_num_seqs=5)
    forward = llm.generate(prompts, GREEDY)
    backward = llm.generate(prompts[::-1], GREEDY)[::-1]
    assert [o.outputs[0].token_ids for o in forward] == [o.outputs[0].token_ids for o in backward]


# --- storage -----------------------------------------------------------------


def test_checkpoints_are_what_they_should_be(checkpoint: Folder) -> None:
    for name, spec in SPECS.items():
        folder = checkpoint(name)
        sharded = (folder / "model.safetensors.index.json").is_file()
        assert sharded == (spec.max_shard_size != "1GB")
    windows = ModelConfig.from_folder(checkpoint("qwen2-two-groups")).sliding_windows
    assert windows == (None, WINDOW, WINDOW)


# --- the shipped, trained models ---------------------------------------------

SOURCES = [
    "def fibonacci(n):\n",
    "import",
    "class LinkedList:\n    def __init__(self):\n        self.head = None\n\n    def push(",
    "for i in range(10):\n    print(",
]


@pytest.mark.parametrize("name", checkpoints.SHIPPED)
def test_shipped_model(name: str) -> None:
    """Text in, text out, against the tokenizer and the model that transformers loads."""
    folder = shipped_models()[name]
    model = checkpoints.transformers_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    llm = load(folder, max_num_batched_tokens=16)
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, prompt_logprobs=3)
    for output, source in zip(llm.generate(SOURCES, params), SOURCES, strict=True):
        assert output.prompt_token_ids == tokenizer.encode(source)
        completion = output.outputs[0]
        assert_greedy(model, output)
        assert completion.text == tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        prompt = output.prompt_token_ids
        logits = oracle_logits(model, prompt)
        assert output.prompt_logprobs is not None
        for i, row in enumerate(output.prompt_logprobs[1:]):
            assert row is not None
            expected = logits[i].log_softmax(-1)
            for token, value in row.items():
                assert value.logprob == pytest.approx(expected[token].item(), abs=TOLERANCE)
    chosen = oracle_greedy(model, tokenizer.encode(SOURCES[0]), 32)
    greedy = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True)
    assert llm.generate(SOURCES[0], greedy)[0].outputs[0].token_ids == chosen
