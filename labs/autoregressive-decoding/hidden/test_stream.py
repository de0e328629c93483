"""Hidden tests of `penalise` and `TextStream`."""

from __future__ import annotations

import codecs
import itertools

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from .sampling_oracle import NO_PENALTY, penalise

VOCAB = 7
IDS = st.lists(st.integers(0, VOCAB - 1), max_size=9)
LOGITS = st.lists(st.integers(-12, 12).map(lambda n: n / 4), min_size=VOCAB, max_size=VOCAB)
PIECES = ["a", "b", "ab", "é", "€", "🙂", "\n", "#", "aba"]
TEXT = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
STOP = st.lists(
    st.sampled_from(["ab", "aba", "b#", "bab", "€a", "🙂", "\n\n", "aab"]).map(str.encode),
    max_size=3,
    unique=True,
)


def _penalise(student, logits, prompt, output, because="", **changes):
    params = NO_PENALTY | changes
    want = np.array(penalise(logits, prompt, output, params))
    student.expect(
        "penalise", np.array(logits), prompt, output, params,
        want=want, tolerance=1e-12, because=because,
    )  # fmt: skip


@given(
    logits=LOGITS,
    prompt=IDS,
    output=IDS,
    window=st.integers(0, 14),
    repetition=st.sampled_from([0.5, 1.0, 1.3, 2.0]),
    presence=st.sampled_from([0.0, 0.75]),
    frequency=st.sampled_from([0.0, 0.25]),
)
def test_penalties_of_the_window(
    student, variant, logits, prompt, output, window, repetition, presence, frequency
):
    """All three penalties, over windows that end in the output, the prompt, or reach past both."""
    _penalise(
        student, logits, prompt, output,
        window=window, repetition=repetition, presence=presence, frequency=frequency,
    )  # fmt: skip


def _scaled(logits, seed):
    """Other logits of the same signs, for each course."""
    by = np.random.default_rng(seed).uniform(0.5, 2.0)
    return [logit * by for logit in logits]


def test_prompt_and_output(student, variant, seed):
    """Presence and frequency count the output alone; repetition counts both."""
    logits = _scaled([1.0, 2.0, 3.0, -1.0, -2.0, 0.5, 0.0], seed)
    why = "the prompt's tokens are none of the output's"
    window = 6  # two tokens of the prompt, four of the output
    _penalise(student, logits, [0, 1, 2, 3], [3, 4, 4, 5], why, window=window, presence=0.5)
    _penalise(student, logits, [0, 1, 2, 3], [3, 4, 4, 5], why, window=window, frequency=0.5)
    why = "repetition counts prompt tokens of the window"
    _penalise(student, logits, [0, 1, 2, 3], [3, 4, 4, 5], why, window=window, repetition=2.0)
    why = "nothing lies in a window of 0 tokens"
    _penalise(student, logits, [0, 1], [2], why, window=0, repetition=2.0, presence=0.5)


def test_negative_logits(student, variant, seed):
    """A repetition penalty makes negative logits more negative."""
    why = "dividing a negative logit would raise it"
    logits = _scaled([-1.0, 2.0, 0.0, -3.0], seed)
    _penalise(student, logits, [], [0, 1, 2], why, window=9, repetition=2.0)


def _end(data: bytes, stop: list[bytes]) -> tuple[int, bytes | None]:
    """Where the text ends, in bytes, and the stop string that ends it."""
    for end in range(1, len(data) + 1):
        complete = [s for s in stop if data[:end].endswith(s)]
        if complete:
            longest = max(complete, key=len)
            return end - len(longest), longest
    return len(data), None


def _shown(data: bytes, stop: list[bytes]) -> str:
    """The most text that may be shown once `data` has arrived without completing a stop."""
    safe = len(data)
    for start in range(len(data)):
        if any(s.startswith(data[start:]) for s in stop):
            safe = start
            break
    return codecs.utf_8_decode(data[:safe], "replace", False)[0]


def _cut(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({min(c, len(data)) for c in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


def _run(student, data, stop, cuts):
    """Stream the pieces; return the text and the object."""
    stream = student.new("TextStream", stop)
    parts = [stream.call("push", piece) for piece in _cut(data, cuts)]
    parts.append(stream.call("finish"))
    if not all(type(part) is str for part in parts):
        student.fail(f"TextStream({stop}) on {data!r}: push and finish must return str")
    return "".join(parts), stream


CUTS = st.lists(st.integers(0, 40), max_size=8)
BROKEN = st.lists(
    st.sampled_from([b"a", b"\xff", b"\xe2", b"\x82", b"\xac", b"\xf0\x9f", b"b#"]), max_size=9
).map(b"".join)


@example(text="aaab", stop=[b"aab"], cuts=[1, 2, 3])  # the search must fall back by one byte
@example(text="xbab", stop=[b"ab", b"bab"], cuts=[2])  # one byte completes both
@example(text="xbab", stop=[b"bab", b"ab"], cuts=[])
@given(text=TEXT, stop=STOP, cuts=CUTS)
def test_stop_anywhere(student, variant, text, stop, cuts):
    """The text ends before the stop string that is complete first, wherever tokens end."""
    data = text.encode()
    end, found = _end(data, stop)
    got, stream = _run(student, data, stop, cuts)
    call = f"TextStream({stop}), pushed {_cut(data, cuts)}, finish()"
    student.compare(call, got, data[:end].decode("utf-8", "replace"))
    stream.expect_attribute("stopped_by", found)


@given(text=TEXT, stop=STOP, cuts=CUTS)
def test_cut_does_not_matter(student, variant, text, stop, cuts):
    """One byte a token, all bytes in one token, or anything between: the same text."""
    data = text.encode()
    end, _ = _end(data, stop)
    want = data[:end].decode("utf-8", "replace")
    for places in (list(range(len(data))), [], cuts):
        got, _ = _run(student, data, stop, places)
        student.compare(f"TextStream({stop}), pushed {_cut(data, places)}, finish()", got, want)


@example(data=b"a(\xc3\xa9", stop=[b"()"], cuts=[2, 3])
@example(data=b"\xe2\x82(x", stop=[b"()"], cuts=[2, 3])
@example(data=b"\xe2\x82()", stop=[b"()"], cuts=[2, 3])
@given(data=TEXT.map(str.encode) | BROKEN, stop=STOP, cuts=CUTS)
def test_held_back_as_little_as_possible(student, variant, data, stop, cuts):
    """After every token, exactly the text that is certain has been returned."""
    stream = student.new("TextStream", stop)
    seen, shown = b"", ""
    for piece in _cut(data, cuts):
        seen += piece
        end, found = _end(seen, stop)
        part = stream.call("push", piece)
        shown += part if type(part) is str else ""
        want = seen[:end].decode("utf-8", "replace") if found else _shown(seen, stop)
        student.compare(f"TextStream({stop}), bytes so far {seen!r}, text so far", shown, want)


@example(data=b"\xf0\x9fb#", cuts=[])
@example(data=b"\xe2\x82\xac", cuts=[1])
@given(
    data=BROKEN,
    cuts=CUTS,
)
def test_broken_bytes(student, variant, data, cuts):
    """Invalid and unfinished bytes become U+FFFD, as bytes.decode does it, and only they do."""
    for stop in ([], [b"b#"], [b"\x82\xac"]):
        end, _ = _end(data, stop)
        got, _ = _run(student, data, stop, cuts)
        call = f"TextStream({stop}), pushed {_cut(data, cuts)}, finish()"
        student.compare(call, got, data[:end].decode("utf-8", "replace"))
