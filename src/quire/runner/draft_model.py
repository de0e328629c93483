"""`DraftModel`: a smaller model guesses what the model will say next.

It reads the same tokens, from the same rows of the device, and keeps its own keys and values in
the same blocks. After a step of the model it computes what it has not seen yet, and then k tokens
one after another, each from the one that it has just guessed. Where graphs are captured these k
steps are one graph: a small model's step is shorter than its launch.

A guess is drawn with the noise of its position, the very one that the model's own draw will use
there. Two similar distributions that share their noise mostly choose alike (Daliri, Musco and
Suresh 2024): that is what makes coupled verification accept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import torch
from torch import Tensor

from quire.kernels.noise import Purpose
from quire.kernels.sampling import probabilities
from quire.kv.batch import HostSequences
from quire.messages import ScheduledEntry, SchedulerOutput
from quire.runner.capture import capture
from quire.runner.decode_graphs import batch_sizes
from quire.runner.device import DeviceParts
from quire.runner.forward import Forward
from quire.runner.memory import bytes_a_step, probabilities_shape
from quire.runner.prompt_graphs import PromptGraphs
from quire.runner.staging import make_staging
from quire.sampling.sampler import GraphSafeSampler, TorchSampler
from quire.sampling.tensors import SamplingTensors
from quire.speculation.block import round_seeds
from quire.speculation.rejection import draw


class DraftModel:
    """Guesses on the device, without the host's knowing how many tokens were accepted.

    Invariant: before it guesses, the draft model's keys and values of a row's tokens at
    [0, n - 2) are in the cache, n being `InputBatch.num_known`; only such as a step without
    guesses, or a full cache, left out are missing, which makes a guess worse and no output wrong.
    """

    def __init__(self, parts: DeviceParts, sampler: TorchSampler, *, captures: bool) -> None:
        """Take the engine's parts, with the draft model, its storage and its layout among them.

        Args:
            sampler: chooses the guesses, as the model's own draws are chosen.
            captures: capture a graph for each batch size.
        """
        config = parts.config
        assert config.speculation is not None
        assert parts.batch.num_known is not None
        self._sampler = sampler
        self._num_known = parts.batch.num_known
        self._choices = config.speculation.choices
        self._most_guesses = config.speculation.most_guesses
        # Of each row's tokens, those that the draft model has computed, or fewer; and the rows
        # behind whose last tokens nothing was guessed, which it has to catch up with.
        self._num_computed = [0] * (config.scheduling.max_num_seqs + 1)
        self._behind: set[int] = set()
        self._max_model_len = config.model.max_model_len
        most, device = config.scheduling.max_num_seqs, config.model.device
        # Apart from each other and from the model's own: a captured graph reads its place. One
        # buffer more than steps in flight, so that a step that reads two pieces need not wait.
        num_bytes = bytes_a_step(config, len(parts.batch.block_tables))
        num_buffers = config.max_in_flight + 1
        self._parts = replace(parts, staging=make_staging(num_bytes, num_buffers, device))
        self._row_staging = make_staging((most + 16) * 8, num_buffers, device)
        self._is_block = config.speculation.verification == "block"
        self._probabilities: Tensor | None = None  # [rows, k, V]
        if config.speculation.needs_probabilities:
            shape = probabilities_shape(config, parts.model.config.vocab_size)
            self._probabilities = torch.zeros(shape, dtype=torch.float32, device=device)
        self._sizes = batch_sizes(most)
        self._graphs: dict[tuple[int, int, bool], torch.cuda.CUDAGraph] = {}
        self.prompt_graphs: PromptGraphs | None = None
        if captures:
            with torch.inference_mode():
                self._capture()

    def begin(self, output: SchedulerOutput) -> None:
        """Note whose tokens are new; what lies in cached blocks is taken as computed."""
        for request in output.new_requests:
            self._num_computed[request.row] = output.hit_tokens.get(request.request_id, 0)
            self._behind.add(request.row)

    @torch.inference_mode()
    def queue(self, output: SchedulerOutput) -> None:
        """Queue the draft model's part of a step: what it has not computed yet, then guesses.

        Where nothing is to be guessed it computes nothing: it catches up once it is.
        """
        num_guesses = self._most_guesses if output.num_guesses is None else output.num_guesses
        if num_guesses == 0:
            self._behind.update(entry.row for entry in output.entries)
            return
        state = self._parts.batch.state
        entries = [e for e in output.entries if state(e.row).params.speculate]
        pieces = []
        for entry in entries:
            begin = self._num_computed[entry.row]
            # Where drafts ahead are still judged it may lie too far behind; whatever is computed
            # there is computed again once tokens are known.
            end = entry.start + entry.num_tokens - entry.num_draft_tokens
            # To guess it computes the last token but one and the last, which the step chooses.
            wanted = end - 1 if entry.samples else end
            if entry.row in self._behind and begin < wanted:
                pieces.append(_piece(entry.row, begin, end))
            self._num_computed[entry.row] = end - entry.num_unverified
        for some in _within(pieces, self._parts.config.scheduling.max_num_batched_tokens):
            self._compute(some)
        rows = [entry.row for entry in entries if entry.samples]
        if not rows:
            return
        self._behind.difference_update(rows)
        greedy = all(state(row).params.greedy for row in rows)
        if self._graphs:
            self.replay(rows, num_guesses, greedy)
        else:
            self._guess(self._send(rows, len(rows)), num_guesses, greedy)

    def replay(self, rows: Sequence[int], num_guesses: int, greedy: bool) -> None:
        """Queue the captured steps that guess so many tokens of some rows."""
        size = next(size for size in self._sizes if size >= len(rows))
        self._send(rows, size)
        self._graphs[size, num_guesses, greedy].replay()

    def propose(
        self,
        entries: Sequence[ScheduledEntry],
        told: Mapping[str, Sequence[int]],
        num_guesses: int | None = None,
    ) -> dict[str, int]:
        """Return nothing: the scheduler knows how many are made, and where they have places."""
        return {}

    def _compute(self, pieces: list[ScheduledEntry]) -> None:
        """Queue the pass over known tokens of some rows, behind whatever is queued."""
        forward = Forward.put(self._parts, pieces, self.prompt_graphs)
        self._parts.staging.upload()
        forward.queue()

    def _send(self, rows: Sequence[int], size: int) -> Tensor:
        padding = [self._parts.batch.null_row] * (size - len(rows))
        self._row_staging.begin()
        sent = self._row_staging.put([*rows, *padding], np.int64)
        self._row_staging.upload()
        return sent

    # docs: draft begin
    def _guess(self, rows: Tensor, num_guesses: int, greedy: bool) -> None:
        """Queue a step a guess for R rows, int64 [R]; each writes it behind the row's tokens.

        The first computes two tokens a row. Of the last step's tokens the final one is always
        new to the draft model; the one before it is, where all guesses were right.
        """
        parts, batch = self._parts, self._parts.batch
        known = self._num_known[rows]
        nowhere = batch.token_ids.shape[1] - 1
        for turn in range(num_guesses):
            end = (known + turn).clamp(max=self._max_model_len)
            hidden = self._forward(rows, end, 2 if turn == 0 else 1, is_kept=known + turn == end)
            tensors = batch.captured_sampling_tensors(rows, end)
            tensors.all_greedy = greedy
            tokens = self._choose(rows, known, turn, hidden, tensors)
            place = (known + turn).clamp(max=nowhere)
            batch.token_ids[rows, place] = tokens.clamp(0, parts.model.config.vocab_size - 1)

    # docs: draft end

    def _choose(
        self, rows: Tensor, known: Tensor, turn: int, hidden: Tensor, tensors: SamplingTensors
    ) -> Tensor:
        """Choose a guess a row: by the model's own noise, or where a coin judges by another."""
        logits = self._parts.model.compute_logits(hidden.contiguous())
        if self._probabilities is None:
            on_gpu = isinstance(self._sampler, GraphSafeSampler)
            return self._sampler.choose(logits if on_gpu else logits.float(), tensors)
        q = probabilities(logits, tensors.temperature, tensors.top_k, tensors.top_p, tensors.min_p)
        self._probabilities[rows, turn] = q
        seeds = round_seeds(tensors.seeds, known) if self._is_block else tensors.seeds
        return draw(q, seeds, tensors.positions, Purpose.DRAFT)

    def probabilities(self, rows: Tensor, turns: Tensor) -> Tensor | None:
        """Return what guesses were drawn from, float32 [N, V].

        Args:
            rows, turns: int64 [N]: whose guess, and which of its last ones; k stands for any.
        """
        if self._probabilities is None:
            return None
        return self._probabilities[rows, turns.clamp(max=self._most_guesses - 1)]

    def _forward(self, rows: Tensor, ends: Tensor, width: int, is_kept: Tensor) -> Tensor:
        """Compute the tokens at [end - width, end) of rows; return the last ones' hidden states.

        Args:
            rows, ends: int64 [R]; a row of which nothing is known ends at 0.
            width: tokens a row.
            is_kept: bool [R], where keys and values are to be kept.
        """
        parts, batch = self._parts, self._parts.batch
        size, block_size = len(rows), parts.config.cache.block_size
        later = torch.arange(width, device=rows.device)
        positions = (ends[:, None] - width + later).clamp(min=0)
        slots = [
            torch.where(
                is_kept[:, None],
                table[rows[:, None], positions // block_size].long() * block_size
                + positions % block_size,
                0,
            ).flatten()
            for table in batch.block_tables
        ]
        starts = torch.arange(0, size * width + 1, width, dtype=torch.int32, device=rows.device)
        host = None
        if not self._parts.backend.graph_safe:
            host = HostSequences(starts.tolist(), ends.tolist(), rows.tolist())
        step = parts.step_metadata(
            starts, ends.int(), rows.int(), positions.flatten(), slots, host, width
        )
        tokens = batch.token_ids[rows[:, None], positions].flatten()
        hidden = parts.model(tokens, parts.storage, step)
        return hidden.view(size, width, -1)[:, -1]

    def _capture(self) -> None:
        pool = torch.cuda.graph_pool_handle()
        for size, number, greedy in product(reversed(self._sizes), self._choices, (True, False)):
            rows = self._send([], size)
            guess = partial(self._guess, rows, number, greedy)
            self._graphs[size, number, greedy], _ = capture(guess, pool)
        if getattr(self._parts.backend, "captures_prompts", False):
            self.prompt_graphs = PromptGraphs(self._parts, pool)


def _piece(row: int, begin: int, end: int) -> ScheduledEntry:
    """Return what computes the tokens [begin, end) of a row."""
    return ScheduledEntry("", row, begin, end - begin, samples=False)


def _within(pieces: Sequence[ScheduledEntry], budget: int) -> Iterator[list[ScheduledEntry]]:
    """Yield pieces in lists of at most `budget` tokens; a longer piece is cut."""
    some: list[ScheduledEntry] = []
    room = budget
    for piece in pieces:
        begin, last = piece.start, piece.start + piece.num_tokens
        while begin < last:
            end = min(last, begin + room)
            some.append(_piece(piece.row, begin, end))
            room -= end - begin
            begin = end
            if room == 0:
                yield some
                some, room = [], budget
    if some:
        yield some
