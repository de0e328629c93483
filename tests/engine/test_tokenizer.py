"""The engine's copy of a tokenizer: the same ids and text, settings of its own, sound limits."""

from __future__ import annotations

import sys
import threading
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_tokenizers import KINDS, byte_level, gemma, llama2, mistral
from tokenizers import AddedToken, normalizers, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from quire import LLM, InvalidRequestError, SamplingParams
from quire.chat import ChatOptions, encode_chat, lay_out
from quire.detokenizer import Detokenizer
from quire.tokenizer import Tokenizer

TEXTS = ["a b<s>c </s> é日👍 \n\n\t", "<|im_start|>a<|im_end|>b", "", " a  b ", "\ufffd\x00"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_the_same_ids_and_text(kind: str, text: str) -> None:
    source = KINDS[kind]()
    tokenizer = Tokenizer(source)
    for special in (False, True):
        ids = tokenizer.encode(text, add_special_tokens=special)
        assert ids == source.encode(text, add_special_tokens=special)
        assert tokenizer.decode(ids) == source.decode(ids)


def test_the_shipped_models_tokenizer() -> None:
    tokenizer = LLM("quire-mini-draft", device="cpu").get_tokenizer()
    text = "def f(x):\n    return x<|im_end|> é日"
    assert Tokenizer(tokenizer).encode(text) == tokenizer.encode(text)


def test_tokens_added_behind_a_gap_keep_their_ids() -> None:
    """Added tokens may begin anywhere behind the vocabulary, so that the copy must be whole."""
    source = byte_level()
    source.add_tokens(["spam", "eggs"])
    state = source.backend_tokenizer.to_str().replace('"id":261', '"id":300')
    gapped = PreTrainedTokenizerFast(
        tokenizer_object=source.backend_tokenizer.from_str(state), bos_token="<|im_start|>"
    )
    assert Tokenizer(gapped).encode("a eggs spam") == gapped.encode("a eggs spam")


def test_a_tokenizer_written_in_python() -> None:
    """It has no backend to copy: it serves as it is, and has no limit on text."""
    source = ByT5Tokenizer(extra_ids=0)
    tokenizer = Tokenizer(source)
    ids = tokenizer.encode("é日👍 a")
    assert ids == source.encode("é日👍 a")
    assert tokenizer.longest_text(5) is None
    detokenizer = Detokenizer(tokenizer, SamplingParams(), ids[:1])
    for token_id in [*ids[1:], 999]:  # the last is none of its ids
        detokenizer.append(token_id)
    detokenizer.finish()
    assert detokenizer.text == "é日👍 a"
    options = ChatOptions(chat_template="{{ messages[0].content }}</s>")
    layout = lay_out(tokenizer, [{"role": "user", "content": "a"}], options)
    assert encode_chat(tokenizer, layout) == source.encode("a")
    typed = lay_out(tokenizer, [{"role": "user", "content": "a</s>"}], options)
    with pytest.raises(InvalidRequestError, match="cannot read it as text"):
        encode_chat(tokenizer, typed)


def test_a_readers_settings_are_not_the_engines() -> None:
    """Padding, truncation and reading special tokens as text stay with the reader's."""
    source = byte_level()
    tokenizer = Tokenizer(source)
    expected = tokenizer.encode("a<|im_end|>b")
    source.backend_tokenizer.enable_truncation(2)
    source.backend_tokenizer.enable_padding(length=50)
    source.backend_tokenizer.encode_special_tokens = True
    assert len(source.backend_tokenizer.encode("a<|im_end|>b").ids) == 50
    assert tokenizer.encode("a<|im_end|>b") == expected


def test_many_threads_encode_at_once() -> None:
    """While another one pads and truncates by the tokenizer that they share."""
    source = byte_level()
    source.pad_token = "<|im_end|>"
    tokenizer = Tokenizer(source)
    texts = [f"a{'b' * n}<|im_end|> en" for n in range(40)]
    expected = [tokenizer.encode(text) for text in texts]
    wrong: list[str] = []
    done = threading.Event()

    def encode() -> None:
        for _ in range(20):
            wrong.extend(
                t for t, ids in zip(texts, expected, strict=True) if tokenizer.encode(t) != ids
            )

    def disturb() -> None:
        while not done.is_set():
            source(texts, padding=True, truncation=True, max_length=4)
            source.encode("a<|im_end|>", split_special_tokens=True)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=encode) for _ in range(3)]
        disturber = threading.Thread(target=disturb)
        for thread in [*threads, disturber]:
            thread.start()
        for thread in threads:
            thread.join()
        done.set()
        disturber.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []


