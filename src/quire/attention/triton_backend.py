"""`TritonAttention`: decode and prefill by quire's own kernels, in place over the blocks.

A step may hold anything: sequences with one new token, prompts that start, chunks that
continue. They are sorted into three launches by what the host knows. In a captured step the
host knows nothing. There every sequence has as many new tokens: one, or a few drafts behind it.
Or all sequences are prompts of at most `tokens_per_sequence` tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire.kernels.decode_splits import DecodeScratch
from quire.kernels.paged_decode import paged_decode
from quire.kernels.prompts import Prefill
from quire.kernels.tuning import Tuning
from quire.kv.batch import AttentionBatch
from quire.kv.layer import LayerKV


@dataclass
class _Plan:
    """The launches of a step, the same for every layer of a KV group."""

    prefill: Prefill
    decodes: Tensor | None  # int32 [D], the sequences of one token; None: all of them
    scratch: DecodeScratch | None  # None: no sequence has one token
    fresh: Tensor  # int32 [tiles, 2], of prompts that start in this step
    chunks: Tensor  # int32 [tiles, 2], of chunks that continue, or of captured prompts

    # docs: plan begin
    @classmethod
    def of(cls, query: Tensor, kv: LayerKV, batch: AttentionBatch, prefill: Prefill) -> _Plan:
        """Sort the step's sequences into launches and send their lists in one copy."""
        size = prefill.tokens_per_tile(query.shape[1] // kv.key.shape[1])
        num_decodes, num_tokens = batch.lengths.shape[0], batch.tokens_per_sequence
        lists = [np.empty(0, dtype=np.int32)] * 3
        if batch.host is not None:
            new, lengths = np.diff(batch.host.query_starts), np.array(batch.host.lengths)
            num_decodes, num_tokens = int((new == 1).sum()), 1
            if num_decodes < len(new):
                lists = [
                    _tiles(np.flatnonzero((new > 1) & (new == lengths)), new, size),
                    _tiles(np.flatnonzero((new > 1) & (new < lengths)), new, size),
                    np.flatnonzero(new == 1).astype(np.int32),
                ]
        fresh, chunks, decodes = _to_device(lists, query.device)
        if batch.are_prompts:
            num_decodes, chunks = 0, _padded_tiles(batch, size)
        scratch = None
        if num_decodes > 0:
            scratch = DecodeScratch.allocate(
                num_decodes, num_tokens, query, kv, prefill.tuning.decode, batch.max_length
            )
        return cls(
            prefill=prefill,
            decodes=decodes if len(fresh) + len(chunks) > 0 else None,
            scratch=scratch,
            fresh=fresh.view(-1, 2),
            chunks=chunks.view(-1, 2),
        )

    # docs: plan end


@dataclass
class TritonMetadata:
    """A step's batch, and its plan once the first layer has told the shapes of heads."""

    batch: AttentionBatch
    window: int | None
    plan: _Plan | None = None


class TritonAttention:
    """See the module."""

    graph_safe = True
    captures_prompts = True
    writes_by_slot = True
    sees_sinks = True
    reads_scales = True

    def __init__(self, settings: Tuning | None = None) -> None:
        """Take launch settings of the kernels for every GPU; None: see `Prefill`."""
        self.settings = settings

    def build(self, batch: AttentionBatch, window: int | None) -> TritonMetadata:
        """Keep the batch; the plan needs the shapes of heads, which `forward` sees first."""
        return TritonMetadata(batch, window)

    def write(self, key: Tensor, value: Tensor, kv: LayerKV, metadata: TritonMetadata) -> None:
        """Store keys and values [num_tokens, num_kv_heads, head_size] at their slots."""
        kv.write(metadata.batch.slots, key, value)

    def forward(
        self,
        query: Tensor,
        kv: LayerKV,
        metadata: TritonMetadata,
        scale: float,
        fresh_kv: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Attend with queries [num_tokens, num_heads, head_size]; returns the same shape."""
        batch, window = metadata.batch, metadata.window
        if metadata.plan is None:
            prefill = Prefill.of(query, kv, window, self.settings)
            metadata.plan = _Plan.of(query, kv, batch, prefill)
        plan, settings = metadata.plan, metadata.plan.prefill.tuning
        # No program writes the output of padding. It goes through the layers behind: zeros do.
        allocate = torch.zeros if batch.are_prompts else torch.empty
        output = allocate(query.shape, dtype=query.dtype, device=query.device)
        if plan.scratch is not None:
            paged_decode(
                output, query, kv, batch, plan.decodes, plan.scratch, scale, window, settings.decode
            )
        fresh = fresh_kv if fresh_kv is not None and kv.key_scale is None else kv
        for source, tiles in ((fresh, plan.fresh), (kv, plan.chunks)):
            if len(tiles) > 0:
                plan.prefill.launch(output, query, source, batch, tiles, scale, window)
        return output


def _tiles(sequences: NDArray[np.int64], new: NDArray[np.int64], size: int) -> NDArray[np.int32]:
    """Cut chunks into tiles of `size` tokens: pairs (sequence, first token), flat.

    A sequence's tiles stay together, so that its keys stay in the last-level cache; those
    that see the most keys come first, so that no long one is left for the end.
    """
    counts = -(-new[sequences] // size)
    ends = np.cumsum(counts)
    last = np.repeat(ends, counts) - 1 - np.arange(counts.sum())  # tiles behind, counted down
    return np.stack([np.repeat(sequences, counts), last * size], 1).astype(np.int32).reshape(-1)


def _padded_tiles(batch: AttentionBatch, size: int) -> Tensor:
    """Cut prompts of a captured step into tiles, each as if it had the most tokens.

    Tiles behind a prompt's end write nothing. The device computes them: what a graph copies from
    the host must stay there.
    """
    sequences = torch.arange(len(batch.lengths), dtype=torch.int32, device=batch.lengths.device)
    first_tokens = torch.arange(
        0, batch.tokens_per_sequence, size, dtype=torch.int32, device=batch.lengths.device
    )
    return torch.cartesian_prod(sequences, first_tokens.flip(0)).flatten()


def _to_device(lists: list[NDArray[np.int32]], device: torch.device) -> list[Tensor]:
    """Copy lists to the device at once, each to an address that is a multiple of 16 bytes.

    Triton compiles a kernel anew for an address that is not, which would stall a step.
    """
    sizes = [-(-len(numbers) // 4) * 4 for numbers in lists]
    host = torch.zeros(sum(sizes), dtype=torch.int32)
    if device.type == "cuda" and len(host) > 0:
        host = host.pin_memory()  # so that the copy does not wait for the device
    for numbers, place in zip(lists, host.split(sizes), strict=True):
        place[: len(numbers)] = torch.from_numpy(numbers)
    parts = host.to(device, non_blocking=True).split(sizes)
    return [part[: len(numbers)] for part, numbers in zip(parts, lists, strict=True)]
