"""Putting an engine together: each swap point's part, a reader's own or quire's."""

from __future__ import annotations

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
from quire.kv.kv_cache_manager import PagedKVCacheManager
from quire.kv.spec import KVCacheSpec, layer_specs
from quire.kv.storage import KVStorage, require_one_request
from quire.models.config import ModelConfig
from quire.models.decoder import Decoder
from quire.models.loader import initialize_random, load_weights
from quire.runner.memory import default_num_blocks
from quire.runner.model_runner import ModelRunner
from quire.sampling.sampler import Sampler, TorchSampler
from quire.scheduler import TokenBudgetScheduler
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

    make_pool = components.block_pool or LRUBlockPool
    pools: list[BlockPool] = [make_pool(num_blocks) for _ in range(max(layer_groups) + 1)]
    manager = (components.kv_cache_manager or PagedKVCacheManager)(
        pools, config.block_size, config.enable_prefix_caching
    )
    scheduler = (components.scheduler or TokenBudgetScheduler)(config, manager)
    sampler = (components.sampler or _default_sampler(config.device))()
    runner = ModelRunner(config, model, storage, backend, sampler, layer_groups)
    return LLMEngine(config, model_config, scheduler, runner, tokenizer, trace)


def _group_layers(specs: list[KVCacheSpec]) -> list[int]:
    """Number the distinct specs in order of appearance; return each layer's number."""
    numbers: dict[KVCacheSpec, int] = {}
    return [numbers.setdefault(spec, len(numbers)) for spec in specs]


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
