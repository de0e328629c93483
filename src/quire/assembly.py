"""Putting an engine together: each swap point's part, a reader's own or quire's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from quire.attention.interface import AttentionBackend
from quire.attention.torch_backend import TorchAttention
from quire.config import Components, EngineConfig
from quire.detokenizer import Tokenizer
from quire.engine import LLMEngine
from quire.errors import QuireError
from quire.kernels.runtime import runs_triton
from quire.kv.block_pool import BlockPool, LRUBlockPool
from quire.kv.kv_cache_manager import KVCacheManager, PagedKVCacheManager
from quire.kv.spec import KVCacheSpec, layer_specs
from quire.kv.storage import KVStorage, require_one_request
from quire.kv.windowed_manager import WindowedKVCacheManager
from quire.models.config import ModelConfig
from quire.models.decoder import Decoder
from quire.models.loader import initialize_random, load_weights
from quire.offload.manager import OffloadingKVCacheManager
from quire.offload.scheduler import OffloadingScheduler
from quire.offload.storage import HostBlocks
from quire.runner.memory import default_num_blocks
from quire.runner.model_runner import ModelRunner
from quire.sampling.sampler import Sampler, TorchSampler
from quire.scheduler import Scheduler, TokenBudgetScheduler
from quire.trace import Trace


def build_engine(
    config: EngineConfig,
    model_config: ModelConfig,
    folder: Path | None,
    tokenizer: Tokenizer | None,
    components: Components,
    trace: Trace | None,
    num_blocks: int | None,
    gpu_memory_utilization: float,
) -> LLMEngine:
    """Put the parts together: model and cache on the device, scheduler on the host.

    Args:
        folder: the checkpoint; None gives random weights.
        num_blocks: blocks of the cache, the null block among them; None measures what fits.
    """
    backend = (components.attention or _default_attention(config.device))()
    if config.kv_window is not None:
        model_config = _with_window(model_config, config.kv_window)
    if config.kv_sinks > 0 and not getattr(backend, "sees_sinks", False):
        raise QuireError(
            f"kv_sinks={config.kv_sinks}: {type(backend).__name__} does not look at "
            "AttentionBatch.sinks; let it do so and set sees_sinks = True"
        )
    model = Decoder(model_config, backend, config.max_model_len, config.dtype, config.device)
    if folder is None:
        initialize_random(model)
    else:
        load_weights(model, folder)

    specs = layer_specs(model_config, config.cache_dtype)
    if specs[0].has_scales and not getattr(backend, "reads_scales", False):
        raise QuireError(
            f"kv_cache_dtype={config.kv_cache_dtype!r}: {type(backend).__name__} does not read "
            "scales; let it use LayerKV.key_scale and value_scale and set reads_scales = True"
        )
    layer_groups = _group_layers(specs)
    if num_blocks is None:
        num_blocks = default_num_blocks(
            config, model, backend, specs, layer_groups, gpu_memory_utilization
        )
    require_one_request(num_blocks, config.max_blocks_per_request, config.block_size)
    storage = KVStorage(specs, layer_groups, num_blocks, config.block_size, config.device)
    if config.num_host_blocks > 0:
        storage.host = HostBlocks(storage, layer_groups, config.num_host_blocks)

    make_pool = components.block_pool or LRUBlockPool
    pools: list[BlockPool] = [make_pool(num_blocks) for _ in range(max(layer_groups) + 1)]
    make_manager = components.kv_cache_manager or _default_manager(config, specs, layer_groups)
    manager = make_manager(pools, config.block_size, config.enable_prefix_caching)
    scheduler = _make_scheduler(config, components, manager)
    sampler = (components.sampler or _default_sampler(config.device))()
    runner = ModelRunner(config, model, storage, backend, sampler, layer_groups)
    return LLMEngine(config, model_config, scheduler, runner, tokenizer, trace)


def _group_layers(specs: list[KVCacheSpec]) -> list[int]:
    """Number the distinct specs in order of appearance; return each layer's number."""
    numbers: dict[KVCacheSpec, int] = {}
    return [numbers.setdefault(spec, len(numbers)) for spec in specs]


def _with_window(model_config: ModelConfig, window: int) -> ModelConfig:
    """Return a model whose layers see no further back than `window`."""
    windows = tuple(min(own or window, window) for own in model_config.sliding_windows)
    return replace(model_config, sliding_windows=windows)


def _default_manager(
    config: EngineConfig, specs: list[KVCacheSpec], layer_groups: list[int]
) -> Callable[[list[BlockPool], int, bool], KVCacheManager]:
    """Return the manager for the cache's options, as a class of the swap point's signature."""
    if config.num_host_blocks > 0:
        return partial(OffloadingKVCacheManager, num_host_blocks=config.num_host_blocks)
    if config.kv_window is None:
        return PagedKVCacheManager
    windows = {group: spec.window for group, spec in zip(layer_groups, specs, strict=True)}
    return partial(
        WindowedKVCacheManager,
        windows=[windows[group] for group in range(len(windows))],
        sinks=config.kv_sinks,
    )


def _make_scheduler(
    config: EngineConfig, components: Components, manager: KVCacheManager
) -> Scheduler:
    """Make the scheduler; the second tier needs quire's own manager and scheduler."""
    if config.num_host_blocks == 0:
        return (components.scheduler or TokenBudgetScheduler)(config, manager)
    if components.scheduler is not None or not isinstance(manager, OffloadingKVCacheManager):
        raise QuireError(
            f"num_host_blocks={config.num_host_blocks} with a scheduler or kv_cache_manager of "
            "your own: only quire's hand transfers on; take one of the two away"
        )
    return OffloadingScheduler(config, manager)


def _default_attention(device: torch.device) -> type[AttentionBackend]:
    """Return Triton's kernels where they pay, else torch's."""
    if runs_triton(device):
        from quire.attention.triton_backend import TritonAttention  # needs Triton

        return TritonAttention
    return TorchAttention


def _default_sampler(device: torch.device) -> type[Sampler]:
    if runs_triton(device):
        from quire.sampling.triton_sampler import TritonSampler  # needs Triton

        return TritonSampler
    return TorchSampler
