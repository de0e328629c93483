"""`EngineConfig` and `Components`: everything an engine is told when it is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from quire.errors import QuireError
from quire.kernels.runtime import capability, runs_triton
from quire.kv.quantized import FORMATS
from quire.sampling.params import is_int

if TYPE_CHECKING:  # the swap points' protocols, which themselves read EngineConfig
    from quire.attention.interface import AttentionBackend
    from quire.kv.block_pool import BlockPool
    from quire.kv.kv_cache_manager import KVCacheManager
    from quire.sampling.sampler import Sampler
    from quire.scheduler import Scheduler


@dataclass(frozen=True)
class EngineConfig:
    """Sizes of one engine.

    Args:
        max_model_len: longest sequence, prompt and output together, in tokens.
        max_num_seqs: requests that run at once.
        max_num_batched_tokens: token budget of one step; a longer prompt is computed in
            chunks over several steps.
        device: where the model runs.
        dtype: type of weights and activations.
        block_size: positions in a block of the KV cache.
        enable_prefix_caching: keep the blocks of ended requests and reuse those that begin
            a new one.
        kv_cache_dtype: "int8" or "fp8" keeps codes of eight bits and a scale a token and head
            (`quire.kv.quantized`); None keeps keys and values in `dtype`.
        kv_window: a query sees the last `kv_window` positions, its own among them, and blocks
            that no query sees any more are released; None: all positions.
        kv_sinks: beside its window a query sees the first `kv_sinks` positions.
        num_host_blocks: blocks of a second tier in host memory, for each KV group; cached
            blocks go there when the first is full (`quire.offload`).
        policy: who runs first and who is preempted, a name of `quire.policy.POLICIES`.
        watermark: share of the blocks that admitting a request leaves free, so that those
            that run can grow before anyone is preempted.
        overlap: schedule a step while the one before it still runs.
        cuda_graphs: replay captured graphs for steps of one token a request.
    """

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    device: torch.device
    dtype: torch.dtype
    block_size: int = 16
    enable_prefix_caching: bool = True
    kv_cache_dtype: str | None = None
    kv_window: int | None = None
    kv_sinks: int = 0
    num_host_blocks: int = 0
    policy: str = "fcfs"
    watermark: float = 0.01
    overlap: bool = False
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens"):
            value = getattr(self, name)
            if not is_int(value) or value < 1:
                raise QuireError(f"{name}={value!r}: must be an integer of at least 1")
        size = self.block_size
        if not is_int(size) or size < 8 or size & (size - 1):
            raise QuireError(f"block_size={size!r}: must be a power of two of at least 8")
        if self.kv_window is not None and (not is_int(self.kv_window) or self.kv_window < 1):
            raise QuireError(f"kv_window={self.kv_window!r}: must be an integer of at least 1")
        if not is_int(self.kv_sinks) or self.kv_sinks < 0:
            raise QuireError(f"kv_sinks={self.kv_sinks!r}: must be an integer of at least 0")
        if self.kv_sinks > 0 and self.kv_window is None:
            raise QuireError(
                f"kv_sinks={self.kv_sinks} without kv_window: without a window every position is "
                "seen anyway"
            )
        if not is_int(self.num_host_blocks) or self.num_host_blocks < 0:
            raise QuireError(
                f"num_host_blocks={self.num_host_blocks!r}: must be an integer of at least 0"
            )
        if self.num_host_blocks > 0 and not self.enable_prefix_caching:
            raise QuireError(
                f"num_host_blocks={self.num_host_blocks} with enable_prefix_caching=False: blocks "
                "are found in host memory by their prefix"
            )
        if self.num_host_blocks > 0 and self.kv_window is not None:
            raise QuireError(
                f"num_host_blocks={self.num_host_blocks} with kv_window={self.kv_window}: what "
                "lies behind the window is dropped, not offloaded; choose one of them"
            )
        if self.kv_cache_dtype not in (None, *FORMATS):
            raise QuireError(
                f"kv_cache_dtype={self.kv_cache_dtype!r}: must be one of {', '.join(FORMATS)}, or "
                "None for the model's own dtype"
            )
        if self.kv_cache_dtype == "fp8" and runs_triton(self.device):
            capability = torch.cuda.get_device_capability(self.device)
            if capability < (8, 9):
                raise QuireError(
                    f"kv_cache_dtype='fp8': E4M3 needs a GPU of compute capability 8.9 and up, and "
                    f"this one has {capability[0]}.{capability[1]}: use 'int8'"
                )
        if not 0 <= self.watermark < 1:
            raise QuireError(f"watermark={self.watermark!r}: must lie in [0, 1)")

    @property
    def max_in_flight(self) -> int:
        """Steps that may be queued on the device at once."""
        return 2 if self.overlap else 1

    @property
    def cache_dtype(self) -> torch.dtype:
        """Type of the cache's keys and values, or of their codes."""
        return self.dtype if self.kv_cache_dtype is None else FORMATS[self.kv_cache_dtype]

    @property
    def max_blocks_per_request(self) -> int:
        """Blocks of the longest sequence."""
        return -(-self.max_model_len // self.block_size)


@dataclass(frozen=True)
class Components:
    """A reader's own part for each swap point; None keeps quire's.

    Each is a class or a factory, called with the arguments named here:

        llm = LLM("quire-mini", components=Components(sampler=MySampler))
    """

    sampler: Callable[[], Sampler] | None = None
    scheduler: Callable[[EngineConfig, KVCacheManager], Scheduler] | None = None
    block_pool: Callable[[int], BlockPool] | None = None  # blocks, the null block among them
    kv_cache_manager: Callable[[list[BlockPool], int, bool], KVCacheManager] | None = None
    attention: Callable[[], AttentionBackend] | None = None


def default_device(device: str | torch.device | None = None) -> torch.device:
    """Return the device asked for, or the GPU if there is one.

    Raises:
        QuireError: torch knows no such device, or sees none of that number.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        raise QuireError(f"device={device!r}: must be 'cpu', 'cuda' or 'cuda:<number>'") from None
    count = torch.cuda.device_count()
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        raise QuireError(
            f"device={str(device)!r}: torch sees {count or 'no'} CUDA devices; use device='cpu'"
        )
    return chosen


def default_dtype(device: torch.device, dtype: str | torch.dtype | None = None) -> torch.dtype:
    """Return the dtype asked for, or what suits the device.

    float32 on a CPU; on a GPU bfloat16 from compute capability 8.0 on and float16 below.
    The capability decides, since torch reports emulated bfloat16 as supported on a T4.

    Raises:
        QuireError: a name that is no floating-point dtype quire runs.
    """
    if dtype is None:
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if capability(device) >= (8, 0) else torch.float16
    by_name = {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
    }
    chosen = by_name.get(dtype) if isinstance(dtype, str) else dtype
    if chosen not in by_name.values():
        raise QuireError(f"dtype={dtype!r}: must be one of {', '.join(by_name)}")
    assert chosen is not None
    return chosen
