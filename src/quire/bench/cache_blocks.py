"""`quire bench cache-blocks`: what the size of a block costs in time and in unused positions.

Small blocks leave less unused behind a sequence's end; large ones need fewer table entries
and let more keys of one sequence lie side by side. Unused positions are counted over the load
`mix256` of `quire bench engine`, at every token of every request; no clock is involved.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch

from quire.attention.interface import AttentionBackend
from quire.attention.torch_backend import TorchAttention
from quire.bench.engine import mix256
from quire.bench.measurement import Row
from quire.bench.timing import graph_seconds, interleaved_seconds
from quire.kernels.runtime import runs_triton
from quire.kv.batch import AttentionBatch
from quire.kv.layer import LayerKV
from quire.kv.quantized import FORMATS
from quire.kv.spec import KVCacheSpec
from quire.kv.storage import KVStorage

SIZES = (8, 16, 32, 64, 128, 256)
MAX_MODEL_LEN = 2048  # of the load


def run(device: torch.device) -> list[Row]:
    """Count the waste of each size and time a layer's decode attention with each."""
    return [*waste_rows(), *decode_rows(device)]


def waste_rows() -> list[Row]:
    """Share of the allocated positions that hold nothing, all requests and tokens together."""
    prompts, params = mix256()
    lengths = [
        length
        for prompt, own in zip(prompts, params, strict=True)
        for length in range(len(prompt), len(prompt) + own.output_limit)
    ]
    used = sum(lengths)
    reserved = 1 - used / (len(lengths) * MAX_MODEL_LEN)
    rows = []
    for size in SIZES:
        allocated = sum(-(-length // size) * size for length in lengths)
        rows.append(
            Row(
                f"waste-{size}",
                "share",
                1 - used / allocated,
                "1",
                {"reserved to the longest": reserved},
                {"block_size": size, "max_model_len": MAX_MODEL_LEN},
            )
        )
    return rows


def decode_rows(device: torch.device) -> list[Row]:
    """Seconds of one layer's decode attention, 8 KV heads of 128; blocks in shuffled order.

    On a GPU in CUDA graphs, 64 sequences of 8,192 keys, for each type of cache; on a CPU 4
    sequences of 2,048, taken in turns.
    """
    if runs_triton(device):
        batch, length, heads = 64, 8192, 32
        formats: dict[str, torch.dtype] = {"bfloat16": torch.bfloat16, **FORMATS}
        dtype = torch.bfloat16
    else:
        batch, length, heads = 4, 2048, 8
        formats, dtype = {"float32": torch.float32}, torch.float32
    seconds: dict[tuple[str, int], float] = {}
    for name, cache_dtype in formats.items():
        works: dict[str, Callable[[], object]] = {}
        for size in SIZES:
            work = _decode(batch, length, heads, size, dtype, cache_dtype, device)
            if runs_triton(device):
                seconds[name, size] = graph_seconds(work) / 4
            else:
                works[str(size)] = work
        if works:
            best = interleaved_seconds(works, device, repeats=7)
            seconds |= {(name, int(size)): time / 4 for size, time in best.items()}
    return [
        Row(
            f"decode-{name}-{size}",
            "seconds",
            time,
            "s",
            {},
            {"block_size": size, "batch": batch, "keys": length, "heads": heads},
        )
        for (name, size), time in seconds.items()
    ]


def _decode(
    batch: int,
    length: int,
    heads: int,
    size: int,
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    device: torch.device,
) -> Callable[[], None]:
    """Return a function that attends four times over blocks in shuffled order."""
    per_sequence = length // size
    num_blocks = batch * per_sequence + 1
    spec = KVCacheSpec(8, 128, cache_dtype)
    (kv,) = KVStorage([spec], [0], num_blocks, size, device).layers
    _fill(kv, num_blocks * size, dtype, device)
    ids = random.Random(0).sample(range(1, num_blocks), batch * per_sequence)
    tables = [ids[i * per_sequence : (i + 1) * per_sequence] for i in range(batch)]
    step = AttentionBatch.of(list(range(batch + 1)), [length] * batch, tables, size, device)
    backend: AttentionBackend = TorchAttention()
    if runs_triton(device):
        from quire.attention.triton_backend import TritonAttention

        backend = TritonAttention()
        fields = {**vars(step), "host": None}  # as in a captured step
        step = AttentionBatch(**fields)
    metadata = backend.build(step, None)
    query = torch.randn(batch, heads, 128, dtype=dtype, device=device)

    def attend() -> None:
        for _ in range(4):
            backend.forward(query, kv, metadata, 128**-0.5)

    return attend


def _fill(kv: LayerKV, num_slots: int, dtype: torch.dtype, device: torch.device) -> None:
    """Write random keys and values, a part at a time."""
    for begin in range(0, num_slots, 1 << 14):
        slots = torch.arange(begin, min(begin + (1 << 14), num_slots), device=device)
        key, value = torch.randn(2, len(slots), 8, 128, dtype=dtype, device=device)
        kv.write(slots, key, value)
