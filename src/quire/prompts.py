"""`PromptReader`: from what a caller gives as a prompt to token ids that the model can take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quire.detokenizer import Tokenizer
from quire.errors import InvalidRequestError
from quire.models.config import ModelConfig
from quire.sampling.params import SamplingParams, is_int


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt that has been read."""

    text: str | None  # None where token ids were given
    token_ids: list[int]


Prompt = str | Sequence[int] | TokenizedPrompt


class PromptReader:
    """Turns prompts into token ids, and refuses by name those that cannot be served."""

    def __init__(
        self, tokenizer: Tokenizer | None, model_config: ModelConfig, max_model_len: int
    ) -> None:
        """`tokenizer` may be None: prompts are then token ids only."""
        self._tokenizer = tokenizer
        self._model_config = model_config
        self._max_model_len = max_model_len

    def read(self, prompt: Prompt, params: SamplingParams) -> TokenizedPrompt:
        """Return the token ids of a prompt; one that was read already is returned as it is.

        Raises:
            InvalidRequestError: the prompt is empty, too long, or has a token id outside the
                vocabulary; text was given, or a stop string, without a tokenizer.
        """
        if isinstance(prompt, TokenizedPrompt):
            return prompt
        if self._tokenizer is None and (isinstance(prompt, str) or params.stop_strings):
            raise InvalidRequestError(
                "this checkpoint has no tokenizer: give the prompt as token ids, and "
                "stop_token_ids instead of stop strings"
            )
        if isinstance(prompt, bytes) or not isinstance(prompt, Sequence):
            raise InvalidRequestError(f"prompt {prompt!r}: give a string or a list of token ids")
        if isinstance(prompt, str):
            assert self._tokenizer is not None
            token_ids = list(self._tokenizer.encode(prompt))
        else:
            token_ids = list(prompt)
        if not token_ids:
            raise InvalidRequestError(
                f"prompt {prompt!r} has no tokens: a model needs at least one to continue from"
            )
        vocab_size = self._model_config.vocab_size
        for position, token_id in enumerate(token_ids):
            if not (is_int(token_id) and 0 <= token_id < vocab_size):
                raise InvalidRequestError(
                    f"token id {token_id!r} at position {position} is outside the vocabulary: "
                    f"this model's ids are integers in [0, {vocab_size})"
                )
        if len(token_ids) >= self._max_model_len:
            raise InvalidRequestError(
                f"the prompt has {len(token_ids)} tokens and max_model_len is "
                f"{self._max_model_len}, which must hold one output token too: shorten "
                f"the prompt or raise max_model_len (the model allows "
                f"{self._model_config.max_position})"
            )
        return TokenizedPrompt(prompt if isinstance(prompt, str) else None, token_ids)
