"""`Tokenizer`: transformers' tokenizer as the engine uses it, from any thread.

A reader's own calls may pad, truncate or split special tokens, and each of these settings
stays with the tokenizer until the next call. The engine therefore encodes and decodes with a
copy that nobody sets: it has the same vocabulary in memory, and its own settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import tokenizers

from quire.messages import Logprob
from quire.tokenizer_limits import longest_token, text_for_one_token


class Tokenizer:
    """Text to token ids and back, and what a single token is."""

    def __init__(self, source: Any) -> None:
        """`source` is a transformers tokenizer, fast or slow."""
        self.source = source
        backend = getattr(source, "backend_tokenizer", None)  # none if it is written in Python
        self.backend = None if backend is None else copy_backend(backend)
        added = source.added_tokens_decoder
        self.added = {token_id: token.content for token_id, token in added.items()}
        special = (
            [token_id for token_id, token in added.items() if token.special]
            if self.backend is not None
            else source.all_special_ids
        )
        self._special = {token_id: source.convert_ids_to_tokens(token_id) for token_id in special}
        self._special_names = frozenset(self._special.values())
        self._names: dict[int, str | None] = {}  # of the tokens asked for so far
        self._texts: dict[int, str] = {}

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text, by default with those that the model begins with."""
        if self.backend is None:
            # transformers warns of texts beyond the model's length, which the engine refuses.
            options = {"add_special_tokens": add_special_tokens, "verbose": False}
            return list(self.source.encode(text, **options))
        return list(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, token_ids: list[int]) -> str:
        """Return the text of token ids, special tokens included."""
        if self.backend is None:
            return str(self.source.decode(token_ids, clean_up_tokenization_spaces=False))
        return self.backend.decode(token_ids, skip_special_tokens=False)

    def token_text(self, token_id: int) -> str:
        """Return the text of one token, as `Logprob.decoded_token` has it."""
        if token_id not in self._texts:
            self._texts[token_id] = self.decode([token_id])
        return self._texts[token_id]

    def with_texts(self, rows: Sequence[dict[int, Logprob]]) -> list[dict[int, Logprob]]:
        """Return log-probabilities that say what text each token is."""
        return [
            {
                token_id: Logprob(value.logprob, value.rank, self.token_text(token_id))
                for token_id, value in row.items()
            }
            for row in rows
        ]

    def has_text(self, token_id: int, *, skip_special_tokens: bool) -> bool:
        """Whether decoding looks at a token: not at ids outside the vocabulary."""
        if skip_special_tokens and token_id in self._special:
            return False
        return self._name(token_id) is not None

    def is_byte(self, token_id: int) -> bool:
        """Whether a token is a byte that SentencePiece falls back to, such as <0xE6>.

        Decoding takes a run of them together: it is text where all of it is valid UTF-8, else
        as many U+FFFD as it has bytes.
        """
        name = self._name(token_id)
        return name is not None and len(name) == 6 and name[:3] == "<0x" and name[-1] == ">"

    def is_special(self, name: str) -> bool:
        """Whether this is how a special token is written."""
        return name in self._special_names

    def special_text(self, token_id: int) -> str | None:
        """Return how a special token is written, None for any other."""
        return self._special.get(token_id)

    def longest_text(self, num_tokens: int) -> int | None:
        """Return how many bytes of UTF-8 so many tokens can stand for at most.

        None where nothing bounds it: a tokenizer may drop characters.
        """
        return None if self._longest is None else num_tokens * self._longest

    @cached_property
    def _longest(self) -> int | None:
        if self.backend is None:
            return None
        factor = text_for_one_token(self.backend)
        return None if factor is None else factor * longest_token(self.backend)

    def _name(self, token_id: int) -> str | None:
        if token_id not in self._names:
            known = self.backend is not None or token_id < len(self.source)
            self._names[token_id] = self.source.convert_ids_to_tokens(token_id) if known else None
        return self._names[token_id]


def load_tokenizer(folder: Path) -> Any:
    """Load a folder's tokenizer with transformers, or return None where there is none."""
    names = ("tokenizer.json", "tokenizer.model", "vocab.json")
    if not any((folder / name).is_file() for name in names):
        return None
    from transformers import AutoTokenizer  # slow to import, and not needed for token ids

    # Cleaning up drops spaces before punctuation, so that text would not grow by appending.
    return AutoTokenizer.from_pretrained(str(folder), clean_up_tokenization_spaces=False)


def copy_backend(
    source: tokenizers.Tokenizer, renamed: Mapping[str, str] | None = None
) -> tokenizers.Tokenizer:
    """Return a tokenizer that shares the parts of another and has settings of its own.

    Args:
        source: what to copy.
        renamed: added tokens that the copy knows by another string; what the copy makes of
            that string is the new string's id.
    """
    copy = tokenizers.Tokenizer(source.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if getattr(source, part) is not None:
            setattr(copy, part, getattr(source, part))
    added = source.get_added_tokens_decoder()
    own = []
    for token in (added[token_id] for token_id in sorted(added)):
        name = (renamed or {}).get(token.content, token.content)
        flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
        own.append(tokenizers.AddedToken(name, **{flag: getattr(token, flag) for flag in flags}))
    # Each call builds the search for all of them anew, so that they are added by the run.
    for special, run in groupby(own, key=lambda token: token.special):
        (copy.add_special_tokens if special else copy.add_tokens)(list(run))
    if not renamed and any(copy.token_to_id(token.content) != i for i, token in added.items()):
        return tokenizers.Tokenizer.from_str(source.to_str())  # its ids have gaps
    return copy
