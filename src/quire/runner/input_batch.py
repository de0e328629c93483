"""`InputBatch`: what the device knows of the running requests, a stable row each.

A request keeps its row until it ends, so a step only names rows. The last token of a
request is read from its row on the device: the next step can be queued before the host
has seen it.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

import torch

from quire.messages import NewRequest, ScheduledEntry
from quire.sampling.params import SamplingParams
from quire.sampling.tensors import Penalties, SamplingTensors


@dataclass
class RowState:
    """The host's side of a row."""

    params: SamplingParams
    seed: int
    num_prompt_tokens: int
    block_ids: list[list[int]] = field(default_factory=list)  # per KV group


class InputBatch:
    """Rows [0, max_num_seqs). A row is valid from `add` to `remove`.

    `token_ids[row, p]` is the token at position p, for p below the tokens known so far.
    """

    def __init__(
        self, max_num_seqs: int, max_model_len: int, vocab_size: int, device: torch.device
    ) -> None:
        """Allocate the device's table."""
        self.token_ids = torch.zeros(
            (max_num_seqs, max_model_len), dtype=torch.int64, device=device
        )
        self._vocab_size = vocab_size
        self._device = device
        self._states: dict[str, RowState] = {}

    def add(self, request: NewRequest, row: int) -> None:
        """Copy a request's prompt into its row."""
        prompt = torch.tensor(request.prompt_token_ids, dtype=torch.int64)
        self.token_ids[row, : len(prompt)] = prompt.to(self._device)
        params = request.sampling_params
        seed = params.seed if params.seed is not None else secrets.randbits(63)
        self._states[request.request_id] = RowState(params, seed, len(prompt))

    def remove(self, request_id: str) -> None:
        """Forget a request; its row may be given to another.

        One that a failed step never added is left alone.
        """
        self._states.pop(request_id, None)

    def state(self, request_id: str) -> RowState:
        """Return the host's side of a request's row."""
        return self._states[request_id]

    def extend_blocks(self, entry: ScheduledEntry) -> list[list[int]]:
        """Append an entry's new blocks and return the request's tables, one a KV group."""
        tables = self._states[entry.request_id].block_ids
        for group, new in enumerate(entry.new_block_ids):
            if group == len(tables):
                tables.append([])
            tables[group].extend(new)
        return tables

    def sampling_tensors(self, entries: list[ScheduledEntry]) -> SamplingTensors:
        """Gather the sampling parameters of the entries that choose a token."""
        states = [self._states[entry.request_id] for entry in entries]
        ends = [entry.start + entry.num_tokens for entry in entries]
        params = [state.params for state in states]
        penalties = None
        if any(p.has_penalties for p in params):
            rows = [
                self.token_ids[entry.row, :end] for entry, end in zip(entries, ends, strict=True)
            ]
            splits = [state.num_prompt_tokens for state in states]
            penalties = Penalties.build(
                params,
                prompts=[row[:split] for row, split in zip(rows, splits, strict=True)],
                outputs=[row[split:] for row, split in zip(rows, splits, strict=True)],
                vocab_size=self._vocab_size,
            )
        return SamplingTensors.build(
            params, [state.seed for state in states], ends, self._device, penalties
        )
