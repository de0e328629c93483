"""`SpeculativeConfig`: who guesses, how far, and how the guesses are judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from quire.errors import QuireError
from quire.models.config import ModelConfig
from quire.option_checks import require_counts, require_share

METHODS = ("ngram", "suffix", "draft_model")
AUTO_CHOICES = (1, 2, 4)
VERIFICATIONS = ("coupled", "rejection", "block", "synthetic")


@dataclass(frozen=True)
class SpeculativeConfig:
    """The keys of `LLM(speculative_config={...})`; their names are vLLM's.

    Args:
        method: "ngram" takes the guesses from the request's own tokens, where they continued
            the same way before (prompt lookup); "suffix" from there and from earlier outputs, as
            far as they have mostly gone on alike; "draft_model" from a smaller model that knows
            the same tokens.
        model: the draft model: a shipped model's name, a checkpoint folder, a hub name, or a
            `ModelConfig`, which gets random weights.
        num_speculative_tokens: guesses a request and step, at most. "auto" chooses for each step
            among 0, 1, 2 and 4, by what they cost and how many of them stood
            (`quire.speculation.controller`).
        prompt_lookup_max: the most tokens that must have stood before the guesses then as now.
        prompt_lookup_min: the fewest; a longer match is preferred.
        verification: "coupled" keeps a guess if it is the token that the step draws there
            without it, so that the output does not depend on the guesses; "rejection" keeps it
            with the probability that the model gives it over that of who guessed, so that the
            output's law does not depend on them; "block" does so for the guesses of a step
            together, and keeps no fewer on average; "synthetic", for
            measurements alone, tosses a coin, whatever the guess is.
        acceptance_rate: the probability that a coin of "synthetic" verification keeps a guess.
    """

    method: str
    model: str | Path | ModelConfig | None = None
    num_speculative_tokens: int | str = "auto"
    prompt_lookup_max: int = 4
    prompt_lookup_min: int = 2
    verification: str = "coupled"
    acceptance_rate: float | None = None

    def __post_init__(self) -> None:
        _require_one_of("method", self.method, METHODS)
        _require_one_of("verification", self.verification, VERIFICATIONS)
        require_counts(self, "prompt_lookup_max", "prompt_lookup_min")
        if not self.is_adaptive:
            require_counts(self, "num_speculative_tokens")
        if (self.model is None) == (self.method == "draft_model"):
            needs = "needs the draft model's name as" if self.model is None else "has no"
            raise QuireError(f"speculative_config: method={self.method!r} {needs} 'model'")
        if (self.acceptance_rate is None) == (self.verification == "synthetic"):
            raise QuireError(
                f"speculative_config: acceptance_rate={self.acceptance_rate!r} with verification="
                f"{self.verification!r}: 'synthetic' takes one, and no other verification does"
            )
        if self.acceptance_rate is not None:
            require_share(self, "acceptance_rate", zero=True, one=True)
        if self.prompt_lookup_min > self.prompt_lookup_max:
            raise QuireError(
                f"prompt_lookup_min={self.prompt_lookup_min}: must be at most "
                f"prompt_lookup_max={self.prompt_lookup_max}"
            )

    @property
    def guesses_on_device(self) -> bool:
        """Whether guesses are computed where the tokens are, and not from the host's copy."""
        return self.method == "draft_model"

    @property
    def needs_probabilities(self) -> bool:
        """Whether the verification asks what a guess was drawn from."""
        return self.verification in ("rejection", "block")

    @property
    def num_lookahead_tokens(self) -> int:
        """Positions behind a step's own that a guess is computed at, and needs room for."""
        return self.most_guesses if self.guesses_on_device else 0

    @property
    def is_adaptive(self) -> bool:
        """Whether the engine chooses anew for each step how many tokens are guessed."""
        return self.num_speculative_tokens == "auto"

    @property
    def choices(self) -> tuple[int, ...]:
        """The numbers of guesses that steps are made for, besides none."""
        if isinstance(self.num_speculative_tokens, str):
            return AUTO_CHOICES
        return (self.num_speculative_tokens,)

    @property
    def most_guesses(self) -> int:
        """The most guesses a request and step."""
        return max(self.choices)

    @classmethod
    def of(cls, given: SpeculativeConfig | Mapping[str, Any] | None) -> SpeculativeConfig | None:
        """Return what a caller gave as a dict; None and a config stay what they are.

        Raises:
            QuireError: no dict; a key that there is none of; no method; an impossible value.
        """
        if given is None or isinstance(given, SpeculativeConfig):
            return given
        if not isinstance(given, Mapping):
            raise QuireError(
                f"speculative_config={given!r}: must be a dict such as "
                "{'method': 'ngram', 'num_speculative_tokens': 4}, or None"
            )
        names = [field.name for field in fields(cls)]
        unknown = sorted(set(map(str, given)) - set(names))
        if unknown:
            raise QuireError(
                f"speculative_config has no key {unknown[0]!r}: there are {', '.join(names)}"
            )
        if "method" not in given:
            raise QuireError(
                f"speculative_config={dict(given)!r}: 'method' is missing, one of "
                f"{', '.join(METHODS)}"
            )
        return cls(**given)


def _require_one_of(name: str, value: object, possible: tuple[str, ...]) -> None:
    if value not in possible:
        raise QuireError(
            f"speculative_config: {name}={value!r}: must be one of {', '.join(possible)}"
        )
