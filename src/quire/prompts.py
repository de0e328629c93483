"""`PromptReader`: from what a caller gives as a prompt to token ids that the model can take.

Reading touches nothing that the engine changes, so it is done in the caller's thread: text
that takes seconds to tokenise holds up nobody else.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, cast

from quire.chat import ChatOptions, Message, encode_chat, lay_out
from quire.errors import InvalidRequestError
from quire.models.config import ModelConfig
from quire.sampling.params import SamplingParams, is_int
from quire.sampling.values import plain
from quire.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt that has been read."""

    text: str | None  # None where token ids were given
    token_ids: list[int]


# Text; token ids (also an array of numpy or torch); {"prompt": text} or
# {"prompt_token_ids": ids}, as vLLM has them; or what a reader made of one of these.
Prompt = str | Sequence[int] | Mapping[str, Any] | TokenizedPrompt

_FORMS = "a string, a list or array of token ids, {'prompt': …} or {'prompt_token_ids': …}"
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 200
_short.maxlist = _short.maxtuple = _short.maxdict = 20


def split_batch(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Return the prompts that were given together; a single one is a batch of one.

    A list that holds nothing but numbers is one prompt's token ids, and so is an array of one
    dimension; one of two has a prompt a row.

    Raises:
        InvalidRequestError: it is neither a prompt nor a sequence.
    """
    if isinstance(prompts, str | Mapping | TokenizedPrompt):
        return [prompts]
    shape = _shape(prompts)
    if not (_is_sequence(prompts) if shape is None else len(shape) in (1, 2)):
        raise InvalidRequestError(
            f"prompts {_short.repr(prompts)}: give {_FORMS}, or a list of such prompts"
        )
    is_one = len(shape) == 1 if shape is not None else prompts and not any(map(_holds, prompts))
    return [cast(Sequence[int], prompts)] if is_one else list(cast(Sequence[Prompt], prompts))


class PromptReader:
    """Turns prompts into token ids, and refuses by name those that cannot be served.

    Any thread may use it.
    """

    def __init__(
        self, tokenizer: Tokenizer | None, model_config: ModelConfig, max_model_len: int
    ) -> None:
        """`tokenizer` may be None: prompts are then token ids only."""
        self._tokenizer = tokenizer
        self._model_config = model_config
        self._max_model_len = max_model_len

    def read(self, prompt: Prompt, params: SamplingParams) -> TokenizedPrompt:
        """Return a prompt's text, if it has one, and its token ids.

        Raises:
            InvalidRequestError: the prompt is empty, too long, of a kind that is no prompt, or
                has a token id outside the vocabulary; text was given, or a stop string,
                without a tokenizer.
        """
        if isinstance(prompt, Mapping):
            prompt = _from_mapping(prompt)
        if params.stop_strings or isinstance(prompt, str):
            tokenizer = self._require_tokenizer()
        if isinstance(prompt, str):
            self._check_text(prompt, params)
            return self._checked(prompt, tokenizer.encode(prompt), params)
        if isinstance(prompt, TokenizedPrompt):
            return self._checked(prompt.text, prompt.token_ids, params)
        return self._checked(None, _listed(prompt), params)

    def read_chat(
        self, messages: Sequence[Message], options: ChatOptions, params: SamplingParams
    ) -> TokenizedPrompt:
        """Return a conversation as the model's chat template lays it out (`quire.chat`).

        Raises:
            InvalidRequestError: as in `read`; there is no template; it refuses the messages.
        """
        tokenizer = self._require_tokenizer()
        layout = lay_out(tokenizer, messages, options)
        self._check_text(layout.text, params)
        return self._checked(layout.text, encode_chat(tokenizer, layout), params)

    def _require_tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise InvalidRequestError(
                "this checkpoint has no tokenizer: give the prompt as token ids, and "
                "stop_token_ids instead of stop strings"
            )
        return self._tokenizer

    def _check_text(self, text: str, params: SamplingParams) -> None:
        """Refuse what is no text, and what is too long whatever its tokens are."""
        try:
            num_bytes = len(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise InvalidRequestError(
                f"prompt {_short.repr(text)} has {text[error.start]!r} at position "
                f"{error.start}, half of a surrogate pair: that is no character; decode the "
                "text's bytes with errors='replace', or leave it out"
            ) from None
        limit = self._limit(params)
        # A token has a byte at least, so a text of no more bytes than that needs no look.
        if num_bytes <= limit or self._tokenizer is None:
            return
        most = self._tokenizer.longest_text(limit)
        if most is not None and num_bytes > most:
            self._refuse_length(
                f"{num_bytes} bytes of text, of which {limit} tokens of this vocabulary hold "
                f"{most} at most,",
                params,
            )

    def _checked(
        self, text: str | None, given: Sequence[Any], params: SamplingParams
    ) -> TokenizedPrompt:
        token_ids = list(given)
        if not token_ids:
            shown = _short.repr(given if text is None else text)
            raise InvalidRequestError(
                f"prompt {shown} has no tokens: a model needs at least one to continue from"
            )
        vocab_size = self._model_config.vocab_size
        if set(map(type, token_ids)) != {int} or min(token_ids) < 0 or max(token_ids) >= vocab_size:
            token_ids = _as_ids(token_ids, vocab_size)
        if len(token_ids) > self._limit(params):
            self._refuse_length(f"{len(token_ids)} tokens", params)
        return TokenizedPrompt(text, token_ids)

    def _limit(self, params: SamplingParams) -> int:
        """Tokens that a prompt may have: one less than fit where an output follows."""
        return self._max_model_len - (params.max_tokens != 0)

    def _refuse_length(self, length: str, params: SamplingParams) -> NoReturn:
        room = "" if params.max_tokens == 0 else ", which must hold one output token too"
        raise InvalidRequestError(
            f"the prompt has {length} and max_model_len is {self._max_model_len}{room}: shorten "
            f"the prompt or raise max_model_len (the model allows "
            f"{self._model_config.max_position})"
        )


def _from_mapping(prompt: Mapping[str, Any]) -> str | TokenizedPrompt:
    """Read vLLM's `TextPrompt` or `TokensPrompt`."""
    known = ("prompt", "prompt_token_ids")
    for key, value in prompt.items():
        if key not in known and value is not None:
            raise InvalidRequestError(
                f"prompt {_short.repr(prompt)} has the key {key!r}: quire reads "
                f"{' and '.join(map(repr, known))}"
            )
    text, token_ids = (prompt.get(key) for key in known)
    if text is not None and not isinstance(text, str):
        raise InvalidRequestError(
            f"prompt {_short.repr(prompt)}: 'prompt' must be a string; token ids are given as "
            "'prompt_token_ids'"
        )
    if token_ids is not None:
        return TokenizedPrompt(text, _listed(token_ids))
    if text is None:
        raise InvalidRequestError(f"prompt {_short.repr(prompt)}: give {_FORMS}")
    return text


def _listed(prompt: Any) -> list[Any]:
    """Return the items of a sequence or of an array of one dimension."""
    shape = _shape(prompt)
    if shape is not None and len(shape) == 1:
        return list(prompt.tolist())
    if shape is not None:
        raise InvalidRequestError(
            f"prompt of shape {shape}: token ids are an array of one dimension"
        )
    if isinstance(prompt, str) or not _is_sequence(prompt):
        raise InvalidRequestError(f"prompt {_short.repr(prompt)}: give {_FORMS}")
    return list(prompt)


def _as_ids(given: list[Any], vocab_size: int) -> list[int]:
    """Return token ids as plain integers."""
    token_ids = []
    for position, value in enumerate(given):
        token_id = plain(value)
        if not is_int(token_id):
            raise InvalidRequestError(
                f"token id {_short.repr(value)} at position {position} is of type "
                f"{type(token_id).__name__}: token ids are integers, this model's in "
                f"[0, {vocab_size})"
            )
        if not 0 <= token_id < vocab_size:
            raise InvalidRequestError(
                f"token id {_short.repr(value)} at position {position} is outside the vocabulary: "
                f"this model's ids lie in [0, {vocab_size})"
            )
        token_ids.append(token_id)
    return token_ids


def _is_sequence(value: object) -> bool:
    """Whether a value is a sequence, of bytes excepted: those are text that is not decoded."""
    return isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview)


def _shape(value: object) -> tuple[int, ...] | None:
    """Return the shape of an array of numpy or torch, None of anything else."""
    shape = getattr(value, "shape", None)
    return tuple(shape) if isinstance(shape, tuple) else None


def _holds(item: object) -> bool:
    """Whether an item of a list is a prompt of its own, good or bad, and no token id."""
    return isinstance(item, Sequence | Mapping | TokenizedPrompt) or bool(_shape(item))
