"""`Forward`: the pass over the layers of a step that is no captured decode.

It takes two moves, since a step's numbers are sent to the device in one upload: first the tokens
are put into it; later, with all else that the step sends on its way, the pass is queued. It is
launched kernel by kernel, or replayed where the step is one short prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from quire.kv.batch import HostSequences
from quire.messages import ScheduledEntry
from quire.runner.device import DeviceParts
from quire.runner.prompt_graphs import PromptGraphs
from quire.runner.step_tokens import StepTokens, TokensOnDevice


@dataclass(frozen=True)
class Forward:
    """A step's tokens on their way, and what computes them."""

    parts: DeviceParts
    tokens: StepTokens
    inputs: TokensOnDevice
    prompts: PromptGraphs | None
    size: int | None  # that a replayed prompt is padded to

    @classmethod
    def put(
        cls, parts: DeviceParts, entries: list[ScheduledEntry], prompts: PromptGraphs | None
    ) -> Forward:
        """Begin an upload with the tokens of these requests.

        Args:
            prompts: replay what was captured; None launches every step.
        """
        size = None if prompts is None else prompts.padded_length(entries)
        tokens = StepTokens.of(entries)
        if size is not None:
            tokens = tokens.padded(size, parts.batch.null_row)
        return cls(parts, tokens, tokens.put(parts), prompts, size)

    def queue(self) -> Tensor:
        """Queue the pass behind the upload; return hidden states [tokens and padding, hidden_size].

        Those of a replayed prompt lie in the graph's own memory, which the next one overwrites.
        """
        parts, tokens = self.parts, self.tokens
        if self.prompts is not None and self.size is not None:
            return self.prompts.replay(self.size, num_tokens=tokens.ends[-1])
        rows, positions, query_starts, lengths, sequence_rows, slots = self.inputs
        host = HostSequences([0, *tokens.ends], tokens.lengths, tokens.rows_of_entries)
        step = parts.step_metadata(query_starts, lengths, sequence_rows, positions, slots, host)
        return parts.model(parts.batch.token_ids[rows, positions], parts.storage, step)
