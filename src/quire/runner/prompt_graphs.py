"""`PromptGraphs`: the forward pass of one request's prompt, captured for a few lengths.

A short prompt that comes alone keeps a GPU busy for less time than Python needs to launch its
kernels one by one. Its pass over the layers is replayed instead, padded to the next length that
was captured. What is padding belongs to no sequence: it is written to the null slot, and nobody
attends to it. A prompt beside other requests, or a long one, is run kernel by kernel.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from quire.messages import ScheduledEntry
from quire.runner.capture import capture
from quire.runner.device import DeviceParts
from quire.runner.step_tokens import StepTokens, TokensOnDevice

# Dense enough that padding costs little where products are bound by arithmetic. At the last one
# replaying saves a model of 8 billion weights next to nothing on an H200, one of 0.6 most of a step
# (measurements/prompts-qwen3-8b-h200.json and -0.6b-).
SIZES = (16, 32, 64, *range(128, 1024 + 1, 64))


class PromptGraphs:
    """The captured passes, their inputs and the hidden states each of them leaves behind."""

    def __init__(self, parts: DeviceParts, pool: Any) -> None:
        """Capture every length that a step can have, the longest first, in the pool of graphs.

        Steps run one after another, and what a graph leaves is read before the next one starts:
        so all graphs of an engine share their memory.
        """
        scheduling, model = parts.config.scheduling, parts.config.model
        most = min(scheduling.max_num_batched_tokens, model.max_model_len, SIZES[-1])
        self._parts = parts
        self._sizes = [size for size in SIZES if size < most] + [most] * (most > 1)
        self._received = parts.model.room_for_stream(most)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        null = ScheduledEntry("", parts.batch.null_row, 0, 1, False, ())
        for size in reversed(self._sizes):
            inputs = StepTokens.of([null]).padded(size, null.row).put(parts)
            parts.staging.upload()
            self._graphs[size] = capture(partial(self._body, inputs), pool)

    def padded_length(self, entries: list[ScheduledEntry]) -> int | None:
        """Return the captured length that a step is padded to.

        None: it is run kernel by kernel, for it has several requests, a single token, drafts, or
        more tokens than were captured.
        """
        if len(entries) > 1 or entries[0].num_tokens == 1 or entries[0].num_draft_tokens > 0:
            return None
        return next((size for size in self._sizes if size >= entries[0].num_tokens), None)

    def replay(self, size: int, num_tokens: int) -> Tensor:
        """Queue the pass of `num_tokens` that were `put`; return hidden states [size, hidden_size].

        They lie in the graph's own memory, which the next replay overwrites.
        """
        graph, hidden = self._graphs[size]
        self._parts.model.place.queue(graph.replay, num_tokens, self._received[:size], hidden)
        return hidden

    def _body(self, inputs: TokensOnDevice) -> Tensor:
        """Queue every kernel of the pass."""
        rows, positions, query_starts, lengths, sequence_rows, slots = inputs
        parts = self._parts
        step = parts.step_metadata(
            query_starts,
            lengths,
            sequence_rows,
            positions,
            slots,
            host=None,
            tokens_per_sequence=len(rows),
            are_prompts=True,
        )
        tokens = parts.batch.token_ids[rows, positions]
        return parts.model.compute(tokens, parts.storage, step, self._received[: len(rows)])
