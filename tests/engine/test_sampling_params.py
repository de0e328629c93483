"""`SamplingParams`: vLLM's values are taken, and what depends on model and prompt is resolved."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from quire import LLM, InvalidRequestError, SamplingParams
from quire.sampling.resolve import resolve, resolve_bad_words

GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}


READ: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"stop": None, "stop_token_ids": None, "bad_words": None, "logit_bias": None}, {}),
    ({"top_k": -1}, {"top_k": 0}),
    ({"stop": "a"}, {"stop": ["a"]}),
    ({"stop": ("a", "b")}, {"stop": ["a", "b"]}),
    ({"temperature": np.float32(0.5), "top_k": np.int32(7)}, {"temperature": 0.5, "top_k": 7}),
    ({"top_p": torch.tensor(0.5), "seed": torch.tensor(9)}, {"top_p": 0.5, "seed": 9}),
    ({"max_tokens": np.int64(3), "n": np.uint8(2)}, {"max_tokens": 3, "n": 2}),
    ({"temperature": np.array(0), "logprobs": np.int8(4)}, {"temperature": 0, "logprobs": 4}),
    ({"min_tokens": torch.tensor(2)}, {"min_tokens": 2}),
    ({"stop_token_ids": np.array([3, 4])}, {"stop_token_ids": [3, 4]}),
    ({"stop_token_ids": torch.tensor([3, 4])}, {"stop_token_ids": [3, 4]}),
    ({"allowed_token_ids": range(2, 5)}, {"allowed_token_ids": [2, 3, 4]}),
    ({"logit_bias": {np.int64(3): np.float64(1.5), 4: -100}}, {"logit_bias": {3: 1.5, 4: -100}}),
    ({"bad_words_ids": ((1, np.int64(2)), [3])}, {"bad_words_ids": [[1, 2], [3]]}),
    ({"ignore_eos": np.bool_(True)}, {"ignore_eos": True}),
]


@pytest.mark.parametrize(("given", "read"), READ)
def test_values_are_read_as_python_numbers(given: dict[str, Any], read: dict[str, Any]) -> None:
    params = SamplingParams(**given)
    assert params == SamplingParams(**read)
    for name, value in read.items():
        found = getattr(params, name)
        assert found == value
        assert type(found) is type(value)


@pytest.mark.parametrize("value", [np.bool_(True), torch.tensor(True), np.float64("nan")])
@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k", "max_tokens", "n", "seed"])
def test_flags_and_nan_are_no_numbers_in_any_library(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=rf"^{name}=.*: must be "):
        SamplingParams(**{name: value})


def test_parameters_do_not_follow_the_callers_lists() -> None:
    stop, ids, bias = ["a"], [1], {1: 2.0}
    params = SamplingParams(stop=stop, stop_token_ids=ids, logit_bias=bias)
    stop.append("b")
    ids.append(2)
    bias.clear()
    assert params == SamplingParams(stop=["a"], stop_token_ids=[1], logit_bias={1: 2.0})


def test_parameters_that_exclude_each_other() -> None:
    with pytest.raises(InvalidRequestError, match=r"min_tokens=9: must be at most max_tokens=8"):
        SamplingParams(min_tokens=9, max_tokens=8)
    assert SamplingParams(min_tokens=9, max_tokens=None).min_tokens == 9
    with pytest.raises(InvalidRequestError, match=r"detokenize=False: must be True, as stop="):
        SamplingParams(detokenize=False, stop="a")


# --- what the prompt and the model decide --------------------------------------


def resolved(params: SamplingParams, tokenizer: Any = None) -> SamplingParams:
    return resolve(params, tokenizer, num_prompt_tokens=10, max_model_len=32, vocab_size=100)


def test_none_is_the_room_that_is_left(llm: LLM) -> None:
    assert resolved(SamplingParams(max_tokens=None)).max_tokens == 22
    assert resolved(SamplingParams(max_tokens=3)) == SamplingParams(max_tokens=3)
    prompt = [7] * (llm.config.model.max_model_len - 5)
    (output,) = llm.generate([prompt], SamplingParams(**GREEDY, max_tokens=None))
    assert len(output.outputs[0].token_ids) == 5
    assert output.outputs[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_tokens": 23, "max_tokens": None}, r"min_tokens=23: max_model_len=32 .* room for 22"),
        ({"logit_bias": {4: 1.0, 100: 1.0}}, r"logit_bias has token id 100, .* \[0, 100\)"),
        ({"allowed_token_ids": [1, 2**70]}, r"allowed_token_ids has token id \d{22}, .* outside"),
        ({"bad_words_ids": [[1], [2, 100]]}, r"bad_words_ids has token id 100, .* outside"),
        ({"bad_words": ["x"]}, r"bad_words=\['x'\]: .* no tokenizer; give bad_words_ids"),
    ],
)
def test_what_a_model_cannot_serve(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        resolved(SamplingParams(**options))


def test_the_engine_refuses_what_its_model_cannot_serve(llm: LLM) -> None:
    beyond = llm.model_config.vocab_size
    for options in ({"logit_bias": {beyond: 1.0}}, {"allowed_token_ids": [beyond]}):
        with pytest.raises(InvalidRequestError, match=rf"token id {beyond}, which is outside"):
            llm.generate([[1, 2]], SamplingParams(**options))


# --- bad words -------------------------------------------------------------------


def test_a_bad_word_is_spelt_with_and_without_a_space(tokenizer: PreTrainedTokenizerFast) -> None:
    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False))

    assert resolve_bad_words(tokenizer, ["item"]) == (ids("item"), ids(" item"))
    assert resolve_bad_words(tokenizer, ["  item", "item"]) == (ids("item"), ids(" item"))
    assert resolve_bad_words(tokenizer, ["\n"])[0] == ids("\n")
    found = resolved(SamplingParams(bad_words=["item"], bad_words_ids=[[5]]), tokenizer)
    assert found.bad_words_ids == [[5], list(ids("item")), list(ids(" item"))]
    assert resolve(found, None, num_prompt_tokens=1, max_model_len=2, vocab_size=500) is found


def test_a_word_that_the_tokenizer_does_not_know() -> None:
    class Deaf:
        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            return []

    with pytest.raises(InvalidRequestError, match=r"bad_words has 'x', which .* no token of"):
        resolve_bad_words(Deaf(), ["x"])
