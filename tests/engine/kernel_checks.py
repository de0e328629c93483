"""What each fused kernel must do, as checks that run on any device.

`test_kernels` runs them on a GPU. Run as a program under Triton's interpreter (which has to
be chosen before Triton is imported) this module runs them all on the CPU and prints one
JSON object: the traceback of each check, or null.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.kernels import rounded
from quire.kernels.activation import silu_mul_triton
from quire.kernels.best_keys import (
    best_keys_torch,
    best_keys_triton,
    best_tokens_torch,
    best_tokens_triton,
)
from quire.kernels.candidates import ListTuning
from quire.kernels.cutoff import (
    Cutoffs,
    SearchTuning,
    apply_min_p,
    apply_top_k_top_p,
    row_cutoffs,
)
from quire.kernels.linear import Tile, few_rows_linear
from quire.kernels.norm import add_rms_norm_triton, rms_norm_triton
from quire.kernels.qkv import norm_rotate_torch, norm_rotate_triton
from quire.kernels.round_inputs import Rounded, Rounding, round_rows
from quire.kernels.rounded import add_rms_norm_rounded, silu_mul_rounded
from quire.kernels.sampling import (
    NO_TOKEN,
    apply_temperature,
    greedy_torch,
    greedy_triton,
    sample_torch,
    sample_triton,
)
from quire.kernels.skinny_matrix import matrix_linear
from quire.kernels.softmax import softmax_triton
from quire.kernels.step import DecodeInputs, begin_step
from quire.kernels.tiled_matrix import tiled_linear
from quire.kernels.tiles import Tile as SharedTile
from quire.kernels.tiles import make_counters
from quire.kv.layer import LayerKV
from quire.kv.quantized import LARGEST
from quire.layers.rope import RotaryTable
from quire.models.rope_config import RopeConfig

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# ‖out - oracle‖ / ‖oracle‖: the rounding of the result, and a little for the arithmetic. The
# interpreter cuts bfloat16 off where the GPU rounds.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 8e-3, torch.float16: 5e-4}
EPS = 1e-5
Check = Callable[[str], None]


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that torch hands out holds NaN, so that an output left unwritten shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def assert_near(out: Tensor, oracle: Tensor) -> None:
    assert oracle.dtype == torch.float64
    assert out.shape == oracle.shape
    error = float((out.double() - oracle).norm() / oracle.norm())
    assert error <= TOLERANCE[out.dtype], error  # false for NaN too


def draw(device: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(device, dtype)


def rms_norm64(x: Tensor, weight: Tensor) -> Tensor:
    x, weight = x.double(), weight.double()
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


def sizes(device: str, *, tiny: tuple[int, ...], real: tuple[int, ...]) -> tuple[int, ...]:
    return tiny if device == "cpu" else real


def norm(device: str) -> None:
    for dtype in DTYPES:
        for size in sizes(device, tiny=(1, 37, 64), real=(1024, 4096, 5120)):
            x, residual = draw(device, 3, size, dtype=dtype), draw(device, 3, size, dtype=dtype) * 2
            weight = draw(device, size, dtype=dtype)
            assert_near(rms_norm_triton(x, weight, EPS), rms_norm64(x, weight))
            total = x.double() + residual.double()
            normed, summed = add_rms_norm_triton(x, residual, weight, EPS)
            assert_near(summed, total)
            assert summed.data_ptr() == residual.data_ptr()
            assert_near(normed, rms_norm64(total, weight))


def silu_mul(device: str) -> None:
    for dtype in DTYPES:
        for size in sizes(device, tiny=(5, 1030), real=(3072, 12288, 4097)):
            gate_up = draw(device, 3, 2 * size, dtype=dtype)
            gate, up = gate_up.double().chunk(2, dim=-1)
            assert_near(silu_mul_triton(gate_up), F.silu(gate) * up)


def roundings(device: str) -> Iterator[Rounding]:
    """Both kinds of codes, with a scale a row, a group of columns, or one for all."""
    size = 8 if device == "cpu" else 128
    for kind in (torch.int8, torch.float8_e4m3fn):
        yield Rounding(kind)
        yield Rounding(kind, size)
        yield Rounding(kind, None, torch.full((1,), 0.02, device=device))


def assert_same_codes(out: Rounded, expected: Rounded) -> None:
    assert out.codes.dtype == expected.codes.dtype
    assert torch.equal(out.codes.view(torch.int8), expected.codes.view(torch.int8))
    assert torch.equal(out.scale, expected.scale)


def rounded_rows(device: str) -> None:
    """Codes times scales are the inputs, to half a step, and the largest codes beyond them."""
    for rounding, dtype in itertools.product(roundings(device), DTYPES[:2]):
        is_float = rounding.kind.is_floating_point
        if is_float and not takes_fp8(device):
            continue
        for size in sizes(device, tiny=(1, 37, 64), real=(1000, 4096)):
            x = draw(device, 4, size, dtype=dtype)
            x[1] = 0
            codes, scale = round_rows(x, rounding)
            group = torch.arange(size, device=device) // (rounding.group_size or size)
            unit = scale.double()[:, group]
            largest = 448 if is_float else 127
            wanted = (x.double() / unit).clamp(-largest, largest)
            step = wanted.abs().clamp(min=2**-6) / 8 if is_float else 1.0
            assert ((codes.double() - wanted).abs() <= 0.501 * step).all()
            assert not codes[1].double().any()


def rounded_norm(device: str) -> None:
    """Bit for bit the codes of the norm's result: it is rounded to its dtype in between."""
    rows = (2,) if device == "cpu" else (3, 200)
    for rounding, dtype, num_rows in itertools.product(roundings(device), DTYPES[:2], rows):
        for size in sizes(device, tiny=(37, 64), real=(1024, 4096, 5120)):
            x, other = draw(device, 2, num_rows, size, dtype=dtype)
            residual = other * 2
            weight = draw(device, size, dtype=dtype)
            normed, total = add_rms_norm_triton(x, residual.clone(), weight, EPS)
            codes, summed = add_rms_norm_rounded(x, residual, weight, EPS, rounding)
            assert_same_codes(codes, round_rows(normed, rounding))
            assert torch.equal(summed, total)
            assert summed.data_ptr() == residual.data_ptr()


