"""Guesses by suffix automaton are those of a plain search, whatever the texts are."""

from __future__ import annotations

import random
from collections.abc import Sequence
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.speculation import suffix
from quire.speculation.proposer import ProposeContext
from quire.speculation.suffix import SuffixAutomaton, SuffixProposer

Texts = Sequence[Sequence[int]]


def followers(texts: Texts, string: Sequence[int]) -> list[int]:
    """Return what followed each place of a string in texts, in their order."""
    size = len(string)
    return [
        text[end]
        for text in texts
        for end in range(size, len(text))
        if list(text[end - size : end]) == list(string)
    ]


def followed(texts: Texts, string: Sequence[int]) -> list[int]:
    """Return the longest end of a string that something followed."""
    string = list(string)
    while string and not followers(texts, string):
        string.pop(0)
    return string


def continued(
    texts: Texts, string: Sequence[int], most: int, least: float
) -> tuple[list[int], float]:
    """Return the most frequent tokens behind a string, and how many are expected to be right."""
    tokens: list[int] = []
    expected, probability = 0.0, 1.0
    while len(tokens) < most:
        string = followed(texts, string)
        if not string:
            break
        after = followers(texts, string)
        number = max(after.count(token) for token in after)
        token = [t for t in after if after.count(t) == number][-1]
        probability *= number / len(after)
        if probability < least:
            break
        tokens.append(token)
        expected += probability
        string = [*string, token]
    return tokens, expected


class PlainProposer:
    """`SuffixProposer` without an index: every step searches all texts."""

    def __init__(self, factor: float, least: float, num_cached_tokens: int) -> None:
        self._factor, self._least, self._limit = factor, least, num_cached_tokens // 2
        self._known: dict[int, tuple[int, list[int]]] = {}  # by row: prompt's length, text
        self._earlier: list[list[list[int]]] = []  # the newer first

    def propose(self, row: int, text: list[int], k: int) -> list[int]:
        prompt, known = self._known.get(row, (len(text), text))
        if text[: len(known)] != known:
            self._add(known[prompt:])
            prompt = len(text)
        self._known[row] = prompt, text
        best: tuple[list[int], float] = [], 0.0
        for source in ([text], *self._earlier):
            end = followed(source, text[1:] if source == [text] else text[-suffix._LONGEST :])
            most = min(k, int(self._factor * len(end)))
            found = continued(source, end, most, self._least)
            if found[1] > best[1]:
                best = found
        return best[0]

    def _add(self, output: list[int]) -> None:
        output = output[-self._limit :] if self._limit else []
        if output:
            size = sum(map(len, self._earlier[0])) if self._earlier else self._limit
            if size + len(output) > self._limit:
                self._earlier = [[], *self._earlier[:1]]
            self._earlier[0].append(output)


token_lists = st.lists(st.integers(0, 2), min_size=1, max_size=25)


@settings(max_examples=200, deadline=None)
@given(
    texts=st.lists(token_lists, min_size=1, max_size=4),
    end=token_lists,
    most=st.integers(1, 8),
    least=st.sampled_from([0.0, 0.2, 0.5, 1.0]),
)
def test_an_automaton_knows_every_string(
    texts: list[list[int]], end: list[int], most: int, least: float
) -> None:
    index = SuffixAutomaton()
    for text in texts:
        index.begin_text()
        for token in text:
            index.append(token)
    state, length = index.match(end)
    wanted = followed(texts, end)
    assert length == len(wanted)
    assert index.continued(state, most, least) == continued(texts, wanted, most, least)


@settings(max_examples=200, deadline=None)
@given(text=token_lists, most=st.integers(1, 8))
def test_the_longest_end_that_stood_before(text: list[int], most: int) -> None:
    index = SuffixAutomaton()
    for size, token in enumerate(text, 1):
        index.append(token)
        wanted = followed([text[:size]], text[1:size])
        state, length = index.earlier_end()
        assert length == len(wanted)
        assert index.continued(state, most, 0.0) == continued([text[:size]], wanted, most, 0.0)


