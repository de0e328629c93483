"""Bad input: the message names the value and the remedy, and nothing is lost."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch

from quire import (
    LLM,
    CheckpointError,
    InvalidRequestError,
    QuireError,
    SamplingParams,
)
from quire.arguments import check_arguments
from quire.components import Components
from quire.config import (
    CacheOptions,
    EngineConfig,
    EngineOptions,
    ModelOptions,
    SchedulingOptions,
)
from quire.kv.kv_cache_manager import PagedKVCacheManager
from quire.models.config import ModelConfig
from quire.parallel.options import ParallelOptions
from quire.prompts import TokenizedPrompt
from quire.request import Request
from quire.speculation.config import SpeculativeConfig
from quire.tokenizer import Tokenizer
from quire.trace import Trace

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
GOOD = [1, 2, 3]


@pytest.fixture(scope="module")
def small(text_folder: Path) -> LLM:
    return LLM(text_folder, device="cpu", max_model_len=32, max_num_seqs=2)


@pytest.fixture(scope="module")
def answer(small: LLM) -> list[int]:
    return small.generate(GOOD, GREEDY)[0].outputs[0].token_ids


def assert_works(llm: LLM, answer: list[int]) -> None:
    checkpoints.assert_empty(llm)
    assert llm.generate([GOOD], GREEDY)[0].outputs[0].token_ids == answer


# --- prompts -----------------------------------------------------------------

VOCAB = checkpoints.TEXT_VOCAB_SIZE
PROMPTS: dict[str, tuple[Any, str]] = {
    "empty text": ("", r"prompt '' has no tokens"),
    "empty ids": ([[]], r"prompt \[\] has no tokens: .* at least one"),
    "as long as the model": ([1] * 32, r"prompt has 32 tokens and max_model_len is 32.*shorten"),
    "longer": (
        ["a1" * 100],
        r"prompt has \d+ tokens and max_model_len is 32.*\(the model allows 256",
    ),
    "longer in bytes": (
        ["x" * 10**6],
        r"prompt has 1000000 bytes of text, of which 31 tokens of this vocabulary hold \d+ at "
        r"most, and max_model_len is 32.*shorten.*\(the model allows 256",
    ),
    "negative token": ([4, -1], r"token id -1 at position 1 is outside .* \[0, 400\)"),
    "token past the vocabulary": ([VOCAB], r"token id 400 at position 0 is outside"),
    "huge token": ([2**70], r"token id 1180591620717411303424 at position 0"),
    "float token": (
        [1, 2.5],
        r"token id 2\.5 at position 1 is of type float: token ids are integers",
    ),
    "whole float token": (
        [[1.0]],
        r"token id 1\.0 at position 0 is of type float: token ids are integers",
    ),
    "boolean token": ([True, False], r"token id True at position 0 is of type bool: token ids are"),
    "no token": ([None], r"token id None at position 0 is of type NoneType: token ids are"),
    "text among ids": ([1, "a"], r"prompt 1: give a string, a list or array of token ids"),
    "a number": (7, r"prompts 7: give a string"),
    "none": (None, r"prompts None: give a string"),
    "none among prompts": (["a", None], r"prompt None: give a string"),
    "bytes": (b"abc", r"prompts b'abc': give a string"),
    "bytes in a list": ([b"abc"], r"prompt b'abc': give a string"),
    "bytes that could be ids": (bytearray(b"abc"), r"prompts bytearray\(b'abc'\): give"),
    "a set": ({1, 2}, r"prompts \{1, 2\}: give"),
    "sets in a list": ([{1, 2}], r"token id \{1, 2\} at position 0 is of type set"),
    "a generator": ((i for i in [1, 2]), r"prompts <generator object .*: give"),
    "half of a character": ("a\ud800", r"'a\\ud800' has '\\ud800' at position 1, half of a surr"),
    "an array of fractions": (np.array([1.0, 2.0]), r"token id 1\.0 at position 0 .* integers"),
    "an array of truths": (torch.tensor([True]), r"token id True at position 0 is of type bool"),
    "a nested array": ([np.zeros((2, 2), int)], r"shape \(2, 2\): token ids are an array of one"),
    "a cube": (np.zeros((1, 1, 1), int), r"prompts array\(\[\[\[0\]\]\]\): give"),
    "a lone number in an array": (np.array(3), r"prompts array\(3\): give"),
    "an empty array": (np.array([], int), r"prompt \[\] has no tokens"),
    "an array past the vocabulary": (np.array([1, VOCAB]), r"token id 400 at position 1"),
    "an empty dict": ({}, r"prompt \{\}: give a string"),
    "a dict of another kind": ({"text": "x"}, r"has the key 'text': quire reads 'prompt' and"),
    "an image": (
        {"prompt": "x", "multi_modal_data": {"image": 1}},
        r"has the key 'multi_modal_data'",
    ),
    "ids as text": ({"prompt": [1, 2]}, r"'prompt' must be a string; .* 'prompt_token_ids'"),
    "text as ids": ({"prompt_token_ids": "ab"}, r"prompt 'ab': give"),
    "no ids": ({"prompt_token_ids": []}, r"prompt \[\] has no tokens"),
    "a prompt that was read, for another model": (
        TokenizedPrompt("x", [VOCAB]),
        r"token id 400 at position 0 is outside",
    ),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompt(name: str, small: LLM, answer: list[int]) -> None:
    prompt, message = PROMPTS[name]
    with pytest.raises(InvalidRequestError, match=message):
        small.generate(prompt, GREEDY)
    assert_works(small, answer)


@pytest.mark.parametrize("bad", [[], [VOCAB], 5, [1] * 40])
def test_one_bad_prompt_among_good_ones(bad: Any, small: LLM, answer: list[int]) -> None:
    """None of them runs, and none is left behind to run later."""
    steps = small.engine._scheduler._num_steps  # type: ignore[attr-defined]
    with pytest.raises(InvalidRequestError):
        small.generate([GOOD, "text", bad, GOOD], GREEDY)
    assert small.engine._scheduler._num_steps == steps  # type: ignore[attr-defined]
    assert_works(small, answer)


@pytest.mark.parametrize(
    "prompt",
    [
        (1, 2, 3),
        range(1, 4),
        np.array(GOOD),
        np.array(GOOD, dtype=np.uint8),
        torch.tensor(GOOD),
        torch.tensor(GOOD, dtype=torch.int32),
        list(np.array(GOOD)),
        list(torch.tensor(GOOD)),
        [np.array(GOOD)],
        np.array([GOOD]),
        {"prompt_token_ids": GOOD},
        {"prompt": "what ids 1, 2, 3 say", "prompt_token_ids": np.array(GOOD)},
        {"prompt_token_ids": GOOD, "multi_modal_data": None},
        TokenizedPrompt("said before", GOOD),
    ],
    ids=str,
)
def test_what_is_a_prompt(prompt: Any, small: LLM, answer: list[int]) -> None:
    (output,) = small.generate(prompt, GREEDY)
    assert output.prompt_token_ids == GOOD
    assert all(type(token_id) is int for token_id in output.prompt_token_ids)
    assert output.outputs[0].token_ids == answer
    given = prompt.get("prompt") if isinstance(prompt, dict) else getattr(prompt, "text", None)
    assert output.prompt == given


def test_prompts_of_all_kinds_in_one_list(small: LLM) -> None:
    kinds = ["a", {"prompt": "a"}, [1, 2], np.array([1, 2]), {"prompt_token_ids": (1, 2)}]
    outputs = small.generate(kinds, GREEDY)
    assert [o.prompt for o in outputs] == ["a", "a", None, None, None]
    assert [o.prompt_token_ids for o in outputs[2:]] == [[1, 2]] * 3
    rows = small.generate(np.array([[1, 2], [3, 4]]), GREEDY)
    assert [o.prompt_token_ids for o in rows] == [[1, 2], [3, 4]]


def test_an_error_shows_the_beginning_of_a_long_prompt(small: LLM) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        small.generate([b"x" * 10**6], GREEDY)
    assert len(str(caught.value)) < 500


def test_a_long_text_is_refused_before_it_is_tokenised(
    small: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokenising it takes a second; its bytes say as much at once."""
    texts: list[str] = []
    encode = Tokenizer.encode

    def counted(self: Tokenizer, text: str, **options: Any) -> list[int]:
        texts.append(text)
        return encode(self, text, **options)

    monkeypatch.setattr(Tokenizer, "encode", counted)
    with pytest.raises(InvalidRequestError, match="prompt has 2000000 bytes of text"):
        small.generate("é" * 10**6, GREEDY)
    assert texts == []
    small.generate("é", GREEDY)
    assert texts == ["é"]


