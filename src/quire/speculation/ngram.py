"""`NGramProposer`: what followed the last tokens when they stood in this text before.

vLLM calls it prompt lookup. An edit repeats most of what it edits, and an answer quotes
its question. No model runs, so a guess costs a search in the host's memory.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quire.speculation.proposer import ProposeContext


class NGramProposer:
    """Copies on from the latest place that ends as the text ends now."""

    def __init__(self, shortest: int, longest: int) -> None:
        """Match `longest` tokens if such a place exists, else fewer, down to `shortest`."""
        self._shortest, self._longest = shortest, longest

    def propose(self, context: ProposeContext, k: int) -> list[list[int]]:
        """Return k guesses for each request whose end stood there before, else none."""
        return [self.continued(token_ids, k) for token_ids in context.token_ids]

    # docs: ngram begin
    def continued(self, token_ids: NDArray[np.int64], k: int) -> list[int]:
        """Return the k tokens that follow the latest earlier copy of the text's end."""
        begin = self._after_match(token_ids)
        if begin is None:
            return []
        copied = token_ids[begin:].tolist()  # of a text that repeats itself fewer than k
        return (copied * (k // len(copied) + 1))[:k]

    def _after_match(self, token_ids: NDArray[np.int64]) -> int | None:
        """Return the position behind the latest earlier copy of the longest end there is."""
        length = len(token_ids)
        # Where the last token stood before; then those of them that agree one token further back.
        ends = np.flatnonzero(token_ids[:-1] == token_ids[-1])
        found = None
        for size in range(1, min(self._longest, length - 1) + 1):
            if size > 1:
                ends = ends[ends >= size - 1]
                ends = ends[token_ids[ends - size + 1] == token_ids[length - size]]
            if len(ends) == 0:
                break
            if size >= self._shortest:
                found = int(ends[-1]) + 1
        return found

    # docs: ngram end
