"""Text from tokens: what is shown is final, complete, and free of stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import KINDS, byte_character
from transformers import PreTrainedTokenizerFast

from quire import SamplingParams
from quire.detokenizer import Detokenizer, TokenText
from quire.tokenizer import Tokenizer

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

    def decode(self, token_ids: list[int]) -> str:
        return bytes(token_ids).decode("utf-8", errors="replace")

    def has_text(self, token_id: int, *, skip_special_tokens: bool) -> bool:
        return token_id < 256

    def is_byte(self, token_id: int) -> bool:
        return False  # each is text of its own, where it is

    def special_text(self, token_id: int) -> str | None:
        return None


class SpaceTokenizer(ByteTokenizer):
    """Drops a leading space, as SentencePiece does: a token's text depends on what precedes."""

    def decode(self, token_ids: list[int]) -> str:
        return super().decode(token_ids).removeprefix(" ")


class OmittingTokenizer(ByteTokenizer):
    """Leaves bytes out that are no character, or not yet one."""

    def decode(self, token_ids: list[int]) -> str:
        return bytes(token_ids).decode("utf-8", errors="ignore")


def after(
    tokenizer: TokenText, stops: list[str] | None = None, prompt: Sequence[int] = (), **options: Any
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
    shown = feed(after(Tokenizer(tokenizer)), token_ids)
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
@given(data=st.binary(max_size=40) | st.text("é日👍a").map(str.encode))
def test_bytes_that_are_left_out(data: bytes) -> None:
    shown = feed(after(OmittingTokenizer()), list(data))
    assert_grows(shown)
    assert shown[-1] == data.decode("utf-8", errors="ignore")


@settings(deadline=None, derandomize=True)
@given(tokens=st.lists(st.integers(0, 330), max_size=30))
def test_any_tokens(tokens: list[int], tokenizer: PreTrainedTokenizerFast) -> None:
    """Random ids of a real tokenizer, ids it does not know included."""
    shown = feed(after(Tokenizer(tokenizer)), tokens)
    assert_grows(shown)
    assert shown[-1] == tokenizer.decode(tokens, skip_special_tokens=True)


# --- prompt and text are one -------------------------------------------------


@dataclass
class Counting:
    """A tokenizer, and how many tokens it was asked to decode."""

    tokenizer: Tokenizer
    num_decoded: int = 0

    def decode(self, token_ids: list[int]) -> str:
        self.num_decoded += len(token_ids)
        return self.tokenizer.decode(token_ids)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


@cache
def small(kind: str) -> Tokenizer:
    return Tokenizer(KINDS[kind]())


def expected(kind: str, prompt: list[int], output: list[int], skip: bool) -> tuple[str, str]:
    """The prompt's text and what follows it in the text of all, by transformers."""
    source = small(kind).source
    before, after_all = (
        source.decode(ids, skip_special_tokens=skip) for ids in (prompt, prompt + output)
    )
    return before, after_all


def ids_of(kind: str, text: str) -> list[int]:
    return list(small(kind).source.encode(text, add_special_tokens=False))


@pytest.mark.parametrize("kind", ["llama2", "mistral", "byte-level"])
def test_the_space_between_prompt_and_output(kind: str) -> None:
    """SentencePiece drops the first space of a text, which this one is not."""
    whole = ids_of(kind, "a b a日 b\n  a")
    for cut in range(1, len(whole)):
        prompt, output = whole[:cut], whole[cut:]
        before, together = expected(kind, prompt, output, skip=True)
        if together.startswith(before):
            text = feed(after(small(kind), prompt=prompt), output)[-1]
            assert before + text == together


@pytest.mark.parametrize("kind", ["llama2", "byte-level"])
def test_a_prompt_that_ends_inside_a_character(kind: str) -> None:
    whole = ids_of(kind, "a👍b")
    inside = len(ids_of(kind, "a")) + 2  # two of its four bytes
    completed = feed(after(small(kind), prompt=whole[:inside]), whole[inside:])
    assert completed[-1] == "👍b"
    assert_grows(completed)
    # Never completed: the prompt's U+FFFD stays the prompt's.
    broken = whole[:inside] + ids_of(kind, "b")[-1:]
    before, together = expected(kind, whole[:inside], broken[inside:], skip=True)
    assert before + feed(after(small(kind), prompt=whole[:inside]), broken[inside:])[-1] == together
    assert feed(after(small(kind), prompt=whole[:inside]), [])[-1] == ""


@settings(deadline=None, derandomize=True, max_examples=400)
@given(data=st.data(), kind=st.sampled_from(sorted(KINDS)), skip=st.booleans())
def test_any_prompt_and_output(data: st.DataObject, kind: str, skip: bool) -> None:
    """What is shown is a beginning of what decoding all ids gives, and in the end all of it."""
    size = len(small(kind).source)
    # Bytes and special tokens by the run, and an id beyond the vocabulary.
    some = st.integers(0, size + 1)
    runs = st.one_of(
        some.map(lambda i: [i]),
        st.binary(max_size=6).map(lambda raw: bytes_as_ids(kind, raw)),
        st.text("aé日👍 b", max_size=4).map(lambda text: ids_of(kind, text)),
        st.tuples(some, st.integers(1, 12)).map(lambda pair: [pair[0]] * pair[1]),
    )
    many = st.lists(runs, max_size=6).map(lambda lists: list(chain(*lists)))
    prompt, output = data.draw(many), data.draw(many)
    before, together = expected(kind, prompt, output, skip)
    detokenizer = after(small(kind), prompt=prompt, skip_special_tokens=skip)
    shown = feed(detokenizer, output)
    assert_grows(shown)
    if together.startswith(before):
        assert before + shown[-1] == together
    else:  # the output completes a character or a run of bytes that the prompt began
        assert together.endswith(shown[-1])
        kept = together.removesuffix(shown[-1])
        assert before.startswith(kept)
        assert set(before[len(kept) :]) <= {"\ufffd"} or kind in ("llama2", "gemma", "mistral")


def bytes_as_ids(kind: str, raw: bytes) -> list[int]:
    if kind in ("words", "word pieces"):
        return []
    names = [f"<0x{byte:02X}>" for byte in raw]
    if kind == "byte-level":
        names = [byte_character(byte) for byte in raw]
    return list(small(kind).source.convert_tokens_to_ids(names))


RUNS = {
    "end of sequence": ("llama2", lambda source: [source.eos_token_id]),
    "bytes": ("llama2", lambda source: [source.convert_tokens_to_ids("<0x80>")]),
    "broken characters": (
        "byte-level",
        lambda source: source.convert_tokens_to_ids([byte_character(0x80)]),
    ),
    "replacement characters": ("llama2", lambda source: source.convert_tokens_to_ids(["\ufffd"])),
    "beyond the vocabulary": ("byte-level", lambda source: [len(source) + 7]),
    "letters": ("byte-level", lambda source: source.convert_tokens_to_ids(["a"])),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_work_of_a_token_does_not_grow(name: str) -> None:
    """Tokens decoded a token appended, over a run of one token and the letter that ends it."""
    kind, token = RUNS[name]
    prompt = ids_of(kind, "a")
    work = []
    for length in (100, 1000):
        counting = Counting(small(kind))
        output = token(small(kind).source) * length + prompt
        detokenizer = after(counting, prompt=prompt)
        shown = feed(detokenizer, output)
        assert "a" + shown[-1] == small(kind).source.decode(
            prompt + output, skip_special_tokens=True
        )
        work.append(counting.num_decoded / length)
    assert max(work) < 9


def test_a_run_of_bytes_is_text_once_it_has_ended() -> None:
    """Until then a byte may follow that makes the whole run U+FFFD."""
    run = bytes_as_ids("llama2", "é👍".encode())
    letter = small("llama2").source.convert_tokens_to_ids("b")
    assert feed(after(small("llama2")), [*run, letter]) == [""] * len(run) + ["é👍b"] * 2
    broken = bytes_as_ids("llama2", b"\xc3\xa9\xc3")
    assert feed(after(small("llama2")), [*broken, letter])[-1] == "\ufffd" * 3 + "b"


@pytest.mark.parametrize("character", ["é", "日", "👍"])
def test_a_character_behind_broken_bytes(character: str) -> None:
    """However many there were, and wherever the prompt ends, it comes out whole."""
    for num_broken in range(1, 12):
        whole = bytes_as_ids("byte-level", b"\x80" * num_broken + character.encode())
        for cut in range(num_broken + 1):
            shown = feed(after(small("byte-level"), prompt=whole[:cut]), whole[cut:])
            assert shown[-1] == "\ufffd" * (num_broken - cut) + character


def test_special_tokens_are_shown_on_request() -> None:
    source = small("byte-level").source
    output = [*source.encode("a"), source.eos_token_id, *source.encode("b")]
    assert feed(after(small("byte-level")), output)[-1] == "ab"
    kept = feed(after(small("byte-level"), skip_special_tokens=False), output)[-1]
    assert kept == source.decode(output) == "a<|im_end|>b"


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


class PieceTokenizer(ByteTokenizer):
    """Token i is the i-th piece of a list of texts."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces

    def decode(self, token_ids: list[int]) -> str:
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


@pytest.mark.parametrize("name", CASES)
def test_a_stop_string_kept_in_the_output(name: str) -> None:
    """Cut behind it, and nothing need be held back: what is shown stays."""
    pieces, stops, text, stopped_by = CASES[name]
    detokenizer = after(PieceTokenizer(pieces), stops, include_stop_str_in_output=True)
    shown = feed(detokenizer, list(range(len(pieces))))
    assert_grows(shown)
    assert (shown[-1], detokenizer.stopped_by) == (text + (stopped_by or ""), stopped_by)
    assert shown[0] == pieces[0][: len(shown[-1])]


def test_stop_strings_count_behind_the_least_number_of_tokens() -> None:
    """One that ends within the first `min_tokens` is text; one that ends behind them stops."""
    pieces = ["a", "b", "a", "b", "a", "b"]
    for least, text in [(0, ""), (1, ""), (2, "ab"), (3, "ab"), (4, "abab"), (6, "ababab")]:
        detokenizer = after(PieceTokenizer(pieces), ["ab"], min_tokens=least, max_tokens=9)
        assert feed(detokenizer, list(range(6)))[-1] == text
        assert (detokenizer.stopped_by is None) == (least == 6)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_a_special_token_is_a_stop_string(keep: bool, skip: bool) -> None:
    """Shown or not, it is what the caller named; an unfinished character before it is shown."""
    source = small("byte-level").source
    options = {"include_stop_str_in_output": keep, "skip_special_tokens": skip}
    incomplete = bytes_as_ids("byte-level", b"\xc3")
    output = [*source.encode("ab"), *incomplete, source.eos_token_id, *source.encode("c")]
    detokenizer = after(small("byte-level"), ["<|im_end|>"], **options)
    assert feed(detokenizer, output)[-1] == "ab\ufffd" + ("<|im_end|>" if keep else "")
    assert detokenizer.stopped_by == "<|im_end|>"
    patient = after(small("byte-level"), ["<|im_end|>"], min_tokens=9, **options)
    assert feed(patient, output)[-1] == source.decode(output, skip_special_tokens=skip)
    assert patient.stopped_by is None
