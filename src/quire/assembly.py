"""Putting an engine together: its host half here, its device half behind an `Executor`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from quire.components import Components
from quire.config import EngineConfig
from quire.engine import LLMEngine
from quire.errors import QuireError
from quire.executor import Executor, InlineExecutor
from quire.kv.block_pool import BlockPool, LRUBlockPool
from quire.kv.host.manager import OffloadingKVCacheManager
from quire.kv.host.scheduler import OffloadingScheduler
from quire.kv.kv_cache_manager import KVCacheManager, PagedKVCacheManager
from quire.kv.spec import CacheLayout
from quire.kv.windowed_manager import WindowedKVCacheManager
from quire.models.config import ModelConfig
from quire.parallel.part import local_config
from quire.parallel.pipelined_scheduler import PipelinedOffloadingScheduler, PipelinedScheduler
from quire.parallel.replicas import ReplicatedEngine, replica_configs
from quire.scheduler import TokenBudgetScheduler
from quire.scheduler_interface import Scheduler
from quire.speculation.factory import find_draft_model
from quire.tokenizer import Tokenizer
from quire.trace import Trace


def build_engine(
    config: EngineConfig,
    model_config: ModelConfig,
    folder: Path | None,
    tokenizer: Tokenizer | None,
    components: Components,
    trace: Trace | None,
) -> LLMEngine | ReplicatedEngine:
    """Build an engine, or as many as there are to be replicas.

    Args:
        folder: the checkpoint; None gives random weights.

    Raises:
        QuireError: a trace of several engines.
    """
    number = config.parallel.data_parallel_size
    if number == 1:
        return _build_one(config, model_config, folder, tokenizer, components, trace)
    if trace is not None:
        raise QuireError(
            f"data_parallel_size={number} with a trace: replicas take their steps independently; "
            "trace one engine (data_parallel_size=1)"
        )
    replicas = [
        _build_one(own, model_config, folder, tokenizer, components, None)
        for own in replica_configs(config)
    ]
    return ReplicatedEngine(replicas)


def _build_one(
    config: EngineConfig,
    model_config: ModelConfig,
    folder: Path | None,
    tokenizer: Tokenizer | None,
    components: Components,
    trace: Trace | None,
) -> LLMEngine:
    """Build the device half, then the host half over as many blocks as it has."""
    draft = None
    if config.speculation is not None:
        max_model_len = config.model.max_model_len
        draft = find_draft_model(config.speculation, model_config, max_model_len)
    if config.cache.kv_window is not None:
        model_config = _with_window(model_config, config.cache.kv_window)
        if draft is not None:
            draft = replace(draft, config=_with_window(draft.config, config.cache.kv_window))
    layout = CacheLayout.of(
        local_config(
            model_config,
            config.parallel.tensor_parallel_size,
            expert_parallel=config.parallel.enable_expert_parallel,
            num_redundant_experts=config.parallel.num_redundant_experts,
        ),
        config.cache_dtype,
        None if draft is None else draft.config,
    )
    executor = _make_executor(config)(config, model_config, layout, folder, components, draft)
    make_pool = components.block_pool or LRUBlockPool
    pools: list[BlockPool] = [make_pool(executor.num_blocks) for _ in range(layout.num_groups)]
    make_manager = components.kv_cache_manager or _default_manager(config, layout)
    manager = make_manager(pools, config.cache.block_size, config.cache.enable_prefix_caching)
    scheduler = _make_scheduler(config, components, manager)
    return LLMEngine(config, model_config, scheduler, executor, tokenizer, trace)


def _make_executor(config: EngineConfig) -> Callable[..., Executor]:
    """Return who carries out the steps; each needs modules that the others do not."""
    parallel = config.parallel
    if parallel.distributed_executor_backend == "external_launcher":
        from quire.parallel.launched import LaunchedExecutor

        return LaunchedExecutor
    is_lockstep = parallel.distributed_executor_backend == "lockstep"
    if parallel.num_ranks > 1 and is_lockstep:
        from quire.parallel.lockstep_executor import LockstepExecutor

        return LockstepExecutor
    # A replica of one rank has a process of its own, so that replicas run at once.
    if not is_lockstep and (parallel.num_ranks > 1 or parallel.data_parallel_size > 1):
        from quire.parallel.process_executor import ProcessExecutor

        return ProcessExecutor
    return InlineExecutor


def _with_window(model_config: ModelConfig, window: int) -> ModelConfig:
    """Return a model whose layers see no further back than `window`."""
    windows = tuple(min(own or window, window) for own in model_config.sliding_windows)
    return replace(model_config, sliding_windows=windows)


def _default_manager(
    config: EngineConfig, layout: CacheLayout
) -> Callable[[list[BlockPool], int, bool], KVCacheManager]:
    """Return the manager for the cache's options, as a class of the swap point's signature."""
    cache = config.cache
    if cache.num_host_blocks > 0:
        return partial(OffloadingKVCacheManager, num_host_blocks=cache.num_host_blocks)
    if cache.kv_window is None:
        return PagedKVCacheManager
    return partial(
        WindowedKVCacheManager, windows=list(layout.windows.values()), sinks=cache.kv_sinks
    )


def _make_scheduler(
    config: EngineConfig, components: Components, manager: KVCacheManager
) -> Scheduler:
    """Make the scheduler; the second tier and a pipeline need quire's own."""
    num_host_blocks, num_stages = (
        config.cache.num_host_blocks,
        config.parallel.pipeline_parallel_size,
    )
    if num_stages > 1 and components.scheduler is not None:
        raise QuireError(
            f"pipeline_parallel_size={num_stages} with a scheduler of your own: only quire's tells "
            "the first stage what the last one chose; take one of the two away"
        )
    if num_host_blocks == 0:
        own = PipelinedScheduler if num_stages > 1 else TokenBudgetScheduler
        return (components.scheduler or own)(config, manager)
    if components.scheduler is not None or not isinstance(manager, OffloadingKVCacheManager):
        raise QuireError(
            f"num_host_blocks={num_host_blocks} with a scheduler or kv_cache_manager of your own: "
            "only quire's hand transfers on; take one of the two away"
        )
    offloading = PipelinedOffloadingScheduler if num_stages > 1 else OffloadingScheduler
    return offloading(config, manager)
