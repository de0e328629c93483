"""Who guesses: the proposer that a `SpeculativeConfig` names."""

from __future__ import annotations

from quire.speculation.config import SpeculativeConfig
from quire.speculation.ngram import NGramProposer
from quire.speculation.proposer import Proposer


def make_proposer(config: SpeculativeConfig) -> Proposer:
    """Return a new proposer."""
    assert config.method == "ngram", config.method  # the config refuses any other
    return NGramProposer(config.prompt_lookup_min, config.prompt_lookup_max)
