"""`DecodeGraphs`: steps of as many tokens of each request, captured once and replayed.

A decode step is some three hundred kernels of a few microseconds, far less than Python
needs to launch them. A CUDA graph launches them all at once. It replays the very same
addresses and grids, so a graph is captured for each of a few batch sizes and a step is
padded to the next of them; what changes from step to step lies in memory.

Where drafts are verified each batch size has further graphs, of 1 + k tokens a request. A
request with fewer drafts has tokens in it that nobody looks at.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from functools import partial
from itertools import product

import numpy as np
import torch
from torch import Tensor

from quire.kernels.step import DecodeInputs, begin_step
from quire.messages import ScheduledEntry, SchedulerOutput
from quire.runner.capture import capture
from quire.runner.device import DeviceParts
from quire.sampling.sampler import GraphSafeSampler, SamplerOutput
from quire.speculation.coupled import num_accepted, toss


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

        Smaller graphs then fit into the memory of the larger ones. A stage that is not a
        pipeline's last has one ending: it hands its hidden states on.
        """
        self._parts = parts
        self._sizes = batch_sizes(parts.config.scheduling.max_num_seqs)
        device, speculation = parts.config.model.device, parts.config.speculation
        choices = () if speculation is None else speculation.choices
        drafts = max(choices, default=0)
        self._widths = [1, *(1 + number for number in choices)]
        reserved = 1 if speculation is None else 1 + drafts + speculation.num_lookahead_tokens
        self._most_new_blocks = -(-reserved // parts.config.cache.block_size)
        sequences = torch.arange(
            parts.config.scheduling.max_num_seqs + 1, dtype=torch.int32, device=device
        )
        self._query_starts = {width: sequences * width for width in self._widths}
        self._graphs: dict[tuple[int, int, Ending], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        is_last = parts.model.place.is_last
        self._captures_sampling = is_last and isinstance(parts.sampler, GraphSafeSampler)
        endings = list(Ending) if self._captures_sampling else [Ending.HIDDEN]
        # Every graph of a stage reads what the stage before sends from the same place.
        self._received = parts.model.room_for_stream(self._sizes[-1] * self._widths[-1])
        self.pool = torch.cuda.graph_pool_handle()
        for size, width, ending in product(reversed(self._sizes), reversed(self._widths), endings):
            inputs = self._put(size, width, [])
            body = partial(self._body, width, inputs, ending)
            self._graphs[size, width, ending] = capture(body, self.pool)

    def fits(self, output: SchedulerOutput) -> bool:
        """Whether a step is one that was captured: a token a request and drafts, none new."""
        most = self._widths[-1]
        return not output.new_requests and all(
            entry.num_tokens == 1 + entry.num_draft_tokens <= most
            and entry.samples
            and all(len(ids) <= self._most_new_blocks for ids in entry.new_block_ids)
            for entry in output.entries
        )

    def width(self, entries: Sequence[ScheduledEntry]) -> int:
        """Return how many tokens a request the step's graph has."""
        most = max(entry.num_tokens for entry in entries)
        return next(width for width in self._widths if width >= most)

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
        """Queue a step of R requests and W tokens each; return what it ends with.

        That is hidden states [R, W, hidden_size], or tokens: [R, 1], or where drafts are verified
        [R, W + 1], the last of which is the number of tokens accepted. The result lies in the
        graph's own memory, which the next replay overwrites.
        """
        size = next(size for size in self._sizes if size >= len(entries))
        width = self.width(entries)
        self._put(size, width, entries)
        graph, result = self._graphs[size, width, ending]
        place, received = self._parts.model.place, self._received[: size * width]
        place.queue(graph.replay, len(entries) * width, received, result.flatten(0, 1))
        return result[: len(entries)]

    def _put(self, size: int, width: int, entries: Sequence[ScheduledEntry]) -> DecodeInputs:
        """Send a step's inputs, padded to `size` with the null row.

        The starts may be upper bounds (`quire.runner.starts`).
        """
        parts, batch, padding = self._parts, self._parts.batch, [0] * (size - len(entries))
        starts = [entry.start for entry in entries]
        groups = range(len(batch.block_tables))
        new = np.zeros((len(groups), size, self._most_new_blocks), dtype=np.int32)
        first_new = np.zeros((len(groups), size), dtype=np.int32)
        for i, entry in enumerate(entries):
            for group, ids in enumerate(entry.new_block_ids):
                new[group, i, : len(ids)] = ids
                first_new[group, i] = batch.state(entry.row).num_blocks[group] - len(ids)
        put = parts.staging.put
        parts.staging.begin()
        inputs = DecodeInputs(
            rows=put([entry.row for entry in entries] + [batch.null_row] * len(padding), np.int32),
            positions=put(starts + padding, np.int32),
            num_drafts=put(
                [entry.num_draft_tokens for entry in entries] + [-1] * len(padding), np.int32
            ),
            first_new=put(first_new, np.int32),
            new_blocks=put(new, np.int32),
        )
        parts.staging.upload()
        return inputs

    def _body(self, width: int, inputs: DecodeInputs, ending: Ending) -> Tensor:
        """Queue every kernel of a step of `width` tokens a request."""
        parts, batch, size = self._parts, self._parts.batch, len(inputs.rows)
        positions = torch.empty(size * width, dtype=torch.int64, device=parts.config.model.device)
        tokens = torch.empty_like(positions)
        slots = [torch.empty_like(positions) for _ in batch.block_tables]
        lengths = torch.empty_like(inputs.rows)
        begin_step(
            inputs,
            batch.token_ids,
            batch.block_tables,
            parts.config.cache.block_size,
            tokens=tokens,
            positions=positions,
            slots=slots,
            lengths=lengths,
            num_known=batch.num_known,
        )
        step = parts.step_metadata(
            self._query_starts[width][: size + 1],
            lengths,
            inputs.rows,
            positions,
            slots,
            host=None,
            tokens_per_sequence=width,
        )
        hidden = parts.model.compute(tokens, parts.storage, step, self._received[: len(tokens)])
        if ending is Ending.HIDDEN:
            return hidden.view(size, width, -1)
        sampler = parts.sampler
        assert isinstance(sampler, GraphSafeSampler)
        rows, next_positions = inputs.rows.long(), positions + 1
        if ending is Ending.GREEDY:
            sampled = parts.model.greedy(hidden, sampler)
        else:
            rows_of_tokens = rows[:, None].expand(size, width).reshape(-1)
            tensors = batch.captured_sampling_tensors(rows_of_tokens, next_positions)
            sampled = sampler.draw(parts.model.compute_logits(hidden), tensors)
        chosen = sampled.view(size, width)
        if width == 1:
            batch.keep(rows, next_positions, SamplerOutput(chosen), None)
            return chosen
        guesses = tokens.view(size, width)[:, 1:]
        if batch.acceptance_rate is not None:
            seeds = batch.seeds(rows)[:, None].expand(size, width)
            places = next_positions.view(size, width)
            guesses = toss(chosen, batch.acceptance_rate, seeds, places)
        counts = num_accepted(chosen, guesses, inputs.num_drafts)
        batch.keep_accepted(rows, next_positions.view(size, width)[:, 0], chosen, counts)
        return torch.cat([chosen, counts[:, None]], dim=1)
