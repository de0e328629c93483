"""What a request's parameters become once prompt, model and tokenizer are known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from quire.errors import InvalidRequestError
from quire.sampling.params import SamplingParams


class WordEncoder(Protocol):
    """The part of a tokenizer that bad words need."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the token ids of a text."""
        ...


def resolve(
    params: SamplingParams,
    tokenizer: WordEncoder | None,
    *,
    num_prompt_tokens: int,
    max_model_len: int,
    vocab_size: int,
    num_ranks: int = 1,
) -> SamplingParams:
    """Return the parameters as a request carries them.

    `max_tokens` is a number, and `bad_words` have become `bad_words_ids`. Parameters that
    already are so come back as they are.

    Raises:
        InvalidRequestError: `min_tokens` has no room behind the prompt; a token id is outside
            the vocabulary; `bad_words` were given without a tokenizer, or one of them has no
            tokens; `logits_processors` where several ranks choose.
    """
    if params.logits_processors and num_ranks > 1:
        raise InvalidRequestError(
            f"logits_processors with {num_ranks} ranks: each rank would call them, and all must "
            "choose alike; use one rank (tensor_parallel_size=1)"
        )
    room = max_model_len - num_prompt_tokens
    if params.min_tokens > room:
        raise InvalidRequestError(
            f"min_tokens={params.min_tokens}: max_model_len={max_model_len} leaves room for "
            f"{room} behind a prompt of {num_prompt_tokens} tokens; lower it, shorten the prompt "
            "or raise max_model_len"
        )
    _check_vocabulary("logit_bias", params.logit_bias, vocab_size)
    _check_vocabulary("allowed_token_ids", params.allowed_token_ids or (), vocab_size)
    for sequence in params.bad_words_ids:
        _check_vocabulary("bad_words_ids", sequence, vocab_size)
    changes: dict[str, Any] = {}
    if params.max_tokens is None:
        changes["max_tokens"] = room
    if params.bad_words:
        if tokenizer is None:
            raise InvalidRequestError(
                f"bad_words={params.bad_words!r}: this checkpoint has no tokenizer; give "
                "bad_words_ids, lists of token ids, instead"
            )
        found = [list(ids) for ids in resolve_bad_words(tokenizer, params.bad_words)]
        changes |= {"bad_words": [], "bad_words_ids": params.bad_words_ids + found}
    return replace(params, **changes) if changes else params


def resolve_bad_words(tokenizer: WordEncoder, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Return the token sequences that spell the words, each once.

    A word is tokenised as the beginning of a text and after a space, as vLLM does: most
    tokenizers have a token of their own for a word with the space before it.

    Raises:
        InvalidRequestError: a word has no tokens.
    """
    sequences: dict[tuple[int, ...], None] = {}
    for word in words:
        bare = word.lstrip(" ")
        variants = [
            tuple(tokenizer.encode(s, add_special_tokens=False)) for s in (bare, f" {bare}")
        ]
        if not any(variants):
            raise InvalidRequestError(
                f"bad_words has {word!r}, which this model's tokenizer makes no token of"
            )
        sequences |= dict.fromkeys(ids for ids in variants if ids)
    return tuple(sequences)


def _check_vocabulary(name: str, token_ids: Iterable[int], vocab_size: int) -> None:
    for token_id in token_ids:
        if token_id >= vocab_size:
            raise InvalidRequestError(
                f"{name} has token id {token_id}, which is outside the vocabulary: this model's "
                f"ids are integers in [0, {vocab_size})"
            )