def rounded_gate(device: str) -> None:
    """Bit for bit the codes of the gate's result."""
    rows = (2,) if device == "cpu" else (3, 200)
    for rounding, dtype, num_rows in itertools.product(roundings(device), DTYPES[:2], rows):
        for size in sizes(device, tiny=(37, 1030), real=(3072, 12288, 4097)):
            gate_up = draw(device, num_rows, 2 * size, dtype=dtype)
            expected = round_rows(silu_mul_triton(gate_up), rounding)
            for many in (0, 1000):  # rows from which on a scale a row takes one launch
                with patch.object(rounded, "MANY_ROWS", many):
                    assert_same_codes(silu_mul_rounded(gate_up, rounding), expected)


def softmax(device: str) -> None:
    for dtype in DTYPES:
        for size in sizes(device, tiny=(1, 37), real=(4096, 5000)):
            x = draw(device, 3, size, dtype=dtype) * 4 + 90  # exp(90) overflows float32
            assert_near(softmax_triton(x), x.double().softmax(-1))


def heads(device: str) -> None:
    """Norm, rotation and cache, over heads and head sizes; (4, 4) without the norm."""
    for num_heads, num_kv_heads in ((4, 4), (8, 2), (5, 1), (32, 8)):
        for head_size in sizes(device, tiny=(16, 6), real=(64, 128, 256)):
            check_heads(device, num_heads, num_kv_heads, head_size, torch.float32, num_heads != 4)
    for dtype in DTYPES[1:]:
        check_heads(device, 5, 1, sizes(device, tiny=(16,), real=(128,))[0], dtype, True)


