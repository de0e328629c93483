"""How much text one token can stand for, read off a tokenizer's parts.

A prompt that is too long is refused by its bytes, before the seconds that tokenising it takes.
That is sound only where every byte of a text ends up in some token. Tokenizers of language
models are made so; one that drops spaces, or has a single token for all that it does not know,
is not, and has no such limit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import tokenizers
from tokenizers.pre_tokenizers import ByteLevel

# Parts that take a text apart without losing any of it.
_SPLITTERS = ("ByteLevel", "Digits", "Metaspace", "Sequence", "Split")
# How many bytes become one. Composing characters (NFC) makes the Kelvin sign, three bytes, a K,
# three letters of Korean a syllable, and at worst seven bytes of Greek two.
_SHRINKING = {"ByteLevel": 1, "Prepend": 1, "Sequence": 1, "NFC": 4}


def longest_token(tokenizer: tokenizers.Tokenizer) -> int:
    """Return the bytes of UTF-8 of the longest token."""
    alphabet = set(ByteLevel.alphabet())  # 256 characters, each written for one byte
    byte_level = "ByteLevel" in _types(tokenizer.pre_tokenizer)
    longest = 0
    for name in tokenizer.get_vocab():
        # No token has more bytes than three or four times its characters.
        if 4 * len(name) > longest:
            if byte_level and alphabet.issuperset(name):
                length = len(name)
            else:
                length = len(name.replace("\u2581", " ").encode("utf-8", "replace"))
            longest = max(longest, length)
    return longest


def text_for_one_token(tokenizer: tokenizers.Tokenizer) -> int | None:
    """Return how many bytes of text a byte of a token can come from, None if any number can."""
    splitters = _describe(tokenizer.pre_tokenizer)
    loses = any(
        part["type"] not in _SPLITTERS or part.get("behavior") == "Removed" for part in splitters
    )
    strips = any(
        token.lstrip or token.rstrip for token in tokenizer.get_added_tokens_decoder().values()
    )
    vocabulary = tokenizer.get_vocab()
    if "ByteLevel" in _types(tokenizer.pre_tokenizer):
        knows_all = all(name in vocabulary for name in ByteLevel.alphabet())
    else:
        knows_all = bool(getattr(tokenizer.model, "byte_fallback", False)) and all(
            f"<0x{byte:02X}>" in vocabulary for byte in range(256)
        )
    if loses or strips or not knows_all:
        return None
    factor = 1
    for part in _describe(tokenizer.normalizer):
        if part["type"] == "Replace" and _grows(part):
            continue
        if part["type"] not in _SHRINKING:
            return None
        factor *= _SHRINKING[part["type"]]
    return factor


def _grows(replace: dict[str, Any]) -> bool:
    pattern = replace["pattern"].get("String", "")
    return 0 < len(pattern.encode("utf-8")) <= len(replace["content"].encode("utf-8"))


def _types(part: Any) -> set[str]:
    return {step["type"] for step in _describe(part)}


def _describe(part: Any) -> list[dict[str, Any]]:
    """Return a normalizer's or pre-tokenizer's steps, as tokenizer.json has them."""

    def steps(described: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield described
        for inner in described.get("normalizers", []) + described.get("pretokenizers", []):
            yield from steps(inner)

    return [] if part is None else list(steps(json.loads(part.__getstate__())))
