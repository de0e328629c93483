"""From token ids to text, one token at a time.

A byte-level token can end in the middle of a character: "é" may arrive as two tokens of
one byte each. Text is handed out only once it can no longer change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from quire.sampling.params import SamplingParams

_REPLACEMENT = "\ufffd"  # stands for bytes that are no character, or not yet one
_UNFINISHED = 3  # bytes of a character that may be there before it is whole, each one a token


class TokenText(Protocol):
    """The part of `quire.tokenizer.Tokenizer` that makes text."""

    def decode(self, token_ids: list[int]) -> str:
        """Return the text of token ids."""
        ...

    def has_text(self, token_id: int, *, skip_special_tokens: bool) -> bool:
        """Whether decoding looks at a token."""
        ...

    def is_byte(self, token_id: int) -> bool:
        """Whether a token's text depends on the bytes around it."""
        ...

    def special_text(self, token_id: int) -> str | None:
        """Return how a special token is written, None for any other."""
        ...


class Detokenizer:
    """The text of one request's output as it grows.

    The prompt's text, followed by `text`, is what decoding all token ids at once gives, and
    `text` is final: it only ever gets longer. `_window` holds the last tokens, at first the
    prompt's, since a tokenizer may treat the first token of a text in its own way (a leading
    space, say). Of what they decode to, `_known` characters are in `text` or the prompt.
    """

    def __init__(
        self, tokenizer: TokenText, params: SamplingParams, prompt_token_ids: Sequence[int]
    ) -> None:
        """Decode with `tokenizer` what follows `prompt_token_ids`, as `params` ask."""
        self._tokenizer = tokenizer
        self._params = params
        self._stop_strings = params.stop_strings
        # The tail of the text that may yet turn out to be the start of a stop string.
        longest = max(map(len, self._stop_strings), default=0)
        self._held_back = 0 if params.include_stop_str_in_output else max(0, longest - 1)
        self._num_tokens = 0
        self._window = self._tail_of(prompt_token_ids)
        decoded = tokenizer.decode(self._window)
        self._known = len(self._settled(decoded))
        # The end of the prompt's text, if bytes that follow can still make it a character.
        self._unsettled = decoded[self._known :]
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
        self._num_tokens += 1
        if not self._has_text(token_id):
            self._look_at_special(token_id)
            return
        self._window.append(token_id)
        if self._tokenizer.is_byte(token_id):
            return  # a run of such tokens has a text once it has ended
        # Decode what is new together with tokens before it, and take the difference.
        decoded = self._tokenizer.decode(self._window)
        # U+FFFD at the end stands for a character whose bytes may not all be there.
        is_open = decoded.endswith(_REPLACEMENT)
        is_settled = self._take(decoded[:-1] if is_open else decoded) and not is_open
        # Forget tokens, so that each is decoded a few times only.
        if is_settled or len(self._window) > 2 * _UNFINISHED:
            self._window = self._window[-1 if is_settled else -_UNFINISHED :]
            self._known = len(self._tokenizer.decode(self._window)) - is_open

    def finish(self) -> None:
        """Add what is left, an incomplete character included (as U+FFFD)."""
        self._held_back = 0
        if self.stopped_by is None:
            self._take(self._tokenizer.decode(self._window))

    def _take(self, decoded: str) -> bool:
        """Extend `text` by what the window's text has more than was known; say if there is any."""
        new = decoded[self._known :]
        self._known = max(self._known, len(decoded))
        if new:
            new = new.removeprefix(self._unsettled)  # it came out as it stands in the prompt
            self._unsettled = ""
            self._extend(new)
        return bool(new)

    def _extend(self, new: str) -> None:
        before = len(self.text)
        self.text += new
        if self._num_tokens <= self._params.min_tokens:
            return
        found = [
            (position, stop)
            for stop in self._stop_strings
            if (position := self.text.find(stop, max(0, before + 1 - len(stop)))) >= 0
        ]
        if found:
            position, self.stopped_by = min(found)
            kept = len(self.stopped_by) if self._params.include_stop_str_in_output else 0
            self.text = self.text[: position + kept]

    def _look_at_special(self, token_id: int) -> None:
        """Stop at a special token that is written like a stop string, though it has no text."""
        name = self._tokenizer.special_text(token_id)
        if name not in self._stop_strings or self._num_tokens <= self._params.min_tokens:
            return
        self.finish()
        if self.stopped_by is None:
            self.stopped_by = name
            self.text += name if self._params.include_stop_str_in_output else ""

    def _tail_of(self, prompt_token_ids: Sequence[int]) -> list[int]:
        """Return the prompt's last tokens: some, and no part of a run of bytes only."""
        tail: list[int] = []
        for token_id in reversed(prompt_token_ids):
            if len(tail) >= _UNFINISHED and not self._tokenizer.is_byte(tail[-1]):
                break
            if self._has_text(token_id):
                tail.append(token_id)
        return tail[::-1]

    def _settled(self, decoded: str) -> str:
        """Return the part of the window's text that no token behind it can change."""
        if self._window and self._tokenizer.is_byte(self._window[-1]):
            end = len(self._window)
            while end and self._tokenizer.is_byte(self._window[end - 1]):
                end -= 1
            return self._tokenizer.decode(self._window[:end])
        return decoded.removesuffix(_REPLACEMENT)

    def _has_text(self, token_id: int) -> bool:
        skip = self._params.skip_special_tokens
        return self._tokenizer.has_text(token_id, skip_special_tokens=skip)