def check_heads(
    device: str,
    num_heads: int,
    num_kv_heads: int,
    head_size: int,
    dtype: torch.dtype,
    weighted: bool,
) -> None:
    num_tokens, block_size, longest = 3, 8, 50
    qkv = draw(device, num_tokens, (num_heads + 2 * num_kv_heads) * head_size, dtype=dtype)
    weight = draw(device, num_heads + num_kv_heads, head_size, dtype=dtype) if weighted else None
    table = RotaryTable(RopeConfig(10_000.0), head_size, longest, dtype, torch.device(device))
    exact = RotaryTable(RopeConfig(10_000.0), head_size, 1, dtype, torch.device(device))
    exact.cos, exact.sin = table.cos.double(), table.sin.double()
    positions = torch.tensor([0, 49, 17], device=device)
    rotation = table.at(positions)
    slots = torch.tensor([9, 31, 16], device=device)
    expected = norm_rotate_torch(
        qkv.double(),
        None if weight is None else weight.double(),
        EPS,
        exact.at(positions),
        num_heads,
        num_kv_heads,
        None,
        None,
    )
    for heads_first in (True, False):
        shape = (4, num_kv_heads, block_size, head_size)
        if not heads_first:
            shape = (4, block_size, num_kv_heads, head_size)
        caches = [torch.full(shape, 7.0, dtype=dtype, device=device) for _ in range(2)]
        if not heads_first:
            caches = [cache.transpose(1, 2) for cache in caches]
        kv = LayerKV(*caches)
        buffer = qkv.clone()
        views = norm_rotate_triton(
            buffer, weight, EPS, rotation, num_heads, num_kv_heads, kv, slots
        )
        for view, oracle in zip(views, expected, strict=True):
            assert_near(view, oracle)
            # In place: the result is a view of the projection.
            assert view.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()
        for cache, view in zip((kv.key, kv.value), views[1:], strict=True):
            flat = cache.transpose(1, 2).reshape(-1, num_kv_heads, head_size)
            assert torch.equal(flat[slots], view)
            rest = torch.ones(len(flat), dtype=torch.bool, device=device)
            rest[slots] = False
            assert (flat[rest] == 7).all()
    untouched = norm_rotate_triton(
        qkv.clone(), weight, EPS, rotation, num_heads, num_kv_heads, None, None
    )
    assert all(torch.equal(a, b) for a, b in zip(untouched, views, strict=True))


def heads_as_codes(device: str) -> None:
    """Codes and scales are those of the twin; a code that lies on an edge may be the next."""
    num_tokens, num_heads, num_kv_heads, block_size = 3, 5, 2, 8
    for head_size in sizes(device, tiny=(16, 6), real=(64, 128)):
        for dtype, code in itertools.product(DTYPES, LARGEST):
            if code.is_floating_point and not takes_fp8(device):
                continue
            width = (num_heads + 2 * num_kv_heads) * head_size
            qkv = draw(device, num_tokens, width, dtype=dtype)
            qkv[1, -head_size:] = 0  # a value of zeros has a scale of zero
            table = RotaryTable(RopeConfig(1e4), head_size, 50, dtype, torch.device(device))
            rotation = table.at(torch.tensor([0, 49, 17], device=device))
            slots = torch.tensor([9, 31, 16], device=device)
            kv, expected = (
                code_cache((4, block_size, num_kv_heads, head_size), code, device) for _ in range(2)
            )
            _, key, value = norm_rotate_triton(
                qkv, None, EPS, rotation, num_heads, num_kv_heads, kv, slots
            )
            expected.write(slots, key, value)
            for part, twin in zip(kv.tensors[2:], expected.tensors[2:], strict=True):
                torch.testing.assert_close(part, twin, rtol=1e-6, atol=0)
            assert (kv.tensors[2] > 0).sum() == num_tokens * num_kv_heads
            everything = torch.arange(4, device=device)
            for found, twin in zip(
                kv.dequantized(everything, torch.float64),
                expected.dequantized(everything, torch.float64),
                strict=True,
            ):
                of = twin.abs().amax(-1, keepdim=True) if code == torch.int8 else twin.abs()
                step = 1.01 / 127 if code == torch.int8 else 1 / 8
                assert ((found - twin).abs() <= step * of).all()
                assert (found != twin).float().mean() < 0.02


