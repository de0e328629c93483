"""`InputBatch`: what the device knows of the running requests, a stable row each.

A request keeps its row until it ends, so a step only names rows. Tokens are read from
their row on the device: the next step can be queued before the host has seen them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire.config import EngineConfig
from quire.messages import NewRequest, ScheduledEntry, SchedulerOutput
from quire.sampling.bias import (
    Pairs,
    bias_of_rows,
    completing_tokens,
    fixed_bias,
    pack_words,
)
from quire.sampling.drafts import Drafts
from quire.sampling.params import SamplingParams
from quire.sampling.sampler import SamplerOutput
from quire.sampling.tensors import Penalties, RowFunction, SamplingTensors
from quire.sending import send

TableUpdate = NDArray[np.int64]  # [3, n]: row, column, block


@dataclass
class RowState:
    """The host's side of a row."""

    params: SamplingParams
    num_prompt_tokens: int
    num_blocks: list[int]  # per KV group
    bias: Tensor | None = None  # of `fixed_bias`, on the device
    words: Tensor | None = None  # of `pack_words`, on the device
    first_end: int = field(init=False)  # the first position that may end it, by `min_tokens`
    always_uncaptured: bool = field(init=False)

    def __post_init__(self) -> None:
        self.first_end = self.num_prompt_tokens + self.params.min_tokens
        self.always_uncaptured = self.params.needs_uncaptured_sampling

    def needs_uncaptured_sampling(self, position: int) -> bool:
        """Whether the token at a position takes more than a captured step ends with."""
        return self.always_uncaptured or position < self.first_end


