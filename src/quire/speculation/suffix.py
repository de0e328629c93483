"""`SuffixProposer`: what most often followed the longest end of the text that stood before.

It looks in the request's own text and in the outputs of earlier requests, counts how often each
token followed, and guesses further the surer it is. After SuffixDecoding (Oliaro et al. 2024,
arXiv 2411.04975). Taken from there: the two sources; the guesses' number, at most a multiple of
the match's length; the least probability of a guess, as the counts estimate it; and the choice of
the source that expects more right guesses. What differs: a chain is guessed, never a tree; only
a source's longest match is tried, not the shorter ones too; and the index is a suffix automaton,
which has no greatest depth, in place of suffix trees.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quire.speculation.proposer import ProposeContext

_LONGEST = 64  # tokens of a text's end that are looked up in earlier outputs
# In how many contexts a token is counted, the longest first. A text that goes on repeating itself
# has one for each time that it did.
_MAX_CONTEXTS = 32


class SuffixProposer:
    """Guesses from an index of each row's text and one of the outputs that rows had before."""

    def __init__(
        self,
        max_spec_factor: float = 1.0,
        min_token_prob: float = 0.1,
        num_cached_tokens: int = 65_536,
    ) -> None:
        """Guess for rows as they come.

        Args:
            max_spec_factor: at most this times the match's length is guessed.
            min_token_prob: a guess must be right with this probability, as the counts have it:
                the product of the shares of this guess and those before it.
            num_cached_tokens: how much of earlier outputs is kept, in tokens; 0 keeps none.
        """
        self._factor = max_spec_factor
        self._least = min_token_prob
        self._texts: dict[int, _Text] = {}
        self._earlier = _EarlierOutputs(num_cached_tokens)

    def propose(self, context: ProposeContext, k: int) -> list[list[int]]:
        """Return at most k guesses for each request.

        A row whose text does not continue the one that it had belongs to another request by now;
        the old text's output is then an earlier one. What a row has when it is first seen counts
        as prompt, though a token or two of it are output.
        """
        rows = zip(context.rows, context.token_ids, strict=True)
        return [self._guess(self._text(row, token_ids), k) for row, token_ids in rows]

    def _text(self, row: int, token_ids: NDArray[np.int64]) -> _Text:
        """Return the index of a row's text, brought up to date."""
        text = self._texts.get(row)
        if text is None or not text.begins(token_ids):
            if text is not None:
                self._earlier.add(text.output)
            text = self._texts[row] = _Text(len(token_ids))
        text.extend(token_ids[len(text.known) :].tolist())
        return text

    def _guess(self, text: _Text, k: int) -> list[int]:
        """Return the guesses of the source that expects the most right ones; at a tie its own."""
        found = [(text.index, *text.index.earlier_end())]
        for index in self._earlier.indices:
            found.append((index, *index.match(text.known[-_LONGEST:])))
        best: list[int] = []
        most_right = 0.0
        for index, state, length in found:
            most = min(k, int(self._factor * length))
            guesses, expected = index.continued(state, most, self._least)
            if expected > most_right:
                best, most_right = guesses, expected
        return best


class _Text:
    """The tokens of a row that were seen, and their index."""

    def __init__(self, num_prompt_tokens: int) -> None:
        self.known = array("q")
        self.index = SuffixAutomaton()
        self._num_prompt_tokens = num_prompt_tokens

    @property
    def output(self) -> Sequence[int]:
        """The tokens that came after the row was first seen."""
        return self.known[self._num_prompt_tokens :]

    def begins(self, token_ids: NDArray[np.int64]) -> bool:
        """Whether `token_ids` starts with what is known; memory compared with memory."""
        return np.array_equal(np.frombuffer(self.known, np.int64), token_ids[: len(self.known)])

    def extend(self, token_ids: Sequence[int]) -> None:
        self.known.extend(token_ids)
        for token in token_ids:
            self.index.append(token)


class _EarlierOutputs:
    """Outputs in two indices of bounded size: a full one becomes the old one, which is dropped.

    An automaton cannot forget a text, so it is forgotten as a whole.
    """

    def __init__(self, num_tokens: int) -> None:
        self._limit = num_tokens // 2
        self._size = 0
        self.indices: list[SuffixAutomaton] = []  # the newer first

    def add(self, output: Sequence[int]) -> None:
        """Take an output, the end of one that is longer than an index may be."""
        output = output[-self._limit :] if self._limit else ()
        if not output:
            return
        if not self.indices or self._size + len(output) > self._limit:
            self.indices = [SuffixAutomaton(), *self.indices[:1]]
            self._size = 0
        self._size += len(output)
        self.indices[0].begin_text()
        for token in output:
            self.indices[0].append(token)


