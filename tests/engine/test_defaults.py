"""What holds for a request that says nothing: the model's advice, as vLLM takes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from runs import run_async

from quire import LLM, AsyncEngine, CheckpointError, QuireError, RequestOutput, SamplingParams
from quire.defaults import default_sampling_params


def advise(folder: Path, **values: Any) -> Path:
    """Write a folder's `generation_config.json`."""
    (folder / "generation_config.json").write_text(json.dumps(values))
    return folder


def with_advice(text_folder: Path, tmp_path: Path, **values: Any) -> Path:
    for path in text_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return advise(tmp_path, **values)


def test_the_models_advice(tmp_path: Path) -> None:
    folder = advise(
        tmp_path,
        do_sample=False,  # vLLM does not look at it
        temperature=0.6,
        top_k=20,
        top_p=0.95,
        min_p=0.1,
        repetition_penalty=1.05,
        max_new_tokens=33,
        max_length=5,
        eos_token_id=[1, 2],
        transformers_version="4.51.0",
    )
    assert default_sampling_params(folder) == SamplingParams(
        temperature=0.6, top_k=20, top_p=0.95, min_p=0.1, repetition_penalty=1.05, max_tokens=33
    )
    assert default_sampling_params(folder, "vllm") == SamplingParams()


def test_no_advice(tmp_path: Path) -> None:
    assert default_sampling_params(tmp_path) == SamplingParams()
    assert default_sampling_params(None) == SamplingParams()
    assert (
        default_sampling_params(advise(tmp_path, temperature=None, top_k=None)) == SamplingParams()
    )


def test_advice_from_elsewhere(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    for folder, top_k in [(own, 1), (other, 2)]:
        folder.mkdir()
        advise(folder, top_k=top_k)
    assert default_sampling_params(own, str(other)).top_k == 2
    assert default_sampling_params(own, other).top_k == 2
    with pytest.raises(CheckpointError, match=r"generation_config='nowhere': there is no nowhere"):
        default_sampling_params(own, "nowhere")


@pytest.mark.parametrize("name", [None, "", 5, ["auto"]])
def test_advice_from_what_is_no_name(name: Any, tmp_path: Path) -> None:
    with pytest.raises(QuireError, match=r"generation_config=.*: must be 'auto' .* or a folder"):
        default_sampling_params(tmp_path, name)


@pytest.mark.parametrize("content", ["{", "[1]", "5"])
def test_advice_that_cannot_be_read(content: str, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(
        CheckpointError, match=r"generation_config\.json (is not valid|holds no) JSON"
    ):
        default_sampling_params(tmp_path)


def test_advice_that_cannot_be_taken(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"advises top_p=7: must be .* generation_config='vl"):
        default_sampling_params(advise(tmp_path, top_p=7))


def test_it_holds_where_nothing_is_said(text_folder: Path, tmp_path: Path) -> None:
    """In generate, chat, stream and behind asyncio; what a caller says is taken as it is."""
    folder = with_advice(text_folder, tmp_path, temperature=0.0, max_new_tokens=3)
    llm = LLM(folder, device="cpu", max_num_seqs=2)
    assert llm.get_default_sampling_params() == SamplingParams(temperature=0, max_tokens=3)
    advised = llm.generate("def", SamplingParams(temperature=0, max_tokens=3))[0].outputs[0]
    assert llm.generate("def")[0].outputs[0] == advised
    assert list(llm.stream("def"))[-1].outputs[0] == advised
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    chat = [{"role": "user", "content": "def"}]
    assert llm.chat(chat, chat_template=template)[0].outputs[0] == advised

    async def served() -> RequestOutput:
        async with AsyncEngine(folder, device="cpu", max_num_seqs=2) as engine:
            return [output async for output in engine.generate("def")][-1]

    assert run_async(served()).outputs[0] == advised
    own = SamplingParams(max_tokens=5, ignore_eos=True)
    assert len(llm.generate("def", own)[0].outputs[0].token_ids) == 5
    neutral = LLM(folder, device="cpu", generation_config="vllm")
    assert neutral.get_default_sampling_params() == SamplingParams()


def test_dtype_auto_is_the_default(text_folder: Path) -> None:
    chosen = [LLM(text_folder, device="cpu", **options) for options in ({}, {"dtype": "auto"})]
    outputs = [llm.generate("a", SamplingParams(temperature=0, logprobs=1)) for llm in chosen]
    assert outputs[0][0].outputs == outputs[1][0].outputs


def test_the_tokenizer(llm: LLM, text_folder: Path) -> None:
    assert llm.get_tokenizer() is llm.tokenizer
    assert llm.get_tokenizer().decode(llm.get_tokenizer().encode("def f")) == "def f"


def test_no_tokenizer() -> None:
    from quire.models.config import ModelConfig

    config = ModelConfig("LlamaForCausalLM", 50, 32, 64, 2, 4, 2, 8, 64)
    with pytest.raises(QuireError, match="no tokenizer"):
        LLM(config, device="cpu", max_num_seqs=1).get_tokenizer()
