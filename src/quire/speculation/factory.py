"""Who guesses: the proposer, or the draft model, that a `SpeculativeConfig` names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quire.errors import QuireError
from quire.models.config import ModelConfig
from quire.models.loader import resolve_checkpoint
from quire.speculation.config import SpeculativeConfig
from quire.speculation.ngram import NGramProposer
from quire.speculation.proposer import Proposer
from quire.speculation.suffix import SuffixProposer


def make_proposer(config: SpeculativeConfig) -> Proposer:
    """Return a new proposer, where the host guesses."""
    if config.method == "suffix":
        return SuffixProposer()
    assert config.method == "ngram", config.method  # the config refuses any other
    return NGramProposer(config.prompt_lookup_min, config.prompt_lookup_max)


@dataclass(frozen=True)
class DraftSource:
    """A draft model: its shapes and the folder of its weights; None gives random ones."""

    config: ModelConfig
    folder: Path | None


def find_draft_model(
    config: SpeculativeConfig, target: ModelConfig, max_model_len: int
) -> DraftSource | None:
    """Return the draft model that a config names; None where no model guesses.

    Raises:
        QuireError: it speaks of other tokens than the model, or ends before `max_model_len`.
        CheckpointError, UnsupportedModelError: it cannot be loaded.
    """
    if config.model is None:
        return None
    if isinstance(config.model, ModelConfig):
        draft = DraftSource(config.model, None)
    else:
        folder = resolve_checkpoint(config.model)
        draft = DraftSource(ModelConfig.from_folder(folder), folder)
    sizes = draft.config.vocab_size, target.vocab_size
    if sizes[0] != sizes[1]:
        raise QuireError(
            f"speculative_config: the draft model has a vocabulary of {sizes[0]} tokens and the "
            f"model one of {sizes[1]}: a draft model must share the model's tokenizer"
        )
    if draft.config.max_position < max_model_len:
        raise QuireError(
            f"speculative_config: the draft model was made for {draft.config.max_position} tokens, "
            f"fewer than max_model_len={max_model_len}: lower max_model_len"
        )
    return draft