# --- how much text a token can hold ------------------------------------------

LIMITED = {
    "llama2": llama2,
    "gemma": gemma,
    "mistral": mistral,
    "byte-level": byte_level,
    "composing": lambda: byte_level(normalizers.NFC()),
}


@pytest.mark.parametrize("kind", LIMITED)
def test_no_text_is_longer_than_the_limit_says(kind: str) -> None:
    tokenizer = Tokenizer(LIMITED[kind]())

    @settings(deadline=None, derandomize=True, max_examples=150)
    @given(text=st.text() | st.text("ab e\nné日\u1100\u1161\u11a8\u212a</s>", max_size=60))
    @example("\u212a" * 9)  # the Kelvin sign, three bytes that are composed to a K
    @example("\u1100\u1161\u11a8" * 9)  # letters of Korean, composed to a third
    @example(" " * 40)
    @example("</s>" * 9)
    @example("<|im_start|>" * 9)
    def check(text: str) -> None:
        num_tokens = len(tokenizer.encode(text, add_special_tokens=False))
        limit = tokenizer.longest_text(num_tokens)
        assert limit is not None
        assert len(text.encode()) <= limit

    check()


def test_the_limit_is_the_longest_tokens_length() -> None:
    assert Tokenizer(byte_level()).longest_text(1) == len("<|im_start|>")
    assert Tokenizer(byte_level()).longest_text(10) == 10 * len("<|im_start|>")
    wide = byte_level()
    wide.add_tokens(["日" * 10])
    assert Tokenizer(wide).longest_text(1) == 30


def test_composing_makes_a_quarter_at_most() -> None:
    """Of every character, if its parts are written by the longest characters there are for them."""
    longest: dict[str, int] = {}  # bytes of a character that has these parts
    for code in [*range(0xD800), *range(0xE000, sys.maxunicode + 1)]:
        parts = unicodedata.normalize("NFD", chr(code))
        if parts != chr(code):
            longest[parts] = max(longest.get(parts, 0), len(chr(code).encode()))

    def most(parts: str) -> int:
        found = [len(parts[:1].encode()) + most(parts[1:])] if parts else [0]
        for cut in range(1, len(parts) + 1):
            if parts[:cut] in longest:
                found.append(longest[parts[:cut]] + most(parts[cut:]))
        return max(found)

    composed = [unicodedata.normalize("NFC", parts) for parts in longest]
    assert (
        max(most(parts) / len(c.encode()) for parts, c in zip(longest, composed, strict=True))
        == 3.5
    )


def without_a_byte() -> PreTrainedTokenizerFast:
    source = byte_level()
    state = source.backend_tokenizer.to_str().replace('"\u00e0":', '"elsewhere":')
    return PreTrainedTokenizerFast(tokenizer_object=source.backend_tokenizer.from_str(state))


def with_part(name: str, part: object) -> PreTrainedTokenizerFast:
    source = byte_level()
    setattr(source.backend_tokenizer, name, part)
    return source


def with_added(**flags: bool) -> PreTrainedTokenizerFast:
    source = byte_level()
    source.add_tokens([AddedToken("spam", **flags)])
    return source


UNLIMITED: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "one token for whatever it does not know": KINDS["words"],
    "a byte has no token": without_a_byte,
    "spaces at the ends are dropped": lambda: with_part("normalizer", normalizers.Strip()),
    "spaces are dropped": lambda: with_part(
        "pre_tokenizer",
        pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
    ),
    "some text is replaced by less": lambda: with_part("normalizer", normalizers.Replace("ab", "")),
    "a token takes the spaces behind it": lambda: with_added(rstrip=True),
}


@pytest.mark.parametrize("name", UNLIMITED)
def test_a_tokenizer_that_loses_text_has_no_limit(name: str) -> None:
    tokenizer = Tokenizer(UNLIMITED[name]())
    assert tokenizer.longest_text(5) is None