def test_a_prompt_of_full_length_that_is_only_scored(small: LLM) -> None:
    """No output token needs room behind it."""
    reader = small.engine.prompts
    score = SamplingParams(max_tokens=0, prompt_logprobs=0)
    assert len(reader.read([1] * 32, score).token_ids) == 32
    with pytest.raises(InvalidRequestError, match=r"has 33 tokens and max_model_len is 32: sho"):
        reader.read([1] * 33, score)
    with pytest.raises(InvalidRequestError, match=r"has 32 tokens .* hold one output token too"):
        reader.read([1] * 32, SamplingParams(max_tokens=1))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ([GREEDY], r"2 prompts but 1 sampling_params: give one for all"),
        ([], r"2 prompts but 0 sampling_params"),
        ([GREEDY, None], r"sampling_params None: must be SamplingParams"),
        ({"temperature": 0}, r"sampling_params \{'temperature': 0\}: must be SamplingParams"),
        (5, r"sampling_params 5: must be"),
    ],
)
def test_sampling_params_of_generate(
    params: Any, message: str, small: LLM, answer: list[int]
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        small.generate([GOOD, GOOD], params)
    assert_works(small, answer)


def test_bad_stream(small: LLM, answer: list[int]) -> None:
    with pytest.raises(InvalidRequestError, match="has no tokens"):
        next(small.stream([]))
    with pytest.raises(InvalidRequestError, match="must be SamplingParams"):
        next(small.stream(GOOD, {"n": 2}))  # type: ignore[arg-type]
    assert_works(small, answer)


def test_a_request_id_twice(small: LLM, answer: list[int]) -> None:
    small.engine.add_request("twice", GOOD, GREEDY)
    with pytest.raises(InvalidRequestError, match="request_id='twice' still runs"):
        small.engine.add_request("twice", GOOD, GREEDY)
    small.engine.abort_request("twice")
    assert_works(small, answer)


def test_without_a_tokenizer(checkpoint: Callable[[str], Path]) -> None:
    llm = LLM(checkpoint("qwen2"), device="cpu", max_num_seqs=1)
    assert llm.tokenizer is None
    answer = llm.generate(GOOD, GREEDY)[0].outputs[0].token_ids
    assert len(answer) == 6
    for prompt, params in [("text", GREEDY), (GOOD, SamplingParams(stop="x"))]:
        with pytest.raises(InvalidRequestError, match="no tokenizer: give the prompt as token ids"):
            llm.generate(prompt, params)
        assert_works(llm, answer)


# --- sampling parameters -----------------------------------------------------

NAN, INF = float("nan"), float("inf")
VALUES: list[tuple[str, Any]] = [
    *[("temperature", v) for v in (-0.1, 101, NAN, INF, -INF, "1", None, True, [1.0])],
    *[("top_p", v) for v in (0, 0.0, -0.5, 1.01, NAN, "0.9", None, True)],
    *[("top_k", v) for v in (-2, 2.0, "5", None, True, NAN, 2**63)],
    *[("min_p", v) for v in (-0.01, 1.5, NAN, "0.1", None, False)],
    *[("repetition_penalty", v) for v in (0, -1, NAN, INF, "1", None, True, 1e-30)],
    *[("presence_penalty", v) for v in (-2.1, 2.1, NAN, "1", None)],
    *[("frequency_penalty", v) for v in (-2.1, 2.1, NAN, "1", None)],
    *[("max_tokens", v) for v in (-1, -3, "5", 5.0, True, np.bool_(True))],
    *[("min_tokens", v) for v in (-1, 17, "5", 5.0, None, True)],
    *[("n", v) for v in (0, -1, 1.0, "1", None, True)],
    *[("seed", v) for v in (2**63, -(2**63) - 1, 1.5, "1", True)],
    *[("logprobs", v) for v in (-1, 101, 1.0, "1", True)],
    *[("prompt_logprobs", v) for v in (-1, 101, 1.0, "1", True)],
    *[("stop", v) for v in ("", [""], ["a", ""], [5], 5, [None], b"x", {"a"})],
    *[("stop_token_ids", v) for v in (5, "5", ["5"], [1.0], [-1], [True], {1: 2})],
    *[("logit_bias", v) for v in (5, [1], {"1": 1.0}, {-1: 1.0}, {1: NAN}, {1: True})],
    *[("logit_bias", v) for v in ({1: 100.5}, {1: -101}, {1: None}, {1.0: 1.0}, {True: 1.0})],
    *[("allowed_token_ids", v) for v in ([], (), 5, "5", [-1], [1.0], [True], [None])],
    *[("bad_words", v) for v in ("word", [""], ["  "], [5], 5, [None])],
    *[("bad_words_ids", v) for v in ([[]], [1], 5, "5", [["1"]], [[-1]], [[1], []], [[1.0]])],
    *[("logits_processors", v) for v in (len, [5], 5, ["f"], [None])],
    *[
        (name, v)
        for name in ("ignore_eos", "detokenize", "skip_special_tokens")
        for v in ("no", 0, 1, None)
    ],
    *[("include_stop_str_in_output", v) for v in ("no", 0, 1, None)],
]


@pytest.mark.parametrize(("name", "value"), VALUES)
def test_impossible_value(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(**{name: value})
    message = str(caught.value)
    assert message.startswith(f"{name}={value!r}: must be ")
    assert len(message) > len(f"{name}={value!r}: must be ") + 3  # and says what is allowed
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0},
        {"temperature": 100, "top_p": 1, "top_k": 2**63 - 1, "min_p": 1},
        {"repetition_penalty": 0.01, "presence_penalty": -2, "frequency_penalty": 2},
        {"seed": -(2**63), "n": 3, "logprobs": 100, "prompt_logprobs": 100},
        {"stop": ["a", "b"], "stop_token_ids": [0, 10**12]},
        {"stop": [], "stop_token_ids": (), "max_tokens": 10**12},
        {"temperature": 5e-324, "top_p": 5e-324},
    ],
)
def test_extreme_but_possible(options: dict[str, Any], small: LLM, answer: list[int]) -> None:
    (output,) = small.generate([GOOD], SamplingParams(**options))
    assert output.finished
    assert_works(small, answer)