class InputBatch:
    """Rows [0, max_num_seqs) belong to requests; one more, the null row, pads a batch.

    `token_ids[row, p]` is the token at position p, for p below the tokens known so far; guesses
    of what follows may lie behind them. `block_tables[group][row, b]` is the block of positions
    [b · block_size, (b + 1) · block_size), or the null block where the row's request has none:
    what is written there nobody reads. The null row has null blocks only.

    Where a draft model guesses, `num_known[row]` is how many tokens of a row are known once the
    steps that are queued have run. What a step computes begins there or before. The null row has
    none.
    """

    def __init__(
        self,
        config: EngineConfig,
        num_groups: int,
        vocab_size: int,
        eos_token_ids: Sequence[int],
    ) -> None:
        """Allocate the device's tables and the host's copies of the block tables."""
        rows, device = config.scheduling.max_num_seqs + 1, config.model.device
        self.null_row = config.scheduling.max_num_seqs
        # One more position: a step may write the token after the last.
        self.token_ids = torch.zeros(
            (rows, config.model.max_model_len + 1), dtype=torch.int64, device=device
        )
        shape = (rows, config.blocks_per_row)
        self.host_tables = [np.zeros(shape, dtype=np.int32) for _ in range(num_groups)]
        # On a CPU the device's table is the host's.
        self.block_tables = [torch.from_numpy(table).to(device) for table in self.host_tables]
        self._floats = torch.zeros((3, rows), dtype=torch.float32, device=device)
        self._integers = torch.zeros((2, rows), dtype=torch.int64, device=device)
        self.num_known: Tensor | None = None
        if config.speculation is not None and config.speculation.guesses_on_device:
            self.num_known = torch.zeros(rows, dtype=torch.int64, device=device)
        self.acceptance_rate: Tensor | None = None  # of "synthetic" verification
        if config.speculation is not None and config.speculation.acceptance_rate is not None:
            rate = config.speculation.acceptance_rate
            self.acceptance_rate = torch.tensor(rate, dtype=torch.float32, device=device)
        self._block_size = config.cache.block_size
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._device = device
        self._states: list[RowState | None] = [None] * rows

    def state(self, row: int) -> RowState:
        """Return the host's side of a row."""
        state = self._states[row]
        assert state is not None, f"row {row} belongs to no request"
        return state

    def update(self, output: SchedulerOutput) -> list[TableUpdate]:
        """Give new requests their rows and append the step's new blocks to the host's tables.

        Returns what changed in each group's table, which `apply` wants on the device.
        """
        if output.new_requests:
            self._add(output.new_requests)
        changed: list[list[tuple[int, int, int]]] = [[] for _ in self.block_tables]
        for entry in output.entries:
            if entry.new_block_ids:
                self._extend(entry, changed)
        return [np.array(triples, dtype=np.int64).reshape(-1, 3).T for triples in changed]

    def tell(self, entries: Sequence[ScheduledEntry]) -> None:
        """Write the outputs that entries bring to their rows, all in one copy."""
        told = [
            (entry.row, entry.start + entry.num_tokens - behind, entry.token_ids[-behind])
            for entry in entries
            for behind in range(len(entry.token_ids), 0, -1)
        ]
        if told:
            rows, positions, tokens = self._send(torch.tensor(told).T.contiguous())
            self.token_ids[rows, positions] = tokens

    def true_starts(self, rows: Tensor, starts: Tensor) -> Tensor:
        """Return where entries begin, int64 [N], on the device.

        Args:
            rows, starts: int64 [N]; a start is an upper bound where steps ahead judge drafts.
        """
        if self.num_known is None:
            return starts
        return torch.minimum(starts, self.num_known[rows] - 1)

    def apply(self, changes: list[Tensor]) -> None:
        """Bring the device's tables up to date with int64 [3, n] updates, one a group."""
        if self._device.type == "cpu":  # the same memory
            return
        for table, (rows, columns, ids) in zip(self.block_tables, changes, strict=True):
            if len(ids):
                table[rows, columns] = ids.int()

    def slots(
        self, rows: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> list[NDArray[np.int64]]:
        """Return where tokens go in each group's cache: block · block_size + offset."""
        columns, offsets = np.divmod(positions, self._block_size)
        return [
            table[rows, columns].astype(np.int64) * self._block_size + offsets
            for table in self.host_tables
        ]

    def _add(self, requests: tuple[NewRequest, ...]) -> None:
        floats, integers = [], []
        for request in requests:
            params = request.sampling_params
            bias, words = fixed_bias(params, self._vocab_size), pack_words(params.bad_words_ids)
            self._states[request.row] = RowState(
                params,
                request.num_prompt_tokens,
                [0] * len(self.block_tables),
                None if bias is None else self._send(bias),
                None if words is None else self._send(words),
            )
            floats.append((params.temperature, params.top_p, params.min_p))
            integers.append((request.seed, params.top_k))
            tokens = self._send(torch.tensor(request.token_ids))
            self.token_ids[request.row, : len(request.token_ids)] = tokens
            for table in self.host_tables:
                table[request.row] = 0
        rows = self._send(torch.tensor([request.row for request in requests]))
        if self._device.type != "cpu":
            for device_table in self.block_tables:
                device_table.index_fill_(0, rows, 0)
        self._floats[:, rows] = self._send(torch.tensor(floats, dtype=torch.float32)).T
        self._integers[:, rows] = self._send(torch.tensor(integers)).T
        if self.num_known is not None:
            known = [len(request.token_ids) for request in requests]
            self.num_known[rows] = self._send(torch.tensor(known))

    def _send(self, values: Tensor) -> Tensor:
        return send(values, self._device)

    def _extend(self, entry: ScheduledEntry, changed: list[list[tuple[int, int, int]]]) -> None:
        held = self.state(entry.row).num_blocks
        for group, ids in enumerate(entry.new_block_ids):
            if ids:
                first = held[group]
                self.host_tables[group][entry.row, first : first + len(ids)] = ids
                changed[group] += [(entry.row, first + i, new) for i, new in enumerate(ids)]
                held[group] += len(ids)

    def sampling_tensors(
        self, rows: Tensor, positions: Tensor, chosen: Sequence[tuple[ScheduledEntry, int]]
    ) -> SamplingTensors:
        """Gather the sampling parameters of N tokens that are being chosen.

        A request may choose several at once, where drafts are verified: each follows the
        tokens at [0, position) of its row, the drafts before it included.

        Args:
            rows, positions: int64 [N], of these tokens.
            chosen: the same N as the host knows them, each an entry and a position.
        """
        states = [self.state(entry.row) for entry, _ in chosen]
        params = [state.params for state in states]
        temperature, top_p, min_p = self._floats.index_select(1, rows).unbind()
        seeds, top_k = self._integers.index_select(1, rows).unbind()
        tensors = SamplingTensors(
            temperature=temperature,
            seeds=seeds,
            positions=positions,
            all_greedy=all(p.greedy for p in params),
            top_k=top_k if any(p.top_k != 0 for p in params) else None,
            top_p=top_p if any(p.top_p != 1 for p in params) else None,
            min_p=min_p if any(p.min_p != 0 for p in params) else None,
        )
        ends = [position for _, position in chosen]
        if any(s.needs_uncaptured_sampling(end) for s, end in zip(states, ends, strict=True)):
            known = self.token_ids[rows, : max(ends)]
            prompts = [state.num_prompt_tokens for state in states]
            bounds = self._send(torch.tensor([prompts, ends]))
            self._add_uncaptured(tensors, _Histories(states, ends, known, bounds[0], bounds[1]))
        return tensors

    def keep(
        self, rows: Tensor, positions: Tensor, sampled: SamplerOutput, drafts: Drafts | None
    ) -> None:
        """Write chosen tokens to their rows, where the next step reads them.

        Args:
            rows, positions: int64 [N], what `sampling_tensors` was given for them.
        """
        # A row without a token (`NO_TOKEN`) ends in an error, but the next step may be queued.
        # So does an id that a swapped sampler made up.
        if drafts is None:
            self.token_ids[rows, positions] = sampled.tokens.clamp(0, self._vocab_size - 1)[:, 0]
            self._know(rows, positions + 1)
            return
        assert sampled.num_accepted is not None, "a step with drafts says how many were right"
        first = self._send(torch.tensor(drafts.first_rows[:-1]))
        self.keep_accepted(rows[first], positions[first], sampled.tokens, sampled.num_accepted)

    def keep_accepted(
        self, rows: Tensor, positions: Tensor, tokens: Tensor, num_accepted: Tensor
    ) -> None:
        """Write the first `num_accepted` of each request's `tokens` [R, W] from `positions` on."""
        column = torch.arange(tokens.shape[1], device=self._device)
        # What was not accepted goes behind the longest sequence, where nobody looks.
        nowhere = self.token_ids.shape[1] - 1
        targets = torch.where(
            column < num_accepted[:, None], positions[:, None] + column, nowhere
        ).clamp(max=nowhere)
        self.token_ids[rows[:, None], targets] = tokens.clamp(0, self._vocab_size - 1)
        self._know(rows, positions + num_accepted)

    def _know(self, rows: Tensor, num_known: Tensor) -> None:
        """Note how many tokens of rows are known; of a padded one none, whatever was chosen."""
        if self.num_known is not None:
            self.num_known[rows] = torch.where(rows == self.null_row, 0, num_known)

    def captured_sampling_tensors(self, rows: Tensor, positions: Tensor) -> SamplingTensors:
        """Gather the parameters of any rows: which of them are used is read on the device."""
        temperature, top_p, min_p = self._floats.index_select(1, rows).unbind()
        seeds, top_k = self._integers.index_select(1, rows).unbind()
        return SamplingTensors(temperature, seeds, positions, False, top_k, top_p, min_p)

    def seeds(self, rows: Tensor) -> Tensor:
        """Return the seeds of rows, int64."""
        return self._integers[0, rows]

    def _add_uncaptured(self, tensors: SamplingTensors, rows: _Histories) -> None:
        """Fill in what a captured step never has."""
        params = [state.params for state in rows.states]
        if any(p.has_penalties for p in params):
            tensors.penalties = Penalties.build(
                params, rows.token_ids, rows.num_prompt_tokens, rows.num_tokens, self._vocab_size
            )
        tensors.bias = self._bias(rows)
        tensors.functions = rows.functions()
        asked = [p.logprobs for p in params if p.logprobs is not None]
        tensors.num_logprobs = max(asked, default=None)

    def _bias(self, rows: _Histories) -> Tensor | None:
        """Return what `allowed_token_ids`, bad words, `min_tokens` and `logit_bias` add."""
        forbidden: list[Pairs] = []
        words = [(i, s.words) for i, s in enumerate(rows.states) if s.words is not None]
        if words:
            forbidden.append(
                completing_tokens(
                    words,
                    rows.token_ids,
                    rows.num_prompt_tokens,
                    rows.num_tokens,
                    self._vocab_size,
                )
            )
        ends = [
            (i, min(token_id, self._vocab_size))
            for i, (state, end) in enumerate(zip(rows.states, rows.ends, strict=True))
            if end < state.first_end
            for token_id in (*self._eos_token_ids, *state.params.stop_token_ids)
        ]
        if ends:
            pairs = self._send(torch.tensor(ends).T.contiguous())
            forbidden.append((pairs[0], pairs[1]))
        fixed = [state.bias for state in rows.states]
        if not forbidden and all(bias is None for bias in fixed):
            return None
        return bias_of_rows(fixed, forbidden, self._vocab_size, self._device)


@dataclass(frozen=True)
class _Histories:
    """What lies before each of the N tokens that a step chooses."""

    states: list[RowState]
    ends: list[int]  # the tokens' positions
    token_ids: Tensor  # int64 [N, T], on the device: prompt and output, then anything
    num_prompt_tokens: Tensor  # int64 [N], on the device
    num_tokens: Tensor  # int64 [N], on the device: `ends`

    def functions(self) -> list[RowFunction]:
        """Return the rows' own functions; the outputs that they see are read from the device."""
        found: list[RowFunction] = []
        for row, (state, end) in enumerate(zip(self.states, self.ends, strict=True)):
            if state.params.logits_processors:
                output = self.token_ids[row, state.num_prompt_tokens : end].tolist()
                found += [(row, function, output) for function in state.params.logits_processors]
        return found