class SuffixAutomaton:
    """Every string of tokens that stands in some texts, and how often which token followed it.

    Strings that end at the same places share a state, which has at most two for each token of
    the texts. Of a state s: `_length[s]` is its longest string, its other ones are that string's
    ends of more than `_length[_link[s]]` tokens, and the link leads to the ends that are shorter.
    State 0 is the empty string. Whatever followed one string of a state followed all of them, so
    `_next[s]` and the counts belong to the state.
    """

    def __init__(self) -> None:
        self._next: list[dict[int, int]] = [{}]
        self._link = [-1]
        self._length = [0]
        self._total = [0]  # how often any token followed
        self._best = [0]  # the one that followed most often; of equals, the one that did last
        # How often each followed; None while only one has, which is the most frequent case.
        self._counts: list[dict[int, int] | None] = [None]
        self._last = 0  # the state of the whole text

    def begin_text(self) -> None:
        """Let the next token start another text."""
        self._last = 0

    def append(self, token: int) -> None:
        """Add a token to the text; amortised, a constant number of states and counts."""
        self._count(token)
        before = self._last
        known = self._next[before].get(token)
        if known is not None:  # another text went on like this
            self._last = self._of_length(known, before, token)
            return
        self._last = self._new_state(self._length[before] + 1, {})
        while before >= 0 and token not in self._next[before]:
            self._next[before][token] = self._last
            before = self._link[before]
        if before < 0:
            self._link[self._last] = 0
        else:
            self._link[self._last] = self._of_length(self._next[before][token], before, token)

    def earlier_end(self) -> tuple[int, int]:
        """Return the state and length of the text's longest end that stands in it twice."""
        return self._followed(self._link[self._last])

    def match(self, token_ids: Sequence[int]) -> tuple[int, int]:
        """Return the state and length of the longest end of `token_ids` that something followed."""
        state = length = 0
        for token in token_ids:
            while state and token not in self._next[state]:
                state = self._link[state]
                length = self._length[state]
            if token in self._next[state]:
                state = self._next[state][token]
                length += 1
        return (state, length) if self._total[state] else self._followed(state)

    def continued(self, state: int, most: int, least: float) -> tuple[list[int], float]:
        """Return up to `most` tokens, each the most frequent one behind those before it.

        And how many of them are right, as the counts expect it. The last one returned is right
        with a probability of at least `least`. Where a string was followed by nothing, its
        longest end that was takes its place.
        """
        tokens: list[int] = []
        expected, probability = 0.0, 1.0
        while len(tokens) < most:
            state, _ = self._followed(state)
            if state <= 0:
                break
            token = self._best[state]
            counts = self._counts[state]
            if counts is not None:
                probability *= counts[token] / self._total[state]
            if probability < least:
                break
            tokens.append(token)
            expected += probability
            state = self._next[state][token]
        return tokens, expected

    def _followed(self, state: int) -> tuple[int, int]:
        """Return the first state on the way to the empty string that something followed."""
        while state > 0 and not self._total[state]:
            state = self._link[state]
        return max(state, 0), self._length[max(state, 0)]

    def _count(self, token: int) -> None:
        """Count a token that follows all ends of the text; the longest, if there are many."""
        state = self._last
        for _ in range(_MAX_CONTEXTS):
            if state <= 0:
                break
            counts = self._counts[state]
            if counts is None and self._total[state] and token != self._best[state]:
                counts = self._counts[state] = {self._best[state]: self._total[state]}
            self._total[state] += 1
            if counts is None:
                self._best[state] = token
            else:
                counts[token] = counts.get(token, 0) + 1
                if counts[token] >= counts[self._best[state]]:
                    self._best[state] = token
            state = self._link[state]

    def _of_length(self, state: int, before: int, token: int) -> int:
        """Return the state whose longest string is that of `before` and the token.

        It is in `state`. If that has longer strings, these end at fewer places from now on, and
        the shorter ones get a state of their own.
        """
        length = self._length[before] + 1
        if self._length[state] == length:
            return state
        copy = self._new_state(length, dict(self._next[state]))
        self._link[copy] = self._link[state]
        self._total[copy], self._best[copy] = self._total[state], self._best[state]
        counts = self._counts[state]
        self._counts[copy] = None if counts is None else dict(counts)
        self._link[state] = copy
        while before >= 0 and self._next[before].get(token) == state:
            self._next[before][token] = copy
            before = self._link[before]
        return copy

    def _new_state(self, length: int, after: dict[int, int]) -> int:
        self._next.append(after)
        self._link.append(0)
        self._length.append(length)
        self._total.append(0)
        self._best.append(0)
        self._counts.append(None)
        return len(self._length) - 1