# --- the engine's sizes ------------------------------------------------------


@pytest.mark.parametrize("name", ["max_model_len", "max_num_seqs", "max_num_batched_tokens"])
@pytest.mark.parametrize("value", [0, -1, 2.0, "8", True])
def test_impossible_size(name: str, value: Any, checkpoint: Callable[[str], Path]) -> None:
    expected = re.escape(f"{name}={value!r}: must be an integer of at least 1")
    with pytest.raises(QuireError, match=expected):
        LLM(checkpoint("qwen2"), device="cpu", **{name: value})


def test_longer_than_the_model(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(QuireError, match=r"max_model_len=257: the model was made for 256 tokens"):
        LLM(checkpoint("qwen2"), device="cpu", max_model_len=257)
    assert LLM(checkpoint("qwen2"), device="cpu").config.model.max_model_len == 256


@pytest.mark.parametrize("device", ["cuda", "cuda:3", torch.device("cuda")])
def test_no_gpu(
    device: Any, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(QuireError, match=r"device='cuda.*': torch sees no CUDA.*device='cpu'"):
        LLM(checkpoint("qwen2"), device=device)


@pytest.mark.parametrize(
    "device",
    ["gpu", "cudaa", "cuda:x", "", 1.5, True, "meta", "mps", "cpu:3", torch.device("meta")],
)
def test_unknown_device(device: Any, checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(QuireError, match=re.escape(f"device={device!r}: must be 'cpu'")):
        LLM(checkpoint("qwen2"), device=device)


@pytest.mark.parametrize("dtype", ["fp16", "float64", "", torch.int8, 16])
def test_unknown_dtype(dtype: Any, checkpoint: Callable[[str], Path]) -> None:
    message = r"dtype=.*: must be 'auto' or one of float32, bfloat16, float16"
    with pytest.raises(QuireError, match=message):
        LLM(checkpoint("qwen2"), device="cpu", dtype=dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", torch.float32])
def test_other_dtypes_run(dtype: Any, checkpoint: Callable[[str], Path]) -> None:
    llm = LLM(checkpoint("qwen3-sharded"), device="cpu", dtype=dtype)
    assert len(llm.generate([GOOD, [5]], GREEDY)[1].outputs[0].token_ids) == 6


class FullCache(PagedKVCacheManager):
    """Has no room, ever."""

    def reserve(self, request: Request, num_tokens: int) -> None:
        return None


@pytest.mark.parametrize("overlap", [False, True])
def test_a_cache_that_has_no_room(overlap: bool, checkpoint: Callable[[str], Path]) -> None:
    """An error, where a loop that waits for room would never end."""
    components = Components(kv_cache_manager=FullCache)
    llm = LLM(checkpoint("qwen2"), device="cpu", overlap=overlap, components=components)
    for _ in range(2):
        with pytest.raises(QuireError, match=r"scheduled nothing while 3 requests wait: the KV"):
            llm.generate([GOOD] * 3, GREEDY)
        checkpoints.assert_empty(llm)


def test_a_cache_too_small_for_one_request(checkpoint: Callable[[str], Path]) -> None:
    """256 tokens are 16 blocks, and the null block comes on top."""
    message = (
        r"the KV cache has 15 blocks of 16 tokens and one request of max_model_len needs 16: "
        r"lower max_model_len to at most 240, or give the cache more blocks \(num_blocks"
    )
    with pytest.raises(QuireError, match=message):
        LLM(checkpoint("qwen2"), device="cpu", num_blocks=16)
    llm = LLM(checkpoint("qwen2"), device="cpu", num_blocks=17, max_num_seqs=2)
    params = SamplingParams(temperature=0, max_tokens=500, ignore_eos=True)
    outputs = llm.generate([[1] * 250, [2] * 250], params)  # one waits for the other
    assert [len(o.outputs[0].token_ids) for o in outputs] == [6, 6]
    checkpoints.assert_empty(llm)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *[({"num_blocks": v}, f"num_blocks={v!r}: must be an integer") for v in (0, 1, -5, 2.0)],
        *[
            ({"block_size": v}, f"block_size={v!r}: must be a power of two of at least 8")
            for v in (0, 4, 12, -16, 16.0, "16", None)
        ],
        *[
            ({"gpu_memory_utilization": v}, f"gpu_memory_utilization={v!r}: must lie in (0, 1]")
            for v in (0, -0.1, 1.5, NAN)
        ],
        *[
            ({name: v}, f"{name}={v!r}: must be a number")
            for name in ("gpu_memory_utilization", "watermark")
            for v in ("0.9", None, True, [0.5])
        ],
        *[
            ({name: v}, f"{name}={v!r}: must be True or False")
            for name in ("enable_prefix_caching", "overlap", "cuda_graphs")
            for v in ("no", "false", 0, 1, [])
        ],
        ({"enable_prefix_caching": None}, "enable_prefix_caching=None: must be True or False"),
        ({"kv_cache_dtype": ["int8"]}, "kv_cache_dtype=['int8']: must be one of int8, fp8, or"),
        ({"policy": ["fcfs"]}, "policy=['fcfs']: must be one of fcfs, priority, fair"),
        ({"policy": None}, "policy=None: must be one of fcfs, priority, fair"),
        ({"policy": "lifo"}, "policy='lifo': must be one of fcfs, priority, fair"),
    ],
)
def test_impossible_cache_or_policy(
    options: dict[str, Any], message: str, checkpoint: Callable[[str], Path]
) -> None:
    with pytest.raises(QuireError, match=re.escape(message)):
        LLM(checkpoint("qwen2"), device="cpu", **options)


def test_a_cache_larger_than_the_machine(checkpoint: Callable[[str], Path]) -> None:
    message = r"num_blocks=100000000000: the KV cache needs .* GB and the machine has .* most \d+"
    with pytest.raises(QuireError, match=message):
        LLM(checkpoint("qwen2"), device="cpu", num_blocks=10**11)


def test_engine_config_alone() -> None:
    for watermark in (-0.1, 1, 1.5, NAN):
        with pytest.raises(QuireError, match=rf"watermark={watermark}: must lie in \[0, 1\)"):
            SchedulingOptions(watermark=watermark)
    with pytest.raises(QuireError, match="max_num_seqs=0"):
        EngineConfig.of(
            max_model_len=8, device=torch.device("cpu"), dtype=torch.float32, max_num_seqs=0
        )
    with pytest.raises(QuireError, match="unknown option 'max_seqs': there are block_size, cuda_"):
        LLM("quire-mini", max_seqs=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "max_model_len is missing: give the longest sequence"),
        ({"max_num_seqs": 2}, "max_model_len is missing"),
        ({"max_model_len": 8, "device": "meta"}, "device='meta': must be 'cpu'"),
        ({"max_model_len": 8, "dtype": "int4", "device": "cpu"}, "dtype='int4': must be 'auto'"),
        ({"max_model_len": 8, "overlap": None}, "overlap=None: must be True or False"),
    ],
)
def test_options_alone(options: dict[str, Any], message: str) -> None:
    with pytest.raises(QuireError, match=re.escape(message)):
        EngineConfig.of(**options)


