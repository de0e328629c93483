"""`DecodeGraphs`: steps of one token a request, captured once and replayed.

A decode step is some three hundred kernels of a few microseconds, far less than Python
needs to launch them. A CUDA graph launches them all at once. It replays the very same
addresses and grids, so a graph is captured for each of a few batch sizes and a step is
padded to the next of them; what changes from step to step lies in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import numpy as np
import torch
from torch import Tensor

from quire.kernels.step import DecodeInputs, begin_step
from quire.messages import ScheduledEntry, SchedulerOutput
from quire.runner.device import DeviceParts
from quire.sampling.sampler import GraphSafeSampler, SamplerOutput


class Ending(Enum):
    """How a captured step ends."""

    GREEDY = "the largest logit of each row"
    SAMPLED = "a draw with each row's own parameters"
    HIDDEN = "hidden states, for sampling that is not captured"


def batch_sizes(max_num_seqs: int) -> list[int]:
    """Return the batch sizes to capture: dense where a padded row weighs most."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, max_num_seqs, 32)]
    return [size for size in sizes if size < max_num_seqs] + [max_num_seqs]


class DecodeGraphs:
    """The captured graphs, their inputs and what each of them leaves behind."""

    def __init__(self, parts: DeviceParts) -> None:
        """Capture every batch size and ending, the largest first.

        Smaller graphs then fit into the memory of the larger ones.
        """
        self._parts = parts
        self._sizes = batch_sizes(parts.config.scheduling.max_num_seqs)
        device = parts.config.model.device
        self._query_starts = torch.arange(
            parts.config.scheduling.max_num_seqs + 1, dtype=torch.int32, device=device
        )
        self._graphs: dict[tuple[int, Ending], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._captures_sampling = isinstance(parts.sampler, GraphSafeSampler)
        endings = [Ending.HIDDEN]
        if self._captures_sampling:
            endings += [Ending.GREEDY, Ending.SAMPLED]
        pool = torch.cuda.graph_pool_handle()
        for size in reversed(self._sizes):
            for ending in endings:
                inputs = self._put(size, [])
                self._body(size, inputs, ending)  # compiles kernels, which a capture cannot
                torch.cuda.synchronize(device)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool):
                    result = self._body(size, inputs, ending)
                self._graphs[size, ending] = graph, result

    @staticmethod
    def fits(output: SchedulerOutput) -> bool:
        """Whether a step is one that was captured: a token a request, none of them new."""
        return not output.new_requests and all(
            entry.num_tokens == 1 and entry.samples for entry in output.entries
        )

    def ending(self, entries: Sequence[ScheduledEntry]) -> Ending:
        """Choose how the step of these requests ends."""
        states = [self._parts.batch.state(entry.row) for entry in entries]
        if not self._captures_sampling or any(
            state.needs_uncaptured_sampling(entry.start + 1)
            for state, entry in zip(states, entries, strict=True)
        ):
            return Ending.HIDDEN
        return Ending.GREEDY if all(s.params.greedy for s in states) else Ending.SAMPLED

    def replay(self, entries: Sequence[ScheduledEntry], ending: Ending) -> Tensor:
        """Queue the step; return its tokens [R] or hidden states [R, hidden_size].

        The result lies in the graph's own memory, which the next replay overwrites.
        """
        size = next(size for size in self._sizes if size >= len(entries))
        self._put(size, entries)
        graph, result = self._graphs[size, ending]
        graph.replay()
        return result[: len(entries)]

    def _put(self, size: int, entries: Sequence[ScheduledEntry]) -> DecodeInputs:
        """Send a step's inputs, padded to `size` with the null row."""
        parts, padding = self._parts, [0] * (size - len(entries))
        starts = [entry.start for entry in entries]
        null_rows = [parts.batch.null_row] * len(padding)
        put = parts.staging.put
        parts.staging.begin()
        inputs = DecodeInputs(
            rows=put([entry.row for entry in entries] + null_rows, np.int32),
            positions=put(starts + padding, np.int32),
            lengths=put([start + 1 for start in starts] + padding, np.int32),
            new_blocks=put(
                [
                    [_new_block(entry, group) for entry in entries] + padding
                    for group in range(len(parts.layout.windows))
                ],
                np.int32,
            ),
        )
        parts.staging.upload()
        return inputs

    def _body(self, size: int, inputs: DecodeInputs, ending: Ending) -> Tensor:
        """Queue every kernel of a step of `size` requests."""
        parts, batch = self._parts, self._parts.batch
        positions = torch.empty(size, dtype=torch.int64, device=parts.config.model.device)
        tokens = torch.empty_like(positions)
        slots = [torch.empty_like(positions) for _ in parts.layout.windows]
        begin_step(
            inputs,
            batch.token_ids,
            batch.block_tables,
            parts.config.cache.block_size,
            tokens=tokens,
            positions=positions,
            slots=slots,
        )
        step = parts.step_metadata(
            self._query_starts[: size + 1], inputs.lengths, inputs.rows, positions, slots, host=None
        )
        hidden = parts.model(tokens, parts.storage, step)
        if ending is Ending.HIDDEN:
            return hidden
        sampler = parts.sampler
        assert isinstance(sampler, GraphSafeSampler)
        rows, next_positions = inputs.rows.long(), positions + 1
        logits = parts.model.compute_logits(hidden)
        if ending is Ending.GREEDY:
            sampled = sampler.greedy(logits)
        else:
            sampled = sampler.draw(logits, batch.captured_sampling_tensors(rows, next_positions))
        batch.keep(rows, next_positions, SamplerOutput(sampled[:, None]), None)
        return sampled


def _new_block(entry: ScheduledEntry, group: int) -> int:
    """Return the block that begins at an entry's only token, or the null block."""
    ids = entry.new_block_ids[group] if entry.new_block_ids else ()
    return ids[0] if ids else 0