def code_cache(shape: tuple[int, ...], code: torch.dtype, device: str) -> LayerKV:
    key, value = (torch.zeros(shape, device=device).to(code).transpose(1, 2) for _ in range(2))
    num_blocks, block_size, num_kv_heads, _ = shape
    scales = (torch.zeros(num_blocks, num_kv_heads, block_size, device=device) for _ in range(2))
    return LayerKV(key, value, *scales)


def takes_fp8(device: str) -> bool:
    """Whether FP8 is rounded as it should be: the interpreter cuts it off."""
    return device == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def few_rows(device: str) -> None:
    shapes = ((11, 96), (6, 130)) if device == "cpu" else ((4096, 1024), (1030, 3072))
    for dtype in DTYPES:
        for size, depth in shapes:
            for num_rows, tile in ((1, Tile(4, 64, 1)), (3, Tile(8, 128, 2))):
                check_product(
                    device,
                    (num_rows, size, depth),
                    dtype,
                    lambda x, weight, bias, tile=tile: few_rows_linear(x, weight, bias, tile),
                )


def check_product(
    device: str,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    product: Callable[[Tensor, Tensor, Tensor | None], Tensor],
) -> None:
    """Without a bias and with one."""
    num_rows, size, depth = shape
    x = draw(device, num_rows, depth, dtype=dtype)
    weight = draw(device, size, depth, dtype=dtype) * 0.05
    bias = draw(device, size, dtype=dtype)
    expected = x.double() @ weight.double().T
    assert_near(product(x, weight, None), expected)
    assert_near(product(x, weight, bias), expected + bias.double())


def matrix(device: str) -> None:
    shapes = ((37, 96),) if device == "cpu" else ((4096, 1024), (1030, 3072), (1024, 12288))
    # The interpreter's tl.dot takes bfloat16 for integers.
    for dtype in (torch.float32, torch.float16) if device == "cpu" else DTYPES[1:]:
        for size, depth in shapes:
            for num_rows in (1, 8, 9, 16):
                check_product(device, (num_rows, size, depth), dtype, matrix_linear)


def tiled(device: str) -> None:
    """Tiles with columns split and not, also in parts of unequal size."""
    shapes = ((64, 384),) if device == "cpu" else ((4096, 1024), (1088, 3072), (1024, 12288))
    tiles = [
        SharedTile(32, 64, 1, 4, 3),
        SharedTile(64, 64, 2, 4, 5),
        SharedTile(16, 64, 8, 4, 4),
    ]
    # The interpreter's tl.dot takes bfloat16 for integers.
    for dtype in (torch.float16,) if device == "cpu" else DTYPES[1:]:
        for (size, depth), tile in itertools.product(shapes, tiles):
            counters = make_counters(size, torch.device(device))
            for num_rows in (1, tile.rows - 7, tile.rows, tile.rows + 5):
                check_product(
                    device,
                    (num_rows, size, depth),
                    dtype,
                    lambda *given, counters=counters, tile=tile: tiled_linear(
                        *given, counters, tile
                    ),
                )
            assert not counters.any()
            if tile.split == 1:
                check_product(
                    device,
                    (9, size, depth),
                    dtype,
                    lambda *given, tile=tile: tiled_linear(*given, None, tile),
                )


