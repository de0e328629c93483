"""`DeviceParts`: what a step needs on the device, whichever way it is run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quire.attention.interface import AttentionBackend
from quire.config import EngineConfig
from quire.kv.batch import AttentionBatch, HostSequences
from quire.kv.spec import CacheLayout
from quire.kv.storage import KVStorage
from quire.layers.attention import StepMetadata
from quire.models.decoder import Decoder
from quire.runner.input_batch import InputBatch
from quire.runner.staging import Staging, Unstaged
from quire.sampling.sampler import Sampler, SamplerOutput


@dataclass(frozen=True)
class DeviceParts:
    """Model, cache, rows and buffers of one engine."""

    config: EngineConfig
    model: Decoder
    storage: KVStorage
    backend: AttentionBackend
    sampler: Sampler
    layout: CacheLayout
    batch: InputBatch
    staging: Staging | Unstaged

    def step_metadata(
        self,
        query_starts: Tensor,
        lengths: Tensor,
        rows: Tensor,
        positions: Tensor,
        slots: list[Tensor],
        host: HostSequences | None,
        tokens_per_sequence: int = 1,
        are_prompts: bool = False,
    ) -> StepMetadata:
        """Describe a step to every layer, each by the block tables of its KV group.

        The arguments are those of `AttentionBatch`, with the slots of each group; a captured
        step has no `host`.
        """
        batches = AttentionBatch.of_groups(
            query_starts=query_starts,
            lengths=lengths,
            rows=rows,
            positions=positions,
            slots=slots,
            block_tables=self.batch.block_tables,
            block_size=self.config.cache.block_size,
            max_length=self.config.model.max_model_len,
            sinks=self.config.cache.kv_sinks,
            tokens_per_sequence=tokens_per_sequence,
            are_prompts=are_prompts,
            host=host,
            host_tables=self.batch.host_tables,
        )
        attention = {
            group: self.backend.build(batches[group], window)
            for group, window in self.layout.windows.items()
        }
        return StepMetadata(
            positions=positions,
            attention=[attention[group] for group in self.layout.groups],
            slots=[slots[group] for group in self.layout.groups],
        )


class Answers:
    """Sampled tokens on their way to the host, without making it wait."""

    def __init__(
        self, max_num_seqs: int, most_tokens: int, num_buffers: int, device: torch.device
    ) -> None:
        """Keep as many pinned buffers as steps may be queued.

        Args:
            most_tokens: that a step may choose for one request.
        """
        self._on_host = device.type == "cpu"
        size = max_num_seqs * (most_tokens + 1)  # and how many of them were accepted
        self._buffers = [
            torch.empty(size, dtype=torch.int64, pin_memory=not self._on_host)
            for _ in range(0 if self._on_host else num_buffers)
        ]
        self._turn = 0

    def fetch(self, sampled: SamplerOutput) -> tuple[SamplerOutput, torch.cuda.Event | None]:
        """Queue the copy of a step's tokens; return where they will be, and when.

        Log-probabilities are fetched when they are read, which waits for them.
        """
        if self._on_host:
            return sampled, None
        sent = sampled.tokens
        if sampled.num_accepted is not None:
            sent = torch.cat([sent, sampled.num_accepted[:, None]], dim=1)
        self._turn = (self._turn + 1) % len(self._buffers)
        fetched = self._buffers[self._turn][: sent.numel()].view(sent.shape)
        fetched.copy_(sent, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        if sampled.num_accepted is None:
            return SamplerOutput(fetched, None, sampled.logprobs), done
        return SamplerOutput(fetched[:, :-1], fetched[:, -1], sampled.logprobs), done
