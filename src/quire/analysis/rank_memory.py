"""What fits: a rank's weights, its workspace, and the blocks of cache in what is left.

The arithmetic of `quire.runner.memory`, which measures a trial step on the device, with sizes in
the place of measurements. Explained in the chapter "Parallelism".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quire.analysis.hardware import Hardware
from quire.analysis.memory import activation_bytes, logit_bytes
from quire.analysis.shares import Share
from quire.errors import QuireError

BLOCK_SIZE = 16  # tokens; the engine's default
GRAPH_BYTES = 1 << 30  # `quire.runner.memory.GRAPH_BYTES`: for captured graphs and fragments
CONTEXT_BYTES = 0.6e9  # of CUDA itself: assumed, not measured
COMMUNICATOR_BYTES = 0.4e9  # of NCCL, where there are ranks: assumed, not measured


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one device, of the share of it that the engine may use."""

    weights: float
    activations: float  # of a step of the largest size, at its peak
    logits: float  # of the largest number of requests: 16 bits, then float32
    reserved: float  # graphs, CUDA, communicators
    block: float  # of BLOCK_SIZE tokens
    budget: float  # that may be used

    @property
    def fixed(self) -> float:
        """All but the cache."""
        return self.weights + self.activations + self.logits + self.reserved

    @property
    def num_blocks(self) -> int:
        """Blocks that have room, the null block included; 0: not even the rest fits."""
        return max(0, int((self.budget - self.fixed) // self.block))


def rank_memory(
    share: Share,
    hardware: Hardware,
    *,
    kv_dtype: str = "bf16",
    max_num_seqs: int = 256,
    max_num_batched_tokens: int = 16384,
    utilization: float = 0.9,
) -> RankMemory:
    """Return what a rank's device holds.

    Args:
        share: of the rank.
        hardware: its memory counts as the vendor's "GB", 10⁹ bytes; an H200 reports 6 % more.
        kv_dtype: of the cache.
        max_num_seqs: requests that run at once.
        max_num_batched_tokens: of the largest step.
        utilization: share of the memory that the engine may use.
    """
    ranks = share.layout.tensor * share.layout.pipeline
    logits = 0.0
    if share.is_last:  # gathered whole on each rank; 16 bits stand beside 32
        logits = 1.5 * logit_bytes(share.model, max_num_seqs)
    return RankMemory(
        weights=share.weight_bytes,
        activations=activation_bytes(share.local, max_num_batched_tokens, "bf16"),
        logits=logits,
        reserved=GRAPH_BYTES + CONTEXT_BYTES + (COMMUNICATOR_BYTES if ranks > 1 else 0.0),
        block=BLOCK_SIZE * share.kv_bytes_per_token(kv_dtype),
        budget=utilization * hardware.memory_bytes,
    )


def blocks_that_fit(memories: Sequence[RankMemory], longest: int) -> int:
    """Return the blocks that every stage has room for, the null block among them.

    Args:
        memories: of a rank of each stage.
        longest: tokens of the longest sequence, which must fit alone.

    Raises:
        QuireError: they do not hold one such sequence.
    """
    fullest = min(memories, key=lambda memory: memory.num_blocks)
    needed = -(-longest // BLOCK_SIZE) + 1
    if fullest.num_blocks < needed:
        rest = fullest.fixed - fullest.weights
        raise QuireError(
            f"a rank has {fullest.budget / 1e9:.1f} GB to use, its weights take "
            f"{fullest.weights / 1e9:.1f} and the rest {rest / 1e9:.1f}: that leaves "
            f"{fullest.num_blocks} blocks, and a sequence of {longest} tokens needs {needed}; "
            "share the model among more ranks, or quantize it"
        )
    return fullest.num_blocks
