"""`SamplingParams`: how the next token of one request is chosen and when it ends."""

from __future__ import annotations

from dataclasses import dataclass, field

from quire.errors import InvalidRequestError


@dataclass(frozen=True)
class SamplingParams:
    """Sampling and stopping of one request; the names and defaults are vLLM's.

    Logits pass through, in this order: penalties, temperature, min-p, top-k, top-p.
    See the chapter "Autoregressive decoding", section "Choosing a token".

    Args:
        n: completions to sample for one prompt.
        temperature: divides the logits; 0 chooses the largest logit (greedy).
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches `top_p`
            (Holtzman et al. 2020); 1 keeps all.
        min_p: keep tokens at least `min_p` times as probable as the most probable one
            (Minh et al. 2025); 0 keeps all.
        repetition_penalty: divides the positive and multiplies the negative logits of
            tokens seen in prompt or output (Keskar et al. 2019); 1 changes nothing.
        presence_penalty: subtracted from the logits of tokens seen in the output.
        frequency_penalty: subtracted once for each time a token was seen in the output.
        seed: makes the request's draws repeatable, alone or in any batch.
        max_tokens: output tokens at most.
        stop: strings that end the output; the output is cut before the first of them.
        stop_token_ids: token ids that end the output, beside the model's own.
        ignore_eos: go on after the model's end-of-sequence token.
        logprobs: log-probabilities to return per output token: the chosen token's and
            those of this many most probable ones. They are the model's own, before
            penalties, temperature and truncation.
        prompt_logprobs: the same for each prompt token but the first.

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
    max_tokens: int = 16
    stop: str | list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        for name in ("n", "max_tokens"):
            value = getattr(self, name)
            _require(is_int(value) and value >= 1, name, value, "an integer of at least 1")
        _require(
            is_int(self.top_k) and 0 <= self.top_k < 2**63,
            "top_k",
            self.top_k,
            "an integer of at least 1, or 0 to keep every token",
        )
        for name, low, high in _RANGES:
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            # NaN lies between no two numbers.
            _require(number and low <= value <= high, name, value, f"between {low:g} and {high:g}")
        _require(self.top_p > 0, "top_p", self.top_p, "above 0 (use temperature=0 for greedy)")
        _require(
            self.seed is None or (is_int(self.seed) and -(2**63) <= self.seed < 2**63),
            "seed",
            self.seed,
            "an integer of 64 bits, or None",
        )
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            _require(
                value is None or (is_int(value) and 0 <= value <= MAX_LOGPROBS),
                name,
                value,
                f"None or between 0 and {MAX_LOGPROBS}",
            )
        _require(
            isinstance(self.stop, str | list | tuple)
            and all(isinstance(text, str) and text for text in self.stop_strings),
            "stop",
            self.stop,
            "a non-empty string or a list of them",
        )
        _require(
            isinstance(self.stop_token_ids, list | tuple)
            and all(is_int(token_id) and token_id >= 0 for token_id in self.stop_token_ids),
            "stop_token_ids",
            self.stop_token_ids,
            "a list of token ids",
        )
        _require(isinstance(self.ignore_eos, bool), "ignore_eos", self.ignore_eos, "True or False")

    @property
    def greedy(self) -> bool:
        """Whether the largest logit is chosen, with no draw at all."""
        return self.temperature == 0

    @property
    def stop_strings(self) -> list[str]:
        """`stop` as a list."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop)

    @property
    def has_penalties(self) -> bool:
        """Whether the logits depend on the tokens so far."""
        return (
            self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
        )


MAX_LOGPROBS = 100
_RANGES: tuple[tuple[str, float, float], ...] = (
    ("temperature", 0.0, 100.0),
    ("top_p", 0.0, 1.0),
    ("min_p", 0.0, 1.0),
    ("repetition_penalty", 0.01, 100.0),
    ("presence_penalty", -2.0, 2.0),
    ("frequency_penalty", -2.0, 2.0),
)


def is_int(value: object) -> bool:
    """Whether a value is an integer; True and False are not meant as numbers."""
    return isinstance(value, int) and not isinstance(value, bool)


def _require(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise InvalidRequestError(f"{name}={value!r}: must be {allowed}")
