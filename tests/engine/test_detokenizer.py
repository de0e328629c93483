"""Text from tokens: what is shown is final, complete, and free of stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from quire import SamplingParams
from quire.detokenizer import Detokenizer, Tokenizer

TEXTS = [
    "def fibonacci(n):\n    return n",
    "naïve façade — “quotes” …",
    "日本語と中文 한국어",
    "👩‍👩‍👧‍👦 family, 🏳️‍🌈 flag, 🇫🇷, 👍🏽",
    "a\u0301 combining, \u200f right to left שלום",
    "tabs\t and   spaces  \n\n end ",
    "\ufffd is a character too \ufffd\ufffd",
    "\x00\x01 control",
]


class ByteTokenizer:
    """Every byte a token, 256 a special one; what is no UTF-8 decodes to U+FFFD."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        assert skip_special_tokens
        return bytes(t for t in token_ids if t < 256).decode("utf-8", errors="replace")


class SpaceTokenizer(ByteTokenizer):
    """Drops a leading space, as SentencePiece does: a token's text depends on what precedes."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        return super().decode(token_ids, skip_special_tokens=skip_special_tokens).removeprefix(" ")


def after(
    tokenizer: Tokenizer, stops: list[str] | None = None, prompt: Sequence[int] = (), **options: Any
) -> Detokenizer:
    """A detokenizer of what follows a prompt."""
    return Detokenizer(tokenizer, SamplingParams(stop=stops or [], **options), prompt)


def feed(detokenizer: Detokenizer, token_ids: list[int]) -> list[str]:
    """Append tokens until a stop, then finish; return what was ready after each."""
    shown = []
    for token_id in token_ids:
        detokenizer.append(token_id)
        shown.append(detokenizer.ready)
        if detokenizer.stopped_by is not None:
            break
    detokenizer.finish()
    return [*shown, detokenizer.ready]


def assert_grows(shown: list[str]) -> None:
    for earlier, later in pairwise(shown):
        assert later.startswith(earlier)


@pytest.mark.parametrize("text", TEXTS)
def test_byte_by_byte(text: str) -> None:
    shown = feed(after(ByteTokenizer()), ByteTokenizer().encode(text))
    assert_grows(shown)
    assert shown[-1] == text


@pytest.mark.parametrize("text", TEXTS)
def test_a_trained_tokenizer(text: str, tokenizer: PreTrainedTokenizerFast) -> None:
    token_ids = tokenizer.encode(text)
    shown = feed(after(tokenizer), token_ids)
    assert_grows(shown)
    assert shown[-1] == tokenizer.decode(token_ids)


def test_characters_appear_as_soon_as_they_are_whole() -> None:
    shown = feed(after(ByteTokenizer()), ByteTokenizer().encode("aé日b"))
    assert shown == ["a", "a", "aé", "aé", "aé", "aé日", "aé日b", "aé日b"]


def test_incomplete_bytes_at_the_end_are_shown_once() -> None:
    token_ids = [*b"ok ", *"日".encode()[:2]]
    shown = feed(after(ByteTokenizer()), token_ids)
    assert shown[-2:] == ["ok ", "ok \ufffd"]


def test_special_tokens_have_no_text() -> None:
    token_ids = [256, *b"a", 256, *"é".encode()[:1], 256, *"é".encode()[1:], 256]
    assert feed(after(ByteTokenizer()), token_ids)[-1] == "aé"


@pytest.mark.parametrize("text", [" a b", "a  b", "  x"])
def test_a_leading_space_is_lost_at_the_start_only(text: str) -> None:
    tokens = SpaceTokenizer().encode(text)
    assert feed(after(SpaceTokenizer()), tokens)[-1] == text.removeprefix(" ")


@settings(deadline=None, derandomize=True)
@given(data=st.binary(max_size=40))
def test_any_bytes(data: bytes) -> None:
    """Broken UTF-8 included: the stream adds up to what decoding all at once gives."""
    shown = feed(after(ByteTokenizer()), list(data))
    assert_grows(shown)
    assert shown[-1] == data.decode("utf-8", errors="replace")


@settings(deadline=None, derandomize=True)
@given(tokens=st.lists(st.integers(0, 330), max_size=30))
def test_any_tokens(tokens: list[int], tokenizer: PreTrainedTokenizerFast) -> None:
    """Random ids of a real tokenizer, ids it does not know included."""
    shown = feed(after(tokenizer), tokens)
    assert_grows(shown)
    assert shown[-1] == tokenizer.decode(tokens, skip_special_tokens=True)


# --- stop strings ------------------------------------------------------------


def cut(pieces: list[str], stops: list[str]) -> tuple[str, str | None]:
    """The naive rule: after each piece of text, look for every stop from the start."""
    text = ""
    for piece in pieces:
        text += piece
        found = [(text.index(stop), stop) for stop in stops if stop in text]
        if found:
            position, stop = min(found)
            return text[:position], stop
    return text, None


class PieceTokenizer:
    """Token i is the i-th piece of a list of texts."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        return "".join(self.pieces[token_id] for token_id in token_ids)