@settings(max_examples=100, deadline=None)
@given(
    data=st.data(),
    factor=st.sampled_from([0.5, 1.0, 4.0]),
    least=st.sampled_from([0.0, 0.1, 0.4]),
    num_cached_tokens=st.sampled_from([0, 1, 12, 40, 1000]),
    k=st.integers(1, 6),
    longest=st.sampled_from([2, 64]),
)
def test_guesses_are_those_of_a_plain_search(
    data: st.DataObject, factor: float, least: float, num_cached_tokens: int, k: int, longest: int
) -> None:
    """Rows go on or are given to another request, whose text may begin as the old one does."""
    ours = SuffixProposer(factor, least, num_cached_tokens)
    plain = PlainProposer(factor, least, num_cached_tokens)
    texts: dict[int, list[int]] = {}
    for _ in range(data.draw(st.integers(1, 6))):
        rows = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True))
        for row in rows:
            more = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=5))
            old = texts.get(row, [])
            kept = data.draw(st.sampled_from([len(old), len(old), len(old) // 2, 0]))
            texts[row] = [*old[:kept], *more]
        context = ProposeContext([np.array(texts[row]) for row in rows], rows)
        with patch.object(suffix, "_LONGEST", longest):
            assert ours.propose(context, k) == [plain.propose(row, texts[row], k) for row in rows]


def guess(proposer: SuffixProposer, text: Sequence[int], k: int = 4, row: int = 0) -> list[int]:
    return proposer.propose(ProposeContext([np.array(text)], [row]), k)[0]


def test_a_sure_guess_reaches_further_than_an_unsure_one() -> None:
    """3 followed 1 2 each time, then 4 twice and 5 once; 9 followed 7 every other time."""
    seen = [1, 2, 3, 4, 6, 1, 2, 3, 4, 6, 1, 2, 3, 5, 7, 9, 7, 8, 7, 9, 7, 8, 0]
    wide = SuffixProposer(max_spec_factor=10)
    assert guess(wide, [*seen, 1, 2]) == [3, 4, 6, 1]
    assert guess(SuffixProposer(10, min_token_prob=0.7), [*seen, 1, 2]) == [3]
    assert guess(SuffixProposer(10, min_token_prob=0.6), [*seen, 7]) == []


@pytest.mark.parametrize(("factor", "number"), [(0.3, 0), (0.5, 1), (1.0, 2), (1.5, 3), (9.0, 4)])
def test_a_short_match_is_followed_for_few_tokens(factor: float, number: int) -> None:
    assert guess(SuffixProposer(factor), [1, 2, 3, 4, 5, 6, 1, 2]) == [3, 4, 5, 6][:number]


def test_an_output_is_remembered_and_a_prompt_is_not() -> None:
    proposer = SuffixProposer(9)
    assert guess(proposer, [1, 2, 3, 4]) == []  # the prompt
    assert guess(proposer, [1, 2, 3, 4, 5, 6, 7, 8]) == []
    assert guess(proposer, [20, 5, 6]) == [7, 8]  # in the same row, so that text has ended
    assert guess(proposer, [21, 5, 6], row=1) == [7, 8]
    assert guess(proposer, [21, 1, 2], row=1) == []


def finish(proposer: SuffixProposer, output: Sequence[int]) -> None:
    """Let a request say `output` in row 0, and end."""
    guess(proposer, [90])
    guess(proposer, [90, *output])
    guess(proposer, [91])


def test_nothing_follows_the_end_of_an_output() -> None:
    proposer = SuffixProposer(9)
    finish(proposer, [5, 6])
    finish(proposer, [7, 8])
    assert guess(proposer, [20, 5], row=1) == [6]
    assert guess(proposer, [21, 6], row=1) == []


def test_how_much_of_the_text_is_looked_up_in_earlier_outputs() -> None:
    """A match of three tokens of which two are looked at gives two guesses."""
    for longest, guesses in ((2, [4, 5]), (3, [4, 5, 6])):
        proposer = SuffixProposer()
        finish(proposer, [1, 2, 3, 4, 5, 6, 7])
        with patch.object(suffix, "_LONGEST", longest):
            assert guess(proposer, [20, 1, 2, 3], row=1) == guesses


def test_of_a_long_output_the_end_is_kept() -> None:
    proposer = SuffixProposer(9, num_cached_tokens=8)
    finish(proposer, [1, 2, 3, 4, 5, 6])
    assert guess(proposer, [20, 1], row=1) == []
    assert guess(proposer, [21, 3], row=1) == [4, 5, 6]


def test_old_outputs_are_forgotten() -> None:
    """Of outputs of 10 tokens each, an index of 20 has two; the older index the two before."""
    proposer = SuffixProposer(9, num_cached_tokens=40)
    outputs = [list(range(100 * i, 100 * i + 10)) for i in range(1, 8)]
    for output in outputs:
        finish(proposer, output)
    found = [bool(guess(proposer, [2, *output[:3]], row=1)) for output in outputs]
    assert found == [False, False, False, False, True, True, True]


def test_a_text_that_repeats_itself_is_cheap_and_goes_on() -> None:
    """Its end has stood there as often as it is long; each token is counted in a few contexts."""
    index = SuffixAutomaton()
    for _ in range(3000):
        index.append(7)
    assert sum(index._total) <= 3000 * suffix._MAX_CONTEXTS
    state, length = index.earlier_end()
    assert length == 2999
    assert index.continued(state, 5, 0.5) == ([7] * 5, 5.0)


def test_an_index_stays_small() -> None:
    """At most two states a token, and the counts of one follower need no table."""
    text = [random.Random(0).randrange(50) for _ in range(2000)]
    index = SuffixAutomaton()
    for token in [*text, *text]:
        index.append(token)
    assert len(index._length) <= 2 * 4000
    assert sum(counts is not None for counts in index._counts) < 4000
