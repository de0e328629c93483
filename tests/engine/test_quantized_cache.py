"""The INT8 and FP8 cache: what a code may be off by, and the engine that reads codes."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from checkpoints import SPECS, random_prompts
from hypothesis import given
from hypothesis import strategies as st
from runs import Folder, Run

from quire import LLM, Components, QuireError, SamplingParams
from quire.attention.torch_backend import TorchAttention
from quire.bench.cache_variants import ChangedCache
from quire.kv.quantized import FORMATS, dequantize, quantize
from quire.kv.spec import KVCacheSpec
from quire.kv.storage import KVStorage
from quire.resources import data_dir

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", FORMATS)
@given(seed=st.integers(0, 2**31), power=st.integers(-20, 20))
def test_a_code_is_off_by_half_a_step(name: str, seed: int, power: int) -> None:
    """INT8: 1/254 of the largest element. E4M3: 1/16 of the element, or half a subnormal."""
    x = torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(seed)) * 2.0**power
    codes, scale = quantize(x, FORMATS[name])
    assert (codes.dtype, scale.dtype, scale.shape) == (FORMATS[name], torch.float32, (3, 2))
    error = (dequantize(codes, scale, torch.float32) - x).abs()
    largest = x.abs().amax(-1, keepdim=True)
    allowed = largest / 254 if name == "int8" else torch.maximum(x.abs() / 16, largest / 448 / 1024)
    assert (error <= allowed * 1.001).all()
    at_largest = x.abs() == largest
    torch.testing.assert_close(
        dequantize(codes, scale, torch.float32)[at_largest], x[at_largest], rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_stay_zeros_and_nan_is_not_hidden(name: str) -> None:
    x = torch.zeros(2, 8)
    x[1, 3] = torch.nan
    codes, scale = quantize(x, FORMATS[name])
    back = dequantize(codes, scale, torch.float32)
    assert back[0].eq(0).all()
    assert back[1].isnan().all()


@pytest.mark.parametrize("name", FORMATS)
def test_bytes_are_those_of_codes_and_scales(name: str) -> None:
    """2 · heads · (head size + 4) a token, counted in the tensors themselves."""
    spec = KVCacheSpec(num_kv_heads=3, head_size=16, dtype=FORMATS[name])
    assert spec.bytes_per_token == 2 * 3 * (16 + 4)
    storage = KVStorage([spec, spec], [0, 0], 5, 8, CPU)
    assert storage.num_bytes == 5 * 8 * 2 * spec.bytes_per_token


@pytest.mark.parametrize("name", FORMATS)
def test_a_copied_block_takes_its_scales_along(name: str) -> None:
    spec = KVCacheSpec(num_kv_heads=2, head_size=16, dtype=FORMATS[name])
    storage = KVStorage([spec], [0], 4, 8, CPU)
    (kv,) = storage.layers
    key, value = torch.randn(2, 3, 2, 16)
    kv.write(torch.tensor([8, 9, 15]), key, value)
    storage.copy_blocks([[(1, 3)]])
    for part in kv.dequantized(torch.tensor([1, 3]), torch.float32):
        assert torch.equal(part[0], part[1])
        assert part[0].ne(0).any()


def prompt_logprobs(llm: LLM, prompt: list[int]) -> torch.Tensor:
    (output,) = llm.generate(prompt, SamplingParams(max_tokens=1, prompt_logprobs=0))
    rows = output.prompt_logprobs
    assert rows is not None
    return torch.tensor([next(iter(row.values())).logprob for row in rows if row is not None])


def rounded(x: torch.Tensor, name: str) -> torch.Tensor:
    """Return in float32 what the codes of keys or values stand for."""
    return dequantize(*quantize(x, FORMATS[name]), torch.float32)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("model", SPECS)
@pytest.mark.parametrize("budget", [256, 20], ids=["whole", "chunks"])
def test_probabilities_are_those_of_rounded_keys(
    name: str, model: str, budget: int, checkpoint: Folder
) -> None:
    """The oracle is a float32 cache that holds what codes stand for."""
    (prompt,) = random_prompts([90], seed=5)
    options: dict[str, Any] = {"device": "cpu", "max_num_batched_tokens": budget}
    components = Components(attention=partial(ChangedCache, partial(rounded, name=name)))
    expected = prompt_logprobs(LLM(checkpoint(model), components=components, **options), prompt)
    coded = LLM(checkpoint(model), kv_cache_dtype=name, **options)
    torch.testing.assert_close(prompt_logprobs(coded, prompt), expected, atol=1e-3, rtol=0)


def test_a_trained_model_hardly_notices() -> None:
    """Mean log-probability of a text, in nats: INT8 costs less than FP8, and both little."""
    text = (data_dir() / "models" / "scoring.py").read_text("utf-8")
    losses = {}
    for name in (None, *FORMATS):
        llm = LLM("quire-mini", device="cpu", kv_cache_dtype=name, max_num_seqs=1)
        assert llm.tokenizer is not None
        losses[name] = prompt_logprobs(llm, llm.tokenizer.encode(text)[:400]).mean().item()
    assert 0 < abs(losses["int8"] - losses[None]) < 0.01
    assert 0 < abs(losses["fp8"] - losses[None]) < 0.05


@pytest.mark.parametrize("name", FORMATS)
def test_tokens_depend_neither_on_chunks_nor_on_hits_nor_on_preemption(
    name: str, checkpoint: Folder
) -> None:
    """Keys are read as they are stored, whichever step wrote them."""
    prompts = random_prompts([60, 41, 73], seed=6)
    sizes: dict[str, dict[str, Any]] = {
        "whole": {},
        "chunks": {"max_num_batched_tokens": 17},
        "one at a time": {"max_num_seqs": 1},
        "small cache": {"num_blocks": 17, "max_model_len": 128, "block_size": 8},
    }
    answers = {}
    for how, options in sizes.items():
        run = Run.of(checkpoint("qwen3-sharded"), kv_cache_dtype=name, **options)
        answers[how] = [o.outputs[0].token_ids for o in run.generate(prompts, GREEDY)]
        if how == "whole":  # again, from the cache
            answers["hits"] = [o.outputs[0].token_ids for o in run.generate(prompts, GREEDY)]
            assert max(run.hits()) > 0
        if how == "small cache":
            assert run.decisions("preempt")
    assert all(answer == answers["whole"] for answer in answers.values())


def test_an_unknown_format_is_refused(checkpoint: Folder) -> None:
    with pytest.raises(QuireError, match="kv_cache_dtype='int4': must be one of int8, fp8"):
        LLM(checkpoint("qwen3-sharded"), device="cpu", kv_cache_dtype="int4")


class Plain(TorchAttention):
    reads_scales = False


def test_a_backend_that_reads_no_scales_is_refused(checkpoint: Folder) -> None:
    with pytest.raises(QuireError, match="Plain does not read scales"):
        LLM(
            checkpoint("qwen3-sharded"),
            device="cpu",
            kv_cache_dtype="int8",
            components=Components(attention=Plain),
        )


@pytest.mark.gpu
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("model", ["qwen3-sharded", "mistral"])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_gpu_answers_as_a_cpu(
    name: str, model: str, cuda_graphs: bool, checkpoint: Folder
) -> None:
    """float32 with codes, on both: greedy tokens but where rounding tips a code over."""
    prompts = random_prompts([60, 41, 9], seed=7)
    answers = [
        [
            output.outputs[0].token_ids
            for output in Run.of(
                checkpoint(model),
                device,
                kv_cache_dtype=name,
                cuda_graphs=cuda_graphs,
                num_blocks=200,  # not all of the memory: others may run there
            ).generate(prompts, GREEDY)
        ]
        for device in ("cpu", "cuda")
    ]
    assert sum(a == b for a, b in zip(*answers, strict=True)) >= 2
