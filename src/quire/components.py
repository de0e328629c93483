"""`Components`: a reader's own parts in place of quire's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from quire.attention.interface import AttentionBackend
from quire.config import EngineConfig
from quire.errors import QuireError
from quire.kv.block_pool import BlockPool
from quire.kv.kv_cache_manager import KVCacheManager
from quire.layers.linear import MethodFactory
from quire.sampling.sampler import Sampler
from quire.scheduler_interface import Scheduler
from quire.speculation.config import SpeculativeConfig
from quire.speculation.proposer import Proposer


@dataclass(frozen=True)
class Components:
    """A reader's own part for each swap point; None keeps quire's.

    Each is a class or a factory, called with the arguments named here:

        llm = LLM("quire-mini", components=Components(sampler=MySampler))

    Raises:
        QuireError: a part that cannot be called with these, such as an instance.
    """

    sampler: Callable[[], Sampler] | None = None
    scheduler: Callable[[EngineConfig, KVCacheManager], Scheduler] | None = None
    block_pool: Callable[[int], BlockPool] | None = None  # blocks, the null block among them
    kv_cache_manager: Callable[[list[BlockPool], int, bool], KVCacheManager] | None = None
    attention: Callable[[], AttentionBackend] | None = None
    proposer: Callable[[SpeculativeConfig], Proposer] | None = None  # where there is a config
    quant_method: MethodFactory | None = None  # of a layer, by the names of its shards

    def __post_init__(self) -> None:
        for name, arguments in _ARGUMENTS.items():
            part = getattr(self, name)
            if part is not None and not _takes(part, len(arguments)):
                raise QuireError(
                    f"{name}={part!r}: must be a class, or a function that makes one of its kind, "
                    f"called as {name}({', '.join(arguments)}); give the class, not an instance"
                )


_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "sampler": (),
    "scheduler": ("config", "kv_cache_manager"),
    "block_pool": ("num_blocks",),
    "kv_cache_manager": ("block_pools", "block_size", "enable_prefix_caching"),
    "attention": (),
    "proposer": ("speculative_config",),
    "quant_method": ("names",),
}


def _takes(part: object, count: int) -> bool:
    """Whether a part can be called with so many arguments; what has no signature is believed."""
    if not callable(part):
        return False
    try:
        inspect.signature(part).bind(*[None] * count)
    except ValueError:
        return True
    except TypeError:
        return False
    return True
