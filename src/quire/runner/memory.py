"""How many blocks the cache gets: what a GPU has left once weights and activations are in."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from quire.attention.interface import AttentionBackend
from quire.config import EngineConfig
from quire.errors import QuireError
from quire.kv.batch import AttentionBatch
from quire.kv.spec import CacheLayout
from quire.kv.storage import KVStorage, bytes_per_block
from quire.layers.attention import StepMetadata
from quire.models.decoder import Decoder
from quire.sampling.params import MAX_LOGPROBS
from quire.sampling.scoring import score_tokens
from quire.sampling.trial import sample_with_everything

GRAPH_BYTES = 1 << 30  # set aside for captured graphs and what fragments
CPU_BYTES = 4 << 30  # a cache on a CPU asks for no more unless told to


def default_num_blocks(
    config: EngineConfig,
    model: Decoder,
    backend: AttentionBackend,
    layout: CacheLayout,
) -> int:
    """Return the number of blocks, the null block included.

    On a CPU: enough for every row at full length, within 4 GiB. On a GPU: what is left of
    `gpu_memory_utilization` of its memory after a trial step of the largest size.

    Raises:
        QuireError: nothing is left, or not even the trial step fits.
    """
    block = bytes_per_block(layout.specs, config.cache.block_size)
    if config.model.device.type != "cuda":
        enough = config.scheduling.max_num_seqs * config.max_blocks_per_request + 1
        return max(min(enough, CPU_BYTES // block), config.max_blocks_per_request + 1)
    try:
        peak = _trial_step(config, model, backend, layout)
    except torch.OutOfMemoryError as error:
        raise QuireError(
            f"a step of max_num_batched_tokens={config.scheduling.max_num_batched_tokens} does not "
            f"fit beside the weights on {config.model.device}: lower max_num_batched_tokens, or "
            "choose a smaller model"
        ) from error
    free, total = torch.cuda.mem_get_info(config.model.device)
    utilization = config.cache.gpu_memory_utilization
    reserved = torch.cuda.memory_reserved(config.model.device)
    others = total - free - reserved  # other processes, and CUDA's own
    budget = int(total * utilization) - others - peak - GRAPH_BYTES
    if config.speculation is not None and config.speculation.needs_probabilities:
        budget -= 4 * math.prod(probabilities_shape(config, model.config.vocab_size))
    if budget < 2 * block:
        raise QuireError(
            f"no memory is left for the KV cache: the GPU has {total / 1e9:.1f} GB, weights and "
            f"a step of {config.scheduling.max_num_batched_tokens} tokens take "
            f"{peak / 1e9:.1f} GB; raise gpu_memory_utilization={utilization}, lower "
            "max_num_batched_tokens, or choose a smaller model"
        )
    return budget // block


def bytes_a_step(config: EngineConfig, num_groups: int) -> int:
    """Return bytes enough for what a step sends to the device, alignment included."""
    a_token = 8 * (3 + num_groups)  # row, position, whether it is chosen from, slots
    a_sequence = 8 * (3 + num_groups)  # end, length, row, new blocks
    a_block = 8 * 3 * num_groups  # row, column, block
    most_blocks = config.scheduling.max_num_seqs * config.max_blocks_per_request
    return (
        a_token * config.scheduling.max_num_batched_tokens
        + a_sequence * (config.scheduling.max_num_seqs + 1)
        + a_block * most_blocks
        + 1024
    )


def probabilities_shape(config: EngineConfig, vocab_size: int) -> tuple[int, int, int]:
    """Return the shape of what all rows' guesses were drawn from, [rows, k, V]."""
    assert config.speculation is not None
    num_rows = config.scheduling.max_num_seqs + 1
    return num_rows, config.speculation.most_guesses, vocab_size


@torch.inference_mode()
def _trial_step(
    config: EngineConfig,
    model: Decoder,
    backend: AttentionBackend,
    layout: CacheLayout,
) -> int:
    """Return the bytes allocated at the peak of a step that fills the token budget."""
    device = config.model.device
    storage = KVStorage(layout.specs, layout.groups, 2, config.cache.block_size, device)
    torch.cuda.reset_peak_memory_stats(device)
    num_tokens, block_size = config.scheduling.max_num_batched_tokens, config.cache.block_size
    longest = min(config.model.max_model_len, num_tokens)
    num_sequences = min(-(-num_tokens // longest), config.scheduling.max_num_seqs)
    starts = [min(i * longest, num_tokens) for i in range(num_sequences + 1)]
    lengths = [end - start for start, end in pairwise(starts)]
    # Every block is the null block: what is written there nobody reads.
    blocks = [0] * config.max_blocks_per_request
    batch = AttentionBatch.of(starts, lengths, [blocks] * len(lengths), block_size, device)
    attention = [backend.build(batch, spec.window) for spec in layout.specs]
    step = StepMetadata(batch.positions, attention, [batch.slots] * len(layout.specs))
    tokens = torch.zeros(starts[-1], dtype=torch.int64, device=device)
    hidden = model(tokens, storage, step)
    if model.place.is_last:
        _try_sampling(config, model, hidden, tokens)
    del hidden, step, storage
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.empty_cache()
    return peak


def _try_sampling(config: EngineConfig, model: Decoder, hidden: Tensor, tokens: Tensor) -> None:
    """Choose as many tokens as a step may, with everything that may be asked for."""
    num_rows = config.scheduling.max_num_seqs
    if config.speculation is not None:  # a row for each guess, and one behind them
        num_rows *= 1 + config.speculation.most_guesses
    logits = model.compute_logits(hidden[:num_rows]).float()
    sample_with_everything(logits, config.model.max_model_len)
    del logits
    # Prompt log-probabilities of the whole step, as many as may be asked for.
    vocab_size = model.config.vocab_size
    score_tokens(model.compute_logits, hidden, tokens, MAX_LOGPROBS, vocab_size)
