"""Steps for the tests of attention, with float64 as the oracle.

Run as a script under TRITON_INTERPRET=1 it attends to each of `TINY` and prints the errors:
Triton decides at its import whether kernels are interpreted, hence a process of its own.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from quire.kv.batch import AttentionBatch, HostBatch
from quire.kv.layer import LayerKV
from quire.kv.quantized import dequantize, quantize

NAN = float("nan")


@dataclass
class Step:
    """One step's inputs, and what its sequences hold."""

    batch: AttentionBatch
    kv: LayerKV
    query: Tensor  # [num_tokens, num_heads, head_size]
    fresh: tuple[Tensor, Tensor]  # the step's own keys and values
    window: int | None

    @property
    def scale(self) -> float:
        return self.query.shape[2] ** -0.5

    def captured(self) -> AttentionBatch:
        """The batch as a CUDA graph sees it."""
        count = len(self.query) // len(self.batch.lengths)
        fields = {**vars(self.batch), "host": None, "tokens_per_sequence": count}
        return AttentionBatch(**fields)

    def captured_prompts(self, num_tokens: int) -> Step:
        """The same chunks in a graph of `num_tokens` tokens: what is padding holds NaN."""
        padding = num_tokens - len(self.query), *self.query.shape[1:]
        query = torch.cat([self.query, self.query.new_full(padding, NAN)])
        fields = {"host": None, "tokens_per_sequence": num_tokens, "are_prompts": True}
        return replace(self, batch=replace(self.batch, **fields), query=query)

    @property
    def uniform(self) -> bool:
        """Whether each sequence has as many new tokens."""
        return len(set(self.batch.query_starts.diff().tolist())) == 1


