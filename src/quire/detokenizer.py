"""From token ids to text, one token at a time.

A byte-level token can end in the middle of a character: "é" may arrive as two tokens of
one byte each. Text is handed out only once it can no longer change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from quire.sampling.params import SamplingParams


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that quire uses."""

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]:
        """Return the token ids of a text, by default with the model's special tokens."""
        ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = ...) -> str:
        """Return the text of token ids."""
        ...


class Detokenizer:
    """The text of one request's output as it grows.

    `text` is final: it only ever gets longer. Tokens [0, _read) are in it; decoding
    starts at `_context`, some tokens earlier, since a tokenizer may treat the first token
    of a text in its own way (a leading space, say).
    """

    def __init__(
        self, tokenizer: Tokenizer, params: SamplingParams, prompt_token_ids: Sequence[int]
    ) -> None:
        """Decode with `tokenizer` what follows `prompt_token_ids`, as `params` ask."""
        self._tokenizer = tokenizer
        self._stop_strings = stop_strings = params.stop_strings
        # The tail of the text that may yet turn out to be the start of a stop string.
        self._held_back = max((len(stop) - 1 for stop in stop_strings), default=0)
        self._token_ids: list[int] = []
        self._context = 0
        self._read = 0
        self.text = ""
        self.stopped_by: str | None = None

    @property
    def ready(self) -> str:
        """The part of `text` that may be shown: what no stop string can cut any more."""
        if self.stopped_by is not None or not self._held_back:
            return self.text
        return self.text[: -self._held_back]

    def append(self, token_id: int) -> None:
        """Add a token, extend `text` by what is complete, and look for a stop string."""
        self._token_ids.append(token_id)
        before = self._decode(self._token_ids[self._context : self._read])
        after = self._decode(self._token_ids[self._context :])
        # U+FFFD at the end stands for a character whose bytes are not all there.
        if len(after) > len(before) and not after.endswith("\ufffd"):
            self._context, self._read = self._read, len(self._token_ids)
            self._extend(after[len(before) :])

    def finish(self) -> None:
        """Add what is left, an incomplete character included (as U+FFFD)."""
        before = self._decode(self._token_ids[self._context : self._read])
        after = self._decode(self._token_ids[self._context :])
        self._held_back = 0
        if self.stopped_by is None:
            self._extend(after[len(before) :])

    def _extend(self, new: str) -> None:
        searched = max(0, len(self.text) - max((len(s) for s in self._stop_strings), default=0))
        self.text += new
        found = [
            (position, stop)
            for stop in self._stop_strings
            if (position := self.text.find(stop, searched)) >= 0
        ]
        if found:
            position, self.stopped_by = min(found)
            self.text = self.text[:position]

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)
