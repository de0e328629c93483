"""Attention kernels against torch's own: TB/s of keys and values read, and TFLOP/s.

Every kernel runs in a CUDA graph over several sets of blocks, so that neither the host nor
the last-level cache is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from quire.attention.triton_backend import TritonAttention
from quire.bench.measurement import Row
from quire.bench.timing import graph_seconds
from quire.kernels.runtime import capability
from quire.kernels.tuning import tuning
from quire.kv.batch import AttentionBatch, HostBatch
from quire.kv.layer import LayerKV

HEAD_SIZE = 128
NUM_KV_HEADS = 8
PAGE = 16
BYTES_PER_KEY = 2 * NUM_KV_HEADS * HEAD_SIZE * 2  # its value too; bfloat16
DTYPE = torch.bfloat16


@dataclass(frozen=True)
class DecodeCase:
    """One new token for each of `batch` sequences of `length` keys."""

    name: str
    num_heads: int
    batch: int
    length: int


DECODE_CASES = (
    DecodeCase("decode-64x8k", 32, 64, 8192),
    DecodeCase("decode-8x8k", 32, 8, 8192),
    DecodeCase("decode-1x32k", 32, 1, 32768),
    DecodeCase("decode-128x1k", 32, 128, 1024),
    DecodeCase("decode-256x900", 16, 256, 900),
)


def run(backend: Callable[[], TritonAttention] = TritonAttention) -> list[Row]:
    """Measure every case on the GPU."""
    cache = decode_cache()
    rows = [decode_row(case, cache, backend()) for case in DECODE_CASES]
    del cache
    everywhere = TritonAttention(tuning(torch.device("cuda"), HEAD_SIZE, DTYPE.itemsize))
    rows += prefill_rows(everywhere)
    if capability(torch.device("cuda"))[0] == 9:
        rows += prefill_rows(backend(), "-hopper")
    return rows


def decode_cache() -> LayerKV:
    """Return blocks for the largest case, which is many times the last-level cache."""
    num_keys = max(case.batch * case.length for case in DECODE_CASES)
    shape = (num_keys // PAGE + 1, PAGE, NUM_KV_HEADS, HEAD_SIZE)
    key, value = (torch.randn(shape, dtype=DTYPE, device="cuda") for _ in range(2))
    return LayerKV(key.transpose(1, 2), value.transpose(1, 2))


def decode_seconds(case: DecodeCase, cache: LayerKV, backend: TritonAttention) -> float:
    """Return the time of one launch, over as many sets of blocks as the cache has."""
    query = torch.randn(case.batch, case.num_heads, HEAD_SIZE, dtype=DTYPE, device="cuda")
    batches = [captured_batch(case, blocks) for blocks in _block_sets(case, cache)]
    metadata = [backend.build(batch, None) for batch in batches]

    def work() -> None:
        for step in metadata:
            backend.forward(query, cache, step, HEAD_SIZE**-0.5)

    return graph_seconds(work) / len(metadata)


def decode_row(case: DecodeCase, cache: LayerKV, backend: TritonAttention) -> Row:
    """Measure one case beside torch on contiguous keys, and beside a copy of as many bytes."""
    num_bytes = case.batch * case.length * BYTES_PER_KEY
    seconds = decode_seconds(case, cache, backend)
    baselines = {f"torch SDPA, {name}": time for name, time in _sdpa_decode(case, cache).items()}
    baselines["gather, SDPA flash"] = _gather_seconds(case, cache)
    baselines["copy"] = _copy_seconds(num_bytes, cache)
    return Row(
        case.name,
        "TBps",
        num_bytes / seconds / 1e12,
        "TB/s",
        {name: num_bytes / time / 1e12 for name, time in baselines.items()},
        {"batch": case.batch, "length": case.length, "num_heads": case.num_heads,
         "microseconds": seconds * 1e6},
    )  # fmt: skip


def captured_batch(case: DecodeCase, blocks: Tensor) -> AttentionBatch:
    """Return the batch as a captured step sees it; `blocks` is int32 [batch, blocks each]."""
    ends = torch.arange(case.batch + 1, dtype=torch.int32, device="cuda")
    return AttentionBatch(
        query_starts=ends,
        lengths=torch.full((case.batch,), case.length, dtype=torch.int32, device="cuda"),
        rows=ends[:-1],
        block_table=blocks,
        positions=torch.full((case.batch,), case.length - 1, device="cuda"),
        slots=torch.zeros(case.batch, dtype=torch.int64, device="cuda"),
        block_size=PAGE,
        max_length=case.length,
        host=None,
    )


def prefill_rows(
    backend: TritonAttention, suffix: str = "", batch: int = 4, length: int = 4096
) -> list[Row]:
    """Measure `batch` prompts of `length` tokens, fresh and read back from their blocks.

    `suffix` ends the cases' names: none for the kernel that serves every GPU, whose settings
    the backend was given.
    """
    heads, num_tokens, num_blocks = 32, batch * length, length // PAGE
    steps, dense = [], []
    table = torch.randperm(batch * num_blocks, device="cuda").int().view(batch, num_blocks) + 1
    shape = (batch * num_blocks + 1, PAGE, NUM_KV_HEADS, HEAD_SIZE)
    for _ in range(3):  # a set has 200 MB
        query, key, value = (
            torch.randn(num_tokens, n, HEAD_SIZE, dtype=DTYPE, device="cuda")
            for n in (heads, NUM_KV_HEADS, NUM_KV_HEADS)
        )
        blocks = [torch.randn(shape, dtype=DTYPE, device="cuda").transpose(1, 2) for _ in range(2)]
        steps.append((query, LayerKV(*blocks), (key, value)))
        dense.append([x.unflatten(0, (batch, length)).transpose(1, 2) for x in (query, key, value)])
    starts = list(range(0, num_tokens + 1, length))
    host = HostBatch(starts, [length] * batch, list(range(batch)), table.cpu().numpy())
    step = AttentionBatch(
        query_starts=torch.tensor(starts, dtype=torch.int32, device="cuda"),
        lengths=torch.full((batch,), length, dtype=torch.int32, device="cuda"),
        rows=torch.arange(batch, dtype=torch.int32, device="cuda"),
        block_table=table,
        positions=torch.arange(length, device="cuda").repeat(batch),
        slots=torch.zeros(num_tokens, dtype=torch.int64, device="cuda"),
        block_size=PAGE,
        max_length=length,
        host=host,
    )
    scale, metadata = HEAD_SIZE**-0.5, backend.build(step, None)

    def fresh() -> None:
        for query, kv, new in steps:
            backend.forward(query, kv, metadata, scale, new)

    def paged() -> None:
        for query, kv, _ in steps:
            backend.forward(query, kv, metadata, scale)

    flops = batch * length**2 / 2 * heads * HEAD_SIZE * 4
    baselines = {}
    for name, kernel in (
        ("cuDNN", SDPBackend.CUDNN_ATTENTION),
        ("flash", SDPBackend.FLASH_ATTENTION),
    ):
        seconds = _sdpa_seconds(dense, kernel, causal=True)
        baselines[f"torch SDPA, {name}"] = flops / seconds / 1e12
    parameters = {"batch": float(batch), "length": float(length), "num_heads": float(heads)}
    return [
        Row(case, "TFLOPs", flops * len(steps) / graph_seconds(work) / 1e12, "TFLOP/s",
            baselines, parameters)
        for case, work in ((f"prefill-4x4k{suffix}", fresh), (f"prefill-4x4k{suffix}-paged", paged))
    ]  # fmt: skip


def _block_sets(case: DecodeCase, cache: LayerKV) -> list[Tensor]:
    """Deal out shuffled blocks: at most eight sets of block tables that share no block."""
    each = math.ceil(case.length / PAGE)
    ids = torch.randperm(cache.key.shape[0] - 1, device="cuda").int() + 1
    num_sets = min(len(ids) // (case.batch * each), 8)
    dealt = ids[: num_sets * case.batch * each].view(num_sets, case.batch, each)
    return list(dealt)


def _sdpa_decode(case: DecodeCase, cache: LayerKV) -> dict[str, float]:
    """Time torch on contiguous keys, the heads of a group in the place of query positions."""
    each = case.batch * case.length
    key, value = (
        x.transpose(1, 2).flatten(0, 1)[PAGE : PAGE + 8 * each] for x in (cache.key, cache.value)
    )
    shape = (case.batch, case.length, NUM_KV_HEADS, HEAD_SIZE)
    query = torch.randn(
        case.batch, NUM_KV_HEADS, case.num_heads // NUM_KV_HEADS, HEAD_SIZE, dtype=DTYPE,
        device="cuda",
    )  # fmt: skip
    dense = [
        [query, *(x[i : i + each].view(shape).transpose(1, 2) for x in (key, value))]
        for i in range(0, len(key) - each + 1, each)
    ]
    return {
        "flash": _sdpa_seconds(dense, SDPBackend.FLASH_ATTENTION, causal=False),
        "cuDNN": _sdpa_seconds(dense, SDPBackend.CUDNN_ATTENTION, causal=False),
    }


def _gather_seconds(case: DecodeCase, cache: LayerKV) -> float:
    """Time the reference answer: copy the blocks side by side, then let torch attend."""
    sets = _block_sets(case, cache)
    group = case.num_heads // NUM_KV_HEADS
    query = torch.randn(case.batch, NUM_KV_HEADS, group, HEAD_SIZE, dtype=DTYPE, device="cuda")
    by_block = [x.transpose(1, 2) for x in (cache.key, cache.value)]  # [blocks, PAGE, KV, head]

    def work() -> None:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            for blocks in sets:
                key, value = (
                    x.index_select(0, blocks.flatten())
                    .view(case.batch, -1, NUM_KV_HEADS, HEAD_SIZE)[:, : case.length]
                    .transpose(1, 2)
                    for x in by_block
                )
                F.scaled_dot_product_attention(query, key, value)

    return graph_seconds(work) / len(sets)


def _sdpa_seconds(dense: Sequence[list[Tensor]], kernel: SDPBackend, *, causal: bool) -> float:
    """Time `scaled_dot_product_attention` over sets of query, key, value."""

    def work() -> None:
        with sdpa_kernel(kernel):
            for query, key, value in dense:
                F.scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=True)

    return graph_seconds(work) / len(dense)


def _copy_seconds(num_bytes: int, cache: LayerKV) -> float:
    """Time a copy that reads half of `num_bytes` and writes the other half.

    In pieces of at most 256 MB: one copy of 1 GB in a graph ran at two thirds of their rate.
    """
    source, target = (x.transpose(1, 2).flatten() for x in (cache.key, cache.value))
    size = num_bytes // 4  # elements of bfloat16
    num_copies = min(len(source) // size, 8)
    piece = min(size, 2**27)

    def work() -> None:
        for place in range(0, num_copies * size, piece):
            target[place : place + piece].copy_(source[place : place + piece])

    return graph_seconds(work) / num_copies