CASES: dict[str, Any] = {
    "inside one token": (["hello STOP there"], ["STOP"], "hello ", "STOP"),
    "over three tokens": (["a S", "TO", "P b"], ["STOP"], "a ", "STOP"),
    "at the very start": (["ST", "OP"], ["STOP"], "", "STOP"),
    "at the very end": (["x", "\n", "\n"], ["\n\n"], "x", "\n\n"),
    "not quite": (["ST", "O", "ST", "OP"], ["STOP"], "STO", "STOP"),
    "never": (["ST", "O"], ["STOP"], "STO", None),
    "earliest of two in one token": (["a end b stop"], ["stop", "end"], "a ", "end"),
    "overlapping": (["xab", "cd"], ["bcd", "abc"], "x", "abc"),
    "one begins the other": (["x", "ab", "c"], ["abc", "ab"], "x", "ab"),
    "one within the other": (["abcd"], ["bc", "abcd"], "", "abcd"),
    "repeated prefix": (["a", "a", "a", "b"], ["aab"], "a", "aab"),
    "beyond the longest token": (
        ["12345678901234567890", "S", "T"],
        ["ST"],
        "1234567890" * 2,
        "ST",
    ),
    "one character": (["ab", "c"], ["c"], "ab", "c"),
}


@pytest.mark.parametrize("name", CASES)
def test_stop_strings(name: str) -> None:
    pieces, stops, text, stopped_by = CASES[name]
    assert cut(pieces, stops) == (text, stopped_by)  # the oracle agrees with the table
    detokenizer = after(PieceTokenizer(pieces), stops)
    shown = feed(detokenizer, list(range(len(pieces))))
    assert_grows(shown)
    assert (detokenizer.text, detokenizer.stopped_by) == (text, stopped_by)
    assert shown[-1] == text


letters = st.text("ab", min_size=1, max_size=4)


@settings(deadline=None, derandomize=True)
@given(pieces=st.lists(letters, max_size=12), stops=st.lists(letters, min_size=1, max_size=3))
def test_any_stop_strings(pieces: list[str], stops: list[str]) -> None:
    """Two letters make every kind of overlap likely. Nothing shown is ever taken back."""
    detokenizer = after(PieceTokenizer(pieces), stops)
    shown = feed(detokenizer, list(range(len(pieces))))
    assert_grows(shown)
    text, stopped_by = cut(pieces, stops)
    assert (detokenizer.ready, detokenizer.stopped_by) == (text, stopped_by)
    assert not any(stop in text for stop in stops)


def test_a_stop_string_of_several_bytes() -> None:
    detokenizer = after(ByteTokenizer(), ["日本"])
    shown = feed(detokenizer, ByteTokenizer().encode("in 日本語"))
    assert detokenizer.stopped_by == "日本"
    assert shown[-1] == "in "
    assert all("日" not in text for text in shown)


def test_a_stop_string_made_by_the_incomplete_end() -> None:
    """U+FFFD, shown at the end for want of bytes, is text like any other."""
    detokenizer = after(ByteTokenizer(), ["k\ufffd"])
    shown = feed(detokenizer, [*b"ok", 0xE6, 0x97])
    assert (shown[-1], detokenizer.stopped_by) == ("o", "k\ufffd")


def test_what_is_held_back_is_no_more_than_needed() -> None:
    detokenizer = after(ByteTokenizer(), ["stop", "e"])
    for byte in b"abcdfgh":
        detokenizer.append(byte)
    assert detokenizer.text == "abcdfgh"
    assert detokenizer.ready == "abcd"  # three characters may begin "stop"
    detokenizer.finish()
    assert detokenizer.ready == "abcdfgh"