def greedy(device: str) -> None:
    for dtype in DTYPES:
        for vocab_size in sizes(device, tiny=(1, 300, 2500), real=(151_936,)):
            logits = draw(device, 7, vocab_size, dtype=dtype)
            logits[1] = logits[1].round()  # many are the largest: the first of them counts
            logits[2] = 0
            logits[3] = -torch.inf
            logits[3, vocab_size // 2] = -5
            largest = logits.cpu().float()
            expected = (largest == largest.amax(-1, keepdim=True)).int().argmax(-1)
            assert torch.equal(greedy_triton(logits).cpu(), expected)


def keys_of_ranks(device: str) -> None:
    """Each rank's best token, and the best of those: what `greedy` finds in the whole row."""
    for dtype in DTYPES:
        for vocab_size in sizes(device, tiny=(7, 300, 2500), real=(151_936,)):
            logits = draw(device, 2 * len(BROKEN) + 5, vocab_size, dtype=dtype)
            logits[0] = logits[0].round()  # equal ones on several ranks: the first of them counts
            logits[1] = 0
            logits[1, : vocab_size // 2] = -0.0
            logits[2] = logits[2].abs() * -1e30  # below what other ranks' padding could be
            logits[3, : vocab_size // 2] = -INF  # a rank without a token
            for i, (most, one) in enumerate(BROKEN):
                if most:
                    logits[4 + i] = most
                logits[4 + i, (i * 31) % vocab_size] = one
            expected = greedy_torch(logits)
            for num_ranks in (2, 3):
                shards = logits.split(-(-vocab_size // num_ranks), dim=1)
                firsts = [0, *itertools.accumulate(shard.shape[1] for shard in shards)]
                for of, among in (
                    (best_keys_torch, best_tokens_torch),
                    (best_keys_triton, best_tokens_triton),
                ):
                    keys = [of(*pair) for pair in zip(shards, firsts, strict=False)]
                    assert torch.equal(among(torch.stack(keys)), expected)


NAN, INF = float("nan"), float("inf")
# Logits of a row that holds no distribution: what all are, and what one of them is.
BROKEN = ((0.0, NAN), (NAN, NAN), (0.0, INF), (-INF, -INF), (-INF, NAN), (INF, NAN), (1.0, INF))


def rows_without_a_token(device: str) -> None:
    """NaN, +inf or nothing at all: neither kernel nor twin chooses a token of the vocabulary."""
    rows, vocab_size = 5 * len(BROKEN), 2500 if device == "cpu" else 151_936
    generator = torch.Generator().manual_seed(0)
    for dtype in DTYPES[:1] if device == "cpu" else DTYPES:
        logits = draw(device, rows, vocab_size, dtype=dtype) * 3
        place = torch.randint(0, vocab_size, (rows,), generator=generator)
        for i, (most, one) in enumerate(BROKEN):
            for row in range(2 * i, 2 * i + 2):  # the rest of the rows are sound
                if most:
                    logits[row] = most
                logits[row, place[row]] = one
        broken = torch.arange(rows, device=device) < 2 * len(BROKEN)
        seeds = torch.arange(rows, device=device)
        temperature, top_k, top_p, min_p = parameters(device, rows)
        for choose in (greedy_torch, greedy_triton):
            assert torch.equal(choose(logits) == NO_TOKEN, broken)
        for choose in (sample_torch, sample_triton):
            for limits in ((top_k, top_p, min_p), (None, None, None)):
                tokens = choose(logits, temperature, *limits, seeds, seeds)
                assert torch.equal(tokens == NO_TOKEN, broken)


def parameters(device: str, rows: int, first: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Temperature, top-k, top-p and min-p in combinations that do not repeat within 120 rows."""
    row = torch.arange(first, first + rows, device=device)

    def column(*values: float, every: int = 1) -> Tensor:
        return torch.tensor(values, device=device)[(row // every) % len(values)]

    return (
        column(0.7, 0.0, 1.5, 1.0, 1e-3),
        column(0, 40, 1, 3, 10_000).long(),
        column(1.0, 0.9, 0.3, 1e-9, 0.99, 1.0),
        column(0.0, 0.02, 0.0, 1.0, every=2),
    )


def draws(device: str) -> Iterator[tuple[torch.dtype, int, int, int]]:
    """Each dtype with rows, vocabulary size and the first row: the interpreter is slow.

    It gets a third of 60 combinations a dtype, a GPU all of them in each.
    """
    for number, dtype in enumerate(DTYPES):
        yield (dtype, 20, 300, 20 * number) if device == "cpu" else (dtype, 480, 20_000, 0)


def hard_logits(device: str, rows: int, vocab_size: int, dtype: torch.dtype) -> Tensor:
    """Rows with ties at the edge, with equal logits only, with forbidden tokens."""
    logits = draw(device, rows, vocab_size, dtype=dtype) * 3
    logits[0::5] = (logits[0::5] * 0.5).round()
    logits[6::20] = 1.0
    logits[7::20, vocab_size // 4 :] = -torch.inf
    return logits


# Sizes by which a short row has many groups and several parts, and by which lists overflow.
SMALL = (
    ListTuning(part=64, group=4, few=2, most=30, capacity=40),
    SearchTuning(block=32, gather_block=64, num_warps=2),
)


def kept_by(logits: Tensor, cutoffs: Cutoffs) -> Tensor:
    """Which tokens stay, bool [R, V]."""
    exact, token = logits.float(), torch.arange(logits.shape[1], device=logits.device)
    tied = (exact == cutoffs.logits[:, None]) & (token <= cutoffs.last_ties[:, None])
    return ((exact > cutoffs.logits[:, None]) | tied) & (exact > -torch.inf)


def kept_tokens(device: str) -> None:
    """The cutoff keeps what the sort keeps, ties included, whatever the sizes of the search."""
    for dtype, rows, vocab_size, first in draws(device):
        logits = hard_logits(device, rows, vocab_size, dtype)
        temperature, top_k, top_p, min_p = parameters(device, rows, first)
        scaled = apply_min_p(apply_temperature(logits.float(), temperature), min_p)
        expected = apply_top_k_top_p(scaled, top_k, top_p) > -torch.inf
        for tunings in ((), SMALL):
            cutoffs = row_cutoffs(logits, temperature, top_k, top_p, min_p, *tunings)
            # Where the sum of probabilities meets top_p to its last bits, either is right.
            differ = (kept_by(logits, cutoffs) != expected).sum(-1)[temperature > 0]
            assert (differ <= 1).all()
            assert (differ > 0).float().mean() <= (0 if device == "cpu" else 0.01)


def candidates(device: str) -> None:
    """A list holds what stays, once and in order; a row's does not depend on its neighbours."""
    rows, vocab_size = (24, 300) if device == "cpu" else (240, 20_000)
    logits = hard_logits(device, rows, vocab_size, torch.bfloat16)
    filters = temperature, top_k, top_p, min_p = parameters(device, rows)
    is_cut = (temperature > 0) & ((top_k > 0) | (top_p < 1) | (min_p > 0))
    for tunings in ((), SMALL):
        cutoffs = row_cutoffs(logits, *filters, *tunings)
        listed, kept = cutoffs.candidates, kept_by(logits, cutoffs)
        assert (listed.counts <= listed.capacity).all()
        assert (listed.counts[~is_cut] == 0).all()
        assert (listed.counts[is_cut] > 0).any()
        # Small lists overflow too, and their rows are searched.
        assert tunings == () or (listed.counts[is_cut] == 0).any()
        for row in listed.counts.nonzero()[:, 0].tolist():
            count = int(listed.counts[row])
            ids = listed.token_ids[row, :count].long()
            assert (ids.diff() > 0).all()
            assert torch.equal(listed.logits[row, :count], logits[row, ids])
            assert kept[row, ids].sum() == kept[row].sum()
        for row in range(0, rows, 5):
            one = slice(row, row + 1)
            alone = row_cutoffs(logits[one], *(x[one] for x in filters), *tunings)
            assert torch.equal(alone.logits, cutoffs.logits[one])
            assert torch.equal(alone.last_ties, cutoffs.last_ties[one])


def odd_rows(device: str) -> None:
    """Logits too far apart for their difference to be finite; fewer groups with any than k."""
    most = torch.finfo(torch.float32).max
    far = torch.tensor([0.0, -most, most, most / 2, 1.0, most] * 20, device=device)
    few = torch.full((120,), -torch.inf, device=device)
    few[60:88] = torch.arange(28.0, device=device)  # in 7 groups of 4
    one, zero = torch.ones(1, device=device), torch.zeros(1, device=device)
    for k in (1, 2, 8, 20, 28, 29, 30, 39, 41, 60, 61, 119):
        for logits in (far, few):
            cutoffs = row_cutoffs(logits[None], one, (one * k).long(), one, zero, *SMALL)
            best = logits.argsort(descending=True, stable=True)[:k].sort().values
            kept = kept_by(logits[None], cutoffs)[0].nonzero()[:, 0]
            assert torch.equal(kept, best[logits[best] > -torch.inf])
    # The eight largest, of which min-p keeps three: a list all the same.
    logits = torch.arange(120.0, device=device)[None]
    cutoffs = row_cutoffs(logits, one, (8 * one).long(), one, (-2.5 * one).exp(), *SMALL)
    assert kept_by(logits, cutoffs)[0].nonzero()[:, 0].tolist() == [117, 118, 119]
    assert cutoffs.candidates.counts.tolist() == [3]
    # The two best groups hold enough, but not their tokens from the second group's largest up.
    logits = torch.full((1, 120), -5.0, device=device)
    logits[0, 60:68] = torch.tensor([10, 9.9, 9.9, 9.9, 9.95, 9.9, 9.9, 9.9])
    cutoffs = row_cutoffs(logits, one, zero.long(), one * 0.9, zero, *SMALL)
    kept = kept_by(logits, cutoffs)[0].nonzero()[:, 0]
    assert kept.tolist() == list(range(60, 68))
    assert cutoffs.candidates.counts.tolist() == [0]
    # A constant added to all logits changes no list, also where 0 would be far above them all.
    logits = torch.arange(120.0, device=device)[None]
    for shift, tunings in itertools.product((0, -1000), ((), SMALL)):
        cutoffs = row_cutoffs(logits + shift, one, zero.long(), one * 0.9, zero, *tunings)
        kept = kept_by(logits + shift, cutoffs)[0].nonzero()[:, 0]
        assert kept.tolist() == [117, 118, 119]
        assert cutoffs.candidates.counts.tolist() == [120 if tunings == () else 5]


def sample(device: str) -> None:
    """The tokens of the twin, from the same noise; seeds of either sign and both halves."""
    generator = torch.Generator().manual_seed(0)
    for dtype, rows, vocab_size, first in draws(device):
        seeds = torch.randint(-(2**63), 2**63 - 1, (rows,), generator=generator).to(device)
        positions = torch.randint(0, 40_000, (rows,), generator=generator).to(device)
        logits = hard_logits(device, rows, vocab_size, dtype)
        arguments = (*parameters(device, rows, first), seeds, positions)
        expected = sample_torch(logits, *arguments)
        assert torch.equal(sample_triton(logits, *arguments), expected)
    keys = torch.stack([seeds, positions], 1)  # as columns of one table: every other number
    strided = sample_triton(logits, *arguments[:-2], keys[:, 0], keys[:, 1])
    assert torch.equal(strided, expected)
    zero, one = torch.zeros(rows, device=device), torch.ones(rows, device=device)
    logits = torch.zeros(rows, 1000, device=device)  # the noise alone decides
    arguments = (one, zero.long(), one, zero, seeds, positions)
    tokens = sample_triton(logits, *arguments)
    assert torch.equal(tokens, sample_torch(logits, *arguments))
    assert len(tokens.unique()) > rows // 2


def begin_step_torch(
    inputs: DecodeInputs,
    token_ids: Tensor,
    block_tables: list[Tensor],
    block_size: int,
    *,
    tokens: Tensor,
    positions: Tensor,
    slots: list[Tensor],
    lengths: Tensor,
    num_known: Tensor | None,
) -> None:
    """Do what `quire.kernels.step.begin_step` does, in torch."""
    rows, width = inputs.rows.long(), len(tokens) // len(inputs.rows)
    begins = inputs.positions.long()
    if num_known is not None:
        begins = torch.minimum(begins, num_known[rows] - 1).clamp(min=0)
    later = torch.arange(width, device=rows.device)
    is_real = later <= inputs.num_drafts[:, None]
    places = begins[:, None] + torch.where(is_real, later, 0)
    for group, table in enumerate(block_tables):
        for row, first, new in zip(
            rows.tolist(), inputs.first_new[group].tolist(), inputs.new_blocks[group], strict=True
        ):
            own = new[new > 0]
            table[row, first : first + len(own)] = own
        slot = table[rows[:, None], places // block_size].long() * block_size + places % block_size
        slots[group].copy_(torch.where(is_real, slot, 0).flatten())
    tokens.copy_(token_ids[rows[:, None], places].flatten())
    positions.copy_(places.flatten())
    lengths.copy_(torch.where(inputs.num_drafts >= 0, begins + width, 0))


def step(device: str) -> None:
    """Tokens, positions, slots and lengths of ragged requests, and the tables' new blocks."""
    block_size, groups, rows = 4, 2, 7
    generator = torch.Generator().manual_seed(0)

    def integers(*shape: int, high: int, low: int = 0) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    for width, size, knows in itertools.product((1, 4), (1, 5), (False, True)):
        chosen = torch.randperm(rows - 1, generator=generator)[:size]
        padding = torch.full((2,), rows - 1)
        starts, drafts = integers(size, low=10, high=30), integers(size, high=width)
        new_blocks = integers(groups, size + 2, 3, low=1, high=90)
        new_blocks *= torch.arange(3) < integers(groups, size + 2, 1, high=4)  # some, in order
        new_blocks[:, size:] = 0
        inputs = DecodeInputs(
            rows=torch.cat([chosen, padding]).int().to(device),
            positions=torch.cat([starts, padding * 0]).int().to(device),
            num_drafts=torch.cat([drafts, padding * 0 - 1]).int().to(device),
            first_new=integers(groups, size + 2, low=5, high=9).int().to(device),
            new_blocks=new_blocks.int().to(device),
        )
        num_known = None
        if knows:  # what was rejected ahead of the step: 0 to 4 positions
            num_known = torch.zeros(rows, dtype=torch.int64)
            num_known[chosen] = starts + 1 - integers(size, high=5)
            num_known[chosen[:1]] += 9  # what the host says is an upper bound
            num_known = num_known.to(device)
        token_ids = integers(rows, 60, high=1000).to(device)
        tables = [integers(rows, 12, low=100, high=200).int().to(device) for _ in range(groups)]
        given = inputs, token_ids
        found = []
        for run_step in (begin_step, begin_step_torch):
            own_tables = [table.clone() for table in tables]
            outputs = [torch.full(((size + 2) * width,), -7, device=device) for _ in range(4)]
            lengths = torch.full((size + 2,), -7, dtype=torch.int32, device=device)
            run_step(
                *given,
                own_tables,
                block_size,
                tokens=outputs[0],
                positions=outputs[1],
                slots=outputs[2:],
                lengths=lengths,
                num_known=num_known,
            )
            found.append([*own_tables, *outputs, lengths])
        for ours, theirs in zip(*found, strict=True):
            assert torch.equal(ours, theirs), (width, size, knows)


CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        norm,
        silu_mul,
        rounded_rows,
        rounded_norm,
        rounded_gate,
        softmax,
        heads,
        heads_as_codes,
        few_rows,
        matrix,
        tiled,
        greedy,
        keys_of_ranks,
        rows_without_a_token,
        kept_tokens,
        candidates,
        odd_rows,
        sample,
        step,
    )
}


def outcomes(program: str | None, checks: dict[str, Check]) -> dict[str, str | None]:
    """What each check of this module, or another like it, comes to under the interpreter."""
    answer = subprocess.run(
        [sys.executable, str(program), *checks],
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    found: dict[str, str | None] = json.loads(answer.stdout.splitlines()[-1])
    return found


def run(name: str, device: str, checks: dict[str, Check] = CHECKS) -> None:
    with poisoned():
        checks[name](device)


def main(checks: dict[str, Check] = CHECKS) -> None:
    assert os.environ.get("TRITON_INTERPRET") == "1"
    torch.set_num_threads(1)
    outcomes: dict[str, str | None] = {}
    for name in sys.argv[1:]:
        try:
            run(name, "cpu", checks)
            outcomes[name] = None
        except Exception:  # reported by the test that asked
            outcomes[name] = traceback.format_exc()
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
