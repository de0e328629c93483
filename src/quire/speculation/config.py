"""`SpeculativeConfig`: who guesses, how far, and how the guesses are judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from quire.errors import QuireError
from quire.option_checks import require_counts

METHODS = ("ngram",)
VERIFICATIONS = ("coupled",)


@dataclass(frozen=True)
class SpeculativeConfig:
    """The keys of `LLM(speculative_config={...})`; their names are vLLM's.

    Args:
        method: "ngram" takes the guesses from the request's own tokens, where they continued
            the same way before (prompt lookup).
        num_speculative_tokens: guesses a request and step, at most.
        prompt_lookup_max: the most tokens that must have stood before the guesses then as now.
        prompt_lookup_min: the fewest; a longer match is preferred.
        verification: "coupled" keeps a guess if it is the token that the step draws there
            without it, so that the output does not depend on the guesses.
    """

    method: str
    num_speculative_tokens: int = 4
    prompt_lookup_max: int = 4
    prompt_lookup_min: int = 2
    verification: str = "coupled"

    def __post_init__(self) -> None:
        _require_one_of("method", self.method, METHODS)
        _require_one_of("verification", self.verification, VERIFICATIONS)
        require_counts(self, "num_speculative_tokens", "prompt_lookup_max", "prompt_lookup_min")
        if self.prompt_lookup_min > self.prompt_lookup_max:
            raise QuireError(
                f"prompt_lookup_min={self.prompt_lookup_min}: must be at most "
                f"prompt_lookup_max={self.prompt_lookup_max}"
            )

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
