"""`SamplingParams`: how the next token of one request is chosen and when it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from quire.sampling import values
from quire.sampling.values import is_int, refuse

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MAX_LOGPROBS", "LogitsProcessor", "SamplingParams", "is_int"]

MAX_LOGPROBS = 100
UNLIMITED = 2**63 - 1  # more tokens than any sequence has

LogitsProcessor = Callable[[list[int], "Tensor"], "Tensor"]
"""`f(output_token_ids, logits) -> logits`: a request's output so far and its row, float32 [V]."""


@dataclass(frozen=True)
class SamplingParams:
    """Sampling and stopping of one request; the names and defaults are vLLM's.

    Logits pass through, in this order, which is vLLM's: `allowed_token_ids`, `bad_words`,
    `min_tokens`, `logit_bias`, `logits_processors`, penalties (repetition, frequency,
    presence), temperature, min-p, top-k, top-p. See the page "From logits to text", section
    "Choosing a token". Numbers may be numpy's or torch's scalars; None for a list or
    dict is an empty one.

    Args:
        n: completions to sample for one prompt.
        temperature: divides the logits; 0 chooses the largest logit (greedy).
        top_k: keep the k most probable tokens; 0 or -1 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches `top_p`
            (Holtzman et al. 2020); 1 keeps all.
        min_p: keep tokens at least `min_p` times as probable as the most probable one
            (Minh et al. 2025); 0 keeps all.
        repetition_penalty: divides the positive and multiplies the negative logits of
            tokens seen in prompt or output (Keskar et al. 2019); 1 changes nothing.
        presence_penalty: subtracted from the logits of tokens seen in the output.
        frequency_penalty: subtracted once for each time a token was seen in the output.
        seed: makes the request's draws repeatable, alone or in any batch.
        max_tokens: output tokens at most; None: as many as `max_model_len` leaves room for; 0:
            none, the prompt is only scored (`prompt_logprobs`).
        min_tokens: neither the model's end-of-sequence token nor one of `stop_token_ids` is
            chosen before the output has so many tokens. Stop strings are not looked at.
        stop: strings that end the output; the output is cut before the first of them.
        stop_token_ids: token ids that end the output, beside the model's own.
        ignore_eos: go on after the model's end-of-sequence token.
        include_stop_str_in_output: cut the output behind the stop string instead of before it.
        logit_bias: numbers between -100 and 100, added to the logits of these token ids.
        allowed_token_ids: choose none but these; None allows all.
        bad_words: strings that are not to be in the output. Each is tokenised as the beginning
            of a text and after a space; a token that would complete one of these sequences of
            tokens in the output is not chosen. Another tokenisation of the same text passes.
        bad_words_ids: the same for sequences of token ids (the name is transformers').
        logits_processors: functions `f(output_token_ids, logits) -> logits` of this request's
            output so far and its row of logits, float32 [V], applied in their order. They run
            on the host, which waits for the device to learn the output: a step takes longer.
        logprobs: log-probabilities to return per output token: the chosen token's and
            those of this many most probable ones. They are the model's own, before all that
            is listed above.
        prompt_logprobs: the same for each prompt token but the first.
        detokenize: make text of the output; without it there is no text and no stop string.
        skip_special_tokens: leave special tokens out of the text.
        speculate: take part where the engine speculates (`speculative_config`); without it no
            tokens are guessed for this request.

    Raises:
        InvalidRequestError: a value outside its range; the message names both.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: str | list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    logit_bias: dict[int, float] = field(default_factory=dict)
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] = field(default_factory=list)
    bad_words_ids: list[list[int]] = field(default_factory=list)
    logits_processors: list[LogitsProcessor] = field(default_factory=list)
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    speculate: bool = True

    def __post_init__(self) -> None:
        for name, read in _READERS.items():
            object.__setattr__(self, name, read(name, getattr(self, name)))
        if self.top_k == -1:
            object.__setattr__(self, "top_k", 0)
        if self.top_p == 0:
            refuse("top_p", self.top_p, "above 0 (use temperature=0 for greedy)")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            refuse("min_tokens", self.min_tokens, f"at most max_tokens={self.max_tokens}")
        if self.stop and not self.detokenize:
            refuse(
                "detokenize", self.detokenize, f"True, as stop={self.stop!r} is looked for in text"
            )

    @property
    def greedy(self) -> bool:
        """Whether the largest logit is chosen, with no draw at all."""
        return self.temperature == 0

    @property
    def stop_strings(self) -> list[str]:
        """`stop` as a list."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop)

    @property
    def output_limit(self) -> int:
        """`max_tokens` as a number; None asks for more than any sequence can have."""
        return UNLIMITED if self.max_tokens is None else self.max_tokens

    @property
    def needs_uncaptured_sampling(self) -> bool:
        """Whether each of the request's tokens takes more than a captured step ends with.

        Where only `min_tokens` asks for it, the first tokens do (`quire.runner.input_batch`).
        """
        return bool(
            self.has_penalties
            or self.logprobs is not None
            or self.allowed_token_ids is not None
            or self.logit_bias
            or self.bad_words_ids
            or self.logits_processors
        )

    @property
    def has_penalties(self) -> bool:
        """Whether tokens so far make their own repetition less or more likely."""
        return (
            self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
        )


_LOGPROBS = (
    f"None or between 0 and {MAX_LOGPROBS}; for log-probabilities of the whole vocabulary, which "
    f"vLLM gives for -1, ask for the {MAX_LOGPROBS} most probable ones, or run the model yourself"
)
_num_logprobs = values.integer(0, MAX_LOGPROBS, _LOGPROBS)
_READERS: dict[str, values.Reader] = {
    "n": values.integer(1, UNLIMITED, "an integer of at least 1"),
    "temperature": values.number(0, 100),
    "top_k": values.integer(-1, UNLIMITED, "an integer of at least 1, or 0 or -1 for every token"),
    "top_p": values.number(0, 1),
    "min_p": values.number(0, 1),
    "repetition_penalty": values.number(0.01, 100),
    "presence_penalty": values.number(-2, 2),
    "frequency_penalty": values.number(-2, 2),
    "seed": values.optional(values.integer(-(2**63), 2**63 - 1, "an integer of 64 bits, or None")),
    "max_tokens": values.optional(
        values.integer(0, UNLIMITED, "an integer of at least 0, or None for no limit")
    ),
    "min_tokens": values.integer(0, UNLIMITED, "an integer of at least 0"),
    "stop": values.strings,
    "stop_token_ids": values.token_ids,
    "ignore_eos": values.flag,
    "include_stop_str_in_output": values.flag,
    "logit_bias": values.biases,
    "allowed_token_ids": values.optional(values.some_token_ids),
    "bad_words": values.words,
    "bad_words_ids": values.token_sequences,
    "logits_processors": values.functions,
    "logprobs": values.optional(_num_logprobs),
    "prompt_logprobs": values.optional(_num_logprobs),
    "detokenize": values.flag,
    "skip_special_tokens": values.flag,
}
