"""What attention to parts of the keys and their merging must do, as checks on any device.

`test_ring_attention` runs them, as `test_kernels` runs `kernel_checks`: on a GPU, and as a program
under Triton's interpreter.
"""

from __future__ import annotations

import itertools
from functools import partial
from unittest.mock import patch

import torch
from kernel_checks import Check, draw, main, sizes
from torch import Tensor

from quire.attention.triton_backend import TritonAttention
from quire.bench import ring
from quire.kernels.part_attention import (
    attend_part_torch,
    attend_part_tuned,
    merge_torch,
    merge_triton,
)
from quire.kernels.prefill import prefill, tokens_per_tile
from quire.kernels.tuning import DecodeTuning, PrefillTuning, Tuning, tuning
from quire.kv.batch import AttentionBatch

# The interpreter's tl.dot takes bfloat16 for integers.
DTYPES = {"cpu": [torch.float32, torch.float16], "cuda": [torch.float32, torch.bfloat16]}
# ‖out - oracle‖ / ‖oracle‖: weights are rounded to the queries' dtype, and the result is not.
TOLERANCE = {torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
HEADS = ((4, 2), (5, 1), (3, 3))  # query heads, KV heads
SMALL = PrefillTuning(rows=32, keys=16, warps=1, stages=2)


def oracle(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """Attention and log-sum-exp in float64, head by head, as they are defined."""
    y = torch.zeros(q.shape, dtype=torch.float64, device=q.device)
    lse = torch.full(q.shape[:2], -torch.inf, dtype=torch.float64, device=q.device)
    group = q.shape[1] // k.shape[1]
    for head in range(q.shape[1] if len(k) > 0 else 0):
        scores = q[:, head].double() @ k[:, head // group].double().T * scale
        if causal:
            scores[torch.ones_like(scores).triu(1) > 0] = -torch.inf
        y[:, head] = scores.softmax(-1) @ v[:, head // group].double()
        lse[:, head] = scores.logsumexp(-1)
    return y, lse


def inputs(
    device: str, queries: int, keys: int, heads: tuple[int, int], size: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, and keys and values that lie in turns, as they come round a ring."""
    q = draw(device, queries, heads[0], size, dtype=dtype)
    both = draw(device, keys, 2, heads[1], size, dtype=dtype)
    return q, both[:, 0], both[:, 1]


def assert_part(
    found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], dtype: torch.dtype
) -> None:
    """Both in float32; -inf where no key is seen and there alone, and zeros."""
    (y, lse), (exact, exact_lse) = found, expected
    assert (y.dtype, lse.dtype, y.shape) == (torch.float32, torch.float32, exact.shape)
    assert y.is_contiguous()
    none = exact_lse == -torch.inf
    assert torch.equal(lse == -torch.inf, none)
    assert (y[none] == 0).all()
    torch.testing.assert_close(lse[~none].double(), exact_lse[~none], rtol=1e-4, atol=3e-4)
    error = (y.double() - exact).norm()
    assert error <= TOLERANCE[dtype] * exact.norm(), (error / exact.norm(), dtype)


def part(device: str) -> None:
    """All keys or those before, in kernel and twin: whole tiles, rests, few, one, none at all."""
    tiny = ((33, 48), (9, 33), (40, 1), (1, 70), (5, 0), (0, 5), (0, 0))
    real = (*tiny, (1000, 640), (129, 1999))
    shapes = itertools.product(DTYPES[device], HEADS, sizes(device, tiny=(16,), real=(64, 128)))
    for dtype, heads, size in shapes:
        tuned = tuning(torch.device("cuda"), size, dtype.itemsize) if device == "cuda" else None
        settings = SMALL if tuned is None else tuned.prefill
        for queries, keys in tiny if device == "cpu" else real:
            for causal in (False, True) if queries == keys or heads == HEADS[0] else (False,):
                q, k, v = inputs(device, queries, queries if causal else keys, heads, size, dtype)
                expected = oracle(q, k, v, 0.3, causal)
                assert_part(attend_part_torch(q, k, v, 0.3, causal), expected, dtype)
                assert_part(attend_part_tuned(q, k, v, 0.3, causal, settings), expected, dtype)


def several(device: str) -> None:
    """One launch over sequences: one has no key, and behind the last one's keys lies NaN."""
    query_starts, key_starts = [0, 7, 12, 45], [0, 20, 20, 53]
    settings = SMALL if device == "cpu" else tuning(torch.device("cuda"), 64, 4).prefill
    size = tokens_per_tile(2, settings)
    q, k, v = inputs(device, 45, 60, (4, 2), 16 if device == "cpu" else 64, torch.float32)
    k[53:], v[53:] = torch.nan, torch.nan

    def int32(values: object) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    starts, num_keys = int32(query_starts), int32(key_starts)
    tiles = [
        (i, first)
        for i, (begin, end) in enumerate(itertools.pairwise(query_starts))
        for first in range(0, end - begin, size)
    ]
    batch = AttentionBatch(
        starts, num_keys, int32([0, 1, 2]), starts[None], starts, starts, 1, 60, None
    )
    y, lse = torch.empty_like(q), torch.empty(45, 4, device=device)
    prefill(y, q, (k, v), batch, int32(tiles), 0.3, None, settings, lse, num_keys)
    for i, (begin, end) in enumerate(itertools.pairwise(query_starts)):
        seen = slice(key_starts[i], key_starts[i + 1])
        expected = oracle(q[begin:end], k[seen], v[seen], 0.3, False)
        assert_part((y[begin:end], lse[begin:end]), expected, torch.float32)


def asked_for_nothing(device: str) -> None:
    """The log-sum-exp costs the output not a bit."""
    settings = SMALL if device == "cpu" else tuning(torch.device("cuda"), 64, 4).prefill
    q, k, v = inputs(device, 50, 50, (4, 2), 16 if device == "cpu" else 64, torch.float32)
    starts = torch.tensor([0, 50], dtype=torch.int32, device=device)
    batch = AttentionBatch(starts, starts, starts, starts[None], starts, starts, 1, 50, None)
    first = torch.arange(0, 50, tokens_per_tile(2, settings), dtype=torch.int32, device=device)
    tiles = torch.stack([torch.zeros_like(first), first], 1)
    y, plain, lse = torch.empty_like(q), torch.empty_like(q), torch.empty(50, 4, device=device)
    prefill(y, q, (k, v), batch, tiles, 0.3, None, settings, lse)
    prefill(plain, q, (k, v), batch, tiles, 0.3, None, settings)
    assert torch.equal(y, plain)
    assert_part((y, lse), oracle(q, k, v, 0.3, True), torch.float32)


def merges(device: str) -> None:
    """Two parts are the whole, in kernel and twin: rows that see a part alone, and no key."""
    shapes = ((7, 3, 16), (1, 1, 48)) if device == "cpu" else ((999, 32, 128), (5, 3, 64))
    for merge in (merge_torch, merge_triton):
        for num_queries, num_heads, size in shapes:
            q = draw(device, num_queries, num_heads, size)
            k, v = draw(device, 2, 30, num_heads, size)
            for far in (0.0, 300.0):  # exponentials that only their ratio keeps in range
                k[:11] += far
                y, lse = attend_part_torch(q, k[:11], v[:11], 0.3, False)
                y[num_queries // 2 :], lse[num_queries // 2 :] = 0, -torch.inf
                part_y, part_lse = attend_part_torch(q, k[11:], v[11:], 0.3, False)
                part_y[-1], part_lse[-1] = 0, -torch.inf
                merge(y, lse, part_y, part_lse)
                whole = oracle(q, k, v, 0.3, False)
                latter = oracle(q, k[11:], v[11:], 0.3, False)
                for x, of in zip(whole, latter, strict=True):
                    x[num_queries // 2 :] = of[num_queries // 2 :]
                whole[0][-1], whole[1][-1] = 0, -torch.inf
                assert_part((y, lse), whole, torch.float32 if far == 0 else torch.float16)
    for merge in (merge_torch, merge_triton):  # nobody has a row
        nothing = torch.empty(0, 3, 16, device=device), torch.empty(0, 3, device=device)
        merge(*nothing, *nothing)


def slices(device: str) -> None:
    """A part of some rows is merged in place, and the other rows stay."""
    for merge in (merge_torch, merge_triton):
        y, lse = draw(device, 9, 2, 16), draw(device, 9, 2)
        part_y, part_lse = draw(device, 4, 2, 16) + 1, draw(device, 4, 2)
        before, before_lse = y.clone(), lse.clone()
        merge(y[5:], lse[5:], part_y, part_lse)
        assert torch.equal(y[:5], before[:5])
        assert torch.equal(lse[:5], before_lse[:5])
        both = torch.logaddexp(before_lse[5:].double(), part_lse.double())
        ours, theirs = (before_lse[5:] - both).exp(), (part_lse - both).exp()
        expected = before[5:] * ours[..., None] + part_y * theirs[..., None]
        assert_part((y[5:], lse[5:]), (expected, both), torch.float32)


def whole_prompt(device: str) -> None:
    """What the benchmark takes for one GPU's attention is the causal one."""
    decode = DecodeTuning(tile=16, warps=1, stages=2, programs=16, min_keys=32)
    small = partial(TritonAttention, Tuning(decode, SMALL))
    dtype, size = (torch.float32, 16) if device == "cpu" else (torch.bfloat16, 128)
    q, k, v = (x.contiguous() for x in inputs(device, 70, 70, (4, 2), size, dtype))
    with patch.object(ring, "TritonAttention", small if device == "cpu" else TritonAttention):
        found = ring.whole(q, k, v)()
    expected, _ = oracle(q, k, v, size**-0.5, True)
    assert (found.double() - expected).norm() <= TOLERANCE[dtype] * expected.norm()


CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (part, several, asked_for_nothing, merges, slices, whole_prompt)
}

if __name__ == "__main__":
    main(CHECKS)