def make_step(
    new: list[int],
    lengths: list[int],
    heads: tuple[int, int],
    head_size: int,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    window: int | None = None,
    heads_first: bool = False,
    first_block: int = 1,
    kv_dtype: torch.dtype | None = None,
    sinks: int = 0,
) -> Step:
    """Draw a step whose sequences lie in shuffled blocks between blocks of NaN.

    What lies behind a sequence's end in its last block is NaN too, and behind its blocks
    the block table names blocks that hold NaN. The null block holds NaN. With a `kv_dtype` the
    cache holds codes, and its NaN lie in the scales.
    """
    generator = torch.Generator(device).manual_seed(len(new) + sum(lengths))
    num_heads, num_kv_heads = heads
    used = [-(-length // block_size) for length in lengths]
    num_blocks = first_block + sum(used) + 2
    ids = np.array(random.Random(0).sample(range(first_block, num_blocks - 1), sum(used)))
    table = np.full((len(new) + 3, max(used) + 2), num_blocks - 1, dtype=np.int32)
    rows = list(range(len(new) + 1, 1, -1))  # not in the batch's order
    for row, blocks in zip(rows, np.split(ids, np.cumsum(used)[:-1]), strict=True):
        table[row, : len(blocks)] = blocks
    shape = (num_blocks, block_size, num_kv_heads, head_size)
    if heads_first:
        shape = (num_blocks, num_kv_heads, block_size, head_size)
    key, value = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
    if not heads_first:
        key, value = key.transpose(1, 2), value.transpose(1, 2)
    for x in (key, value):
        x[0] = x[first_block:] = NAN
    slots, positions, fresh = [], [], []
    for row, length, count in zip(rows, lengths, new, strict=True):
        place = np.arange(length)
        block, offset = (
            torch.from_numpy(numbers.astype(np.int64)).to(device)
            for numbers in (table[row][place // block_size], place % block_size)
        )
        contents = [
            torch.randn(length, num_kv_heads, head_size, generator=generator, device=device).to(
                dtype
            )
            for _ in range(2)
        ]
        key[block, :, offset], value[block, :, offset] = contents
        fresh.append([content[length - count :] for content in contents])
        slots.append((block * block_size + offset)[length - count :])
        positions.append(torch.arange(length - count, length, device=device))
    starts = [0, *np.cumsum(new).tolist()]
    query = torch.randn(starts[-1], num_heads, head_size, generator=generator, device=device)

    def int32(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    batch = AttentionBatch(
        query_starts=int32(starts),
        lengths=int32(lengths),
        rows=int32(rows),
        block_table=torch.from_numpy(table).to(device),
        positions=torch.cat(positions),
        slots=torch.cat(slots),
        block_size=block_size,
        max_length=table.shape[1] * block_size,
        host=HostBatch(starts, lengths, rows, table),
        sinks=sinks,
    )
    keys, values = (torch.cat(list(parts)) for parts in zip(*fresh, strict=True))
    kv = LayerKV(key, value) if kv_dtype is None else as_codes(key, value, kv_dtype)
    return Step(batch, kv, query.to(dtype), (keys, values), window)


def as_codes(key: Tensor, value: Tensor, kv_dtype: torch.dtype) -> LayerKV:
    """Quantise whole blocks, in their layout."""
    (key, key_scale), (value, value_scale) = (quantize(x, kv_dtype) for x in (key, value))
    return LayerKV(key, value, key_scale.contiguous(), value_scale.contiguous())


def oracle(step: Step) -> Tensor:
    """Attention in float64, sequence by sequence, as it is defined."""
    host, kv = step.batch.host, step.kv
    assert host is not None
    output = torch.zeros_like(step.query, dtype=torch.float64)
    group = step.query.shape[1] // kv.key.shape[1]
    for i, (row, length) in enumerate(zip(host.rows, host.lengths, strict=True)):
        begin, end = host.query_starts[i : i + 2]
        place = np.arange(length)
        block, offset = (
            torch.from_numpy(numbers.astype(np.int64)).to(output.device)
            for numbers in (
                host.block_table[row][place // step.batch.block_size],
                place % step.batch.block_size,
            )
        )
        position = torch.arange(length - (end - begin), length, device=output.device)[:, None]
        seen = torch.arange(length, device=output.device)[None, :] <= position
        if step.window is not None:
            key = torch.arange(length, device=output.device)[None, :]
            seen &= (key > position - step.window) | (key < step.batch.sinks)
        for head in range(step.query.shape[1] if length > 0 else 0):
            key, value = (
                x[block, head // group, offset].double()
                if scale is None
                else dequantize(
                    x[block, head // group, offset],
                    scale[block, head // group, offset],
                    torch.float64,
                )
                for x, scale in ((kv.key, kv.key_scale), (kv.value, kv.value_scale))
            )
            scores = step.query[begin:end, head].double() @ key.T * step.scale
            weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
            output[begin:end, head] = weights @ value
    return output


def error(output: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the root mean square of its row; NaN if anything is.

    A row is a token and head: one that sees few keys has larger numbers than one that sees many.
    """
    size = expected.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-6)
    return float(((output.double() - expected) / size).abs().max())


TINY = {
    "sinks, decode": {
        "new": [1, 1, 1, 1],
        "lengths": [200, 40, 12, 3],
        "heads": (8, 2),
        "window": 50,
        "sinks": 4,
    },
    "sinks, over a tile": {
        "new": [1, 40],
        "lengths": [200, 190],
        "heads": (4, 2),
        "window": 20,
        "sinks": 37,
        "block_size": 8,
    },
    "sinks, prompts": {
        "new": [90, 30, 1],
        "lengths": [90, 80, 99],
        "heads": (4, 2),
        "window": 11,
        "sinks": 3,
    },
    "INT8, sinks": {
        "new": [20, 1],
        "lengths": [80, 99],
        "heads": (4, 2),
        "window": 11,
        "sinks": 3,
        "kv_dtype": torch.int8,
    },
    "INT8, decode": {
        "new": [1, 1, 1],
        "lengths": [1, 70, 33],
        "heads": (4, 2),
        "kv_dtype": torch.int8,
    },
    "INT8, small blocks": {
        "new": [1, 7, 2],
        "lengths": [3, 30, 2],
        "heads": (4, 2),
        "block_size": 8,
        "kv_dtype": torch.int8,
    },
    "INT8, mixed, window": {
        "new": [7, 1, 20, 1, 9],
        "lengths": [7, 90, 20, 5, 40],
        "heads": (8, 2),
        "window": 11,
        "kv_dtype": torch.int8,
    },
    "FP8, mixed": {
        "new": [7, 1, 20, 1, 9],
        "lengths": [7, 30, 20, 5, 40],
        "heads": (4, 2),
        "kv_dtype": torch.float8_e4m3fn,
    },
    "drafts": {"new": [4, 4, 4], "lengths": [4, 70, 35], "heads": (4, 2)},
    "drafts, an odd number": {"new": [3, 3], "lengths": [200, 16], "heads": (5, 1)},
    "drafts, over a tile": {"new": [5, 5, 5], "lengths": [49, 51, 33], "heads": (4, 4)},
    "drafts, window": {"new": [4, 4, 4], "lengths": [200, 64, 50], "heads": (8, 2), "window": 16},
    "drafts, narrow window": {"new": [6], "lengths": [165], "heads": (2, 2), "window": 2},
    "drafts, sinks": {
        "new": [4, 4],
        "lengths": [200, 34],
        "heads": (4, 2),
        "window": 18,
        "sinks": 5,
    },
    "drafts, INT8": {
        "new": [4, 4],
        "lengths": [90, 33],
        "heads": (4, 2),
        "block_size": 8,
        "kv_dtype": torch.int8,
    },
    "decode, several blocks": {"new": [1, 1, 1], "lengths": [1, 70, 33], "heads": (4, 2)},
    "decode, no key at all": {"new": [1, 1], "lengths": [0, 20], "heads": (4, 4)},
    "decode, splits": {"new": [1, 1], "lengths": [200, 16], "heads": (5, 1)},
    "decode, window": {"new": [1, 1], "lengths": [200, 40], "heads": (8, 2), "window": 50},
    "decode, small blocks": {"new": [1, 1], "lengths": [90, 7], "heads": (2, 2), "block_size": 8},
    "decode, large blocks": {"new": [1, 1], "lengths": [90, 65], "heads": (8, 1), "block_size": 64},
    "decode, heads first": {"new": [1], "lengths": [70], "heads": (4, 2), "heads_first": True},
    "decode, head size 64": {"new": [1], "lengths": [70], "heads": (4, 2), "head_size": 64},
    "prompts": {"new": [50, 5, 17], "lengths": [50, 5, 17], "heads": (5, 1)},
    "chunks": {"new": [9, 20], "lengths": [40, 21], "heads": (4, 4)},
    "window": {"new": [33, 39], "lengths": [33, 80], "heads": (8, 2), "window": 11},
    "wide window": {"new": [33, 39], "lengths": [33, 80], "heads": (4, 2), "window": 70},
    "mixed": {"new": [7, 1, 20, 1, 9], "lengths": [7, 30, 20, 5, 40], "heads": (4, 2)},
    "mixed, small blocks": {
        "new": [1, 7, 2],
        "lengths": [3, 30, 2],
        "heads": (4, 2),
        "block_size": 8,
    },
}


def tiny_errors() -> dict[str, float]:
    """Attend to each step of `TINY`, from the cache alone and with fresh keys and values."""
    from quire.attention.triton_backend import TritonAttention
    from quire.kernels.tuning import DecodeTuning, PrefillTuning, Tuning

    small = Tuning(
        DecodeTuning(tile=16, warps=1, stages=2, programs=16, min_keys=32),
        PrefillTuning(rows=32, keys=16, warps=1, stages=2),
    )
    errors = {}
    for name, arguments in TINY.items():
        step = make_step(**{"head_size": 16, **arguments})  # type: ignore[arg-type]
        backend, expected = TritonAttention(small), oracle(step)
        for source, fresh in (("cache", None), ("fresh", step.fresh)):
            metadata = backend.build(step.batch, step.window)
            output = backend.forward(step.query, step.kv, metadata, step.scale, fresh)
            errors[f"{name}, {source}"] = error(output, expected)
        if name == "prompts":  # one of them goes wrong, and the others do not notice
            for x in step.fresh:
                x[50:55] = NAN
            output = backend.forward(step.query, step.kv, metadata, step.scale, step.fresh)
            others = [*range(50), *range(55, 72)]
            errors[f"{name}, beside NaN"] = error(output[others], expected[others])
        if step.batch.query_starts.diff().max() > 1:
            padded = step.captured_prompts(len(step.query) + 40)
            metadata = backend.build(padded.batch, step.window)
            output = backend.forward(padded.query, step.kv, metadata, step.scale, step.fresh)
            errors[f"{name}, captured prompts"] = error(output[: len(step.query)], expected)
            errors[f"{name}, padding"] = float(output[len(step.query) :].abs().max())
        if step.uniform and len(step.query) // len(step.batch.lengths) < 8:
            metadata = backend.build(step.captured(), step.window)
            # A second layer with other queries: the counts of arrivals are zero again, and
            # what the first left behind is not taken for its own.
            for layer in (step, replace(step, query=-step.query)):
                output = backend.forward(layer.query, layer.kv, metadata, layer.scale)
                turn = "first" if layer is step else "second"
                errors[f"{name}, captured, {turn} layer"] = error(output, oracle(layer))
    return errors


if __name__ == "__main__":
    print(json.dumps(tiny_errors()))