def test_names_of_device_and_dtype_are_read() -> None:
    for dtype, read in [("half", torch.float16), ("float", torch.float32), ("auto", torch.float32)]:
        model = EngineConfig.of(max_model_len=8, device="cpu", dtype=dtype).model
        assert (model.device, model.dtype) == (torch.device("cpu"), read)


def test_the_caches_dtype_auto_is_the_models() -> None:
    """The name is vLLM's, and its default."""
    auto = EngineConfig.of(max_model_len=8, device="cpu", dtype="half", kv_cache_dtype="auto")
    assert auto.cache_dtype == torch.float16
    assert auto.cache == CacheOptions()


def test_more_rows_than_memory_holds(checkpoint: Callable[[str], Path]) -> None:
    """The most that the message names is taken."""
    options: dict[str, Any] = {"max_model_len": 64, "device": "cpu"}
    message = r"max_num_seqs=1000000000: rows of max_model_len=64 tokens take .* at most (\d+), or"
    with pytest.raises(QuireError, match=message) as caught:
        LLM(checkpoint("qwen2"), max_num_seqs=10**9, **options)
    found = re.search(message, str(caught.value))
    assert found is not None
    assert EngineConfig.of(max_num_seqs=int(found[1]), **options)
    with pytest.raises(QuireError, match="max_num_seqs"):
        EngineConfig.of(max_num_seqs=int(found[1]) + 1, **options)


