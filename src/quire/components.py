"""`Components`: a reader's own parts in place of quire's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from quire.attention.interface import AttentionBackend
from quire.config import EngineConfig
from quire.kv.block_pool import BlockPool
from quire.kv.kv_cache_manager import KVCacheManager
from quire.sampling.sampler import Sampler
from quire.scheduler import Scheduler


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