@pytest.mark.parametrize("name", ["logprobs", "prompt_logprobs"])
def test_the_whole_vocabularys_logprobs(name: str) -> None:
    """vLLM gives them for -1; the message says what to ask instead."""
    with pytest.raises(InvalidRequestError, match="for -1, ask for the 100 most probable"):
        SamplingParams(**{name: -1})  # type: ignore[arg-type]


def test_every_option_has_a_group() -> None:
    """What `LLM` takes by name is a field of one group, which describes it.

    Speculation's options come as one dict, whose keys are the fields of its group.
    """
    groups = (ModelOptions, CacheOptions, SchedulingOptions, ParallelOptions)
    described = [field.name for group in groups for field in fields(group)]
    assert sorted([*described, "speculative_config"]) == sorted(EngineOptions.__annotations__)
    for group in (*groups, SpeculativeConfig):
        for field in fields(group):
            assert f"    {field.name}: " in (group.__doc__ or ""), field.name
    for name in EngineOptions.__annotations__:
        assert f"`{name}`" in (LLM.__doc__ or ""), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *[({"model": v}, f"model={v!r}: must be a shipped") for v in (None, b"quire-mini", "", 5)],
        ({"components": Components}, "components=<class 'quire.components.Components'>: must be"),
        ({"components": {}}, "components={}: must be Components"),
        ({"trace": "x"}, "trace='x': must be a Trace, which you make"),
        ({"trace": Trace}, "trace=<class 'quire.trace.Trace'>: must be a Trace"),
    ],
)
def test_arguments_of_llm(arguments: dict[str, Any], message: str) -> None:
    """They are looked at before anything is loaded."""
    given: dict[str, Any] = {"model": "quire-mini", "components": None, "trace": None}
    with pytest.raises(QuireError, match=re.escape(message)):
        check_arguments(**(given | arguments))


@pytest.mark.parametrize(
    "model", ["x", Path("x"), ModelConfig("LlamaForCausalLM", 50, 32, 64, 2, 4, 2, 8, 64)]
)
def test_arguments_that_may_be(model: Any) -> None:
    check_arguments(model, None, None)
    check_arguments(model, Components(), Trace())


def test_a_folder_that_does_not_exist() -> None:
    with pytest.raises(CheckpointError, match=r"does not exist; is .* a checkpoint"):
        ModelConfig.from_folder("no/such/folder")
