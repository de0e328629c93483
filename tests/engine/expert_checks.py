"""What the kernels of a mixture of experts must do, as checks that run on any device.

`test_moe` runs them, as `test_kernels` runs `kernel_checks`: on a GPU, and as a program under
Triton's interpreter.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from kernel_checks import DTYPES, TOLERANCE, Check, draw, main
from torch import Tensor

from quire.kernels.expert_groups import tiled_experts
from quire.kernels.expert_pairs import paired_experts, routed_pairs
from quire.kernels.expert_tiles import GroupTile, PairTile, group_tiles, pair_tiles
from quire.kernels.grouping import AT_ONCE, group_pairs_torch, group_pairs_triton
from quire.kernels.router import choose_experts_torch, choose_experts_triton
from quire.kernels.routes import (
    CopyTables,
    count_pairs,
    limit_pairs,
    live_rows,
    pair_limit,
    spread_pairs,
)

INF = float("inf")
# Of the pairs' product a row each: rows of the weight, columns of a load, warps.
PAIR_TILES = ((PairTile(8, 16, 1), PairTile(16, 64, 1)), (PairTile(4, 64, 2), PairTile(8, 16, 1)))
# Of the groups' product: pairs, outputs and columns of a program, programs, warps, stages.
GROUP_TILES = (
    (GroupTile(16, 16, 16, 1, 4, 2), GroupTile(16, 32, 16, 3, 4, 2)),
    (GroupTile(16, 32, 32, 2, 4, 3), GroupTile(16, 16, 32, 1, 4, 1)),
)
# The same with pairs as the left operand, of 16-bit numbers in aligned rows.
ROW_TILES = (
    GroupTile(16, 32, 32, 2, 4, 4, rows_left=True),
    GroupTile(32, 16, 16, 1, 4, 2, rows_left=True),
)


def choose(device: str) -> None:
    """Ids and weights of the twin, over numbers of experts, ties, forbidden and broken logits."""
    shapes = ((13, 5), (3, 3), (128, 8), (300, 1))
    for dtype in DTYPES:
        for num_experts, top_k in (
            shapes if dtype == torch.float32 or device != "cpu" else ((13, 5),)
        ):
            logits = draw(device, 9, num_experts, dtype=dtype) * 3
            logits[1] = logits[1].round()
            logits[2] = 0.5
            logits[3, 1:] = -INF
            logits[4, num_experts // 2] = INF
            logits[5, 0] = torch.nan
            logits[6] *= 100  # all but one have a weight of zero
            for renormalize in (True, False):
                ids, weights = choose_experts_triton(logits, top_k, renormalize)
                expected, shares = choose_experts_torch(logits, top_k, renormalize)
                sound = [0, 1, 2, 3, 6, 7, 8]
                assert (ids.dtype, weights.dtype) == (torch.int32, torch.float32)
                assert torch.equal(ids[sound], expected[sound])
                torch.testing.assert_close(weights, shares, rtol=1e-5, atol=1e-12, equal_nan=True)
                # Whatever the logits are, the experts are different ones that exist.
                assert ((ids >= 0) & (ids < num_experts)).all()
                assert all(len(set(row)) == top_k for row in ids.tolist())


def choose_copies(device: str) -> None:
    """The slots that the twins give one after the other; a table's unused places are no slots."""
    for dtype in DTYPES if device != "cpu" else (torch.float32, torch.bfloat16):
        for num_tokens, num_experts, top_k, most in (
            ((9, 13, 5, 4), (1, 13, 5, 2), (3, 3, 3, 1))
            if device == "cpu"
            else ((999, 128, 8, 2), (70, 300, 1, 8), (1, 128, 8, 4), (33, 8, 3, 1))
        ):
            generator = torch.Generator().manual_seed(num_experts)
            copies = torch.randint(1, most + 1, (num_experts + 1,), generator=generator)
            copies[0], copies[-1] = most, 1
            slots = torch.arange(copies.numel() * most).view(-1, most).flip(0)
            places = slots.where(torch.arange(most) < copies[:, None], -1)
            tables = CopyTables(copies.int().to(device), places.int().to(device))
            logits = draw(device, num_tokens, num_experts, dtype=dtype)
            logits[:, 0] += 3  # the expert of most copies is chosen often
            for renormalize in (True, False):
                ids, weights = choose_experts_triton(logits, top_k, renormalize, tables)
                chosen, shares = choose_experts_torch(logits, top_k, renormalize)
                assert ids.dtype == torch.int32
                assert torch.equal(ids, spread_pairs(chosen, tables))
                torch.testing.assert_close(weights, shares, rtol=1e-5, atol=1e-12)
            assert num_tokens < 9 or len(ids[chosen == 0].unique()) == most


def group(device: str) -> None:
    """Order and starts of the twin; slots permuted, some experts without one."""
    for num_tokens, num_experts, top_k in ((1, 8, 2), (3, 8, 2), (17, 5, 5), (700, 8, 3)):
        ids = draw(device, num_tokens, num_experts).sort(-1).indices[:, :top_k].int().contiguous()
        for num_slots in (num_experts, 3, 0):
            generator = torch.Generator().manual_seed(num_slots)
            slots = torch.randperm(num_experts, generator=generator).clamp(max=num_slots)
            slots = slots.int().to(device)
            order, starts = group_pairs_triton(ids, slots, num_slots)
            expected, begins = group_pairs_torch(ids, slots, num_slots)
            assert torch.equal(starts, begins)
            assert torch.equal(order[: starts[-1]], expected[: starts[-1]])
    assert AT_ONCE < 700 * 3


def routes(device: str) -> None:
    """Counted, limited and spread, against loops over the pairs; some rows are nobody's."""
    num_experts, top_k, first_row = 7, 3, 5
    copies = [1, 3, 2, 1, 4, 1, 2, 1]  # the last is no expert
    places = [[10 * e + i if i < copies[e] else -1 for i in range(4)] for e in range(8)]
    tables = CopyTables(
        *(torch.tensor(t, dtype=torch.int32, device=device) for t in (copies, places))
    )
    for num_tokens, num_live in ((1, 6), (17, 22), (300, 205), (4, 5)):
        logits = draw(device, num_tokens, num_experts)
        logits[:, 1] += 1
        ids = choose_experts_torch(logits, top_k, True)[0]
        live = live_rows(ids, torch.tensor(num_live, dtype=torch.int32, device=device), first_row)
        assert live.flatten().tolist() == [5 + t < num_live for t in range(num_tokens)]
        before = torch.arange(num_experts, device=device)
        tokens = torch.tensor(num_live, device=device)
        for factor in (0.2, 1.0, 7.0):
            limit = pair_limit(factor, tokens, top_k, num_experts)
            assert int(limit) == -int(-factor * num_live * top_k // num_experts)
            counts, taken = [0] * num_experts, before.tolist()
            kept, slots = [], []
            for t, row in enumerate(ids.tolist()):
                inside = 5 + t < num_live
                for expert in row:
                    counts[expert] += inside
                    taken[expert] += inside
                    kept.append(expert if inside and taken[expert] <= int(limit) else num_experts)
                    slots.append(places[kept[-1]][(5 + t) % copies[kept[-1]]])
            assert count_pairs(ids, live, num_experts).tolist() == counts
            limited = limit_pairs(ids, live, before, limit)
            spread = spread_pairs(limited, tables, first_row)
            assert (limited.dtype, spread.dtype) == (torch.int32, torch.int32)
            assert limited.flatten().tolist() == kept
            assert spread.flatten().tolist() == slots


Case = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def routed(
    device: str,
    num_tokens: int,
    dtype: torch.dtype,
    shape: tuple[int, int, int, int],
    ids: Tensor | None = None,
    num_slots: int | None = None,
) -> Case:
    """Arguments of `apply_experts`; `shape` is experts, k, hidden size and an expert's size."""
    num_experts, top_k, hidden, size = shape
    held = num_experts if num_slots is None else num_slots
    x = draw(device, num_tokens, hidden, dtype=dtype)
    logits = draw(device, num_tokens, num_experts)
    logits[:, 0] = -9  # an expert without tokens
    if ids is None:
        ids = choose_experts_torch(logits, top_k, True)[0]
    weights = draw(device, num_tokens, top_k).sigmoid()
    slots = torch.arange(num_experts).flip(0).clamp(max=held).int().to(device)
    gate_up = draw(device, held, 2 * size, hidden, dtype=dtype) / hidden**0.5
    down = draw(device, held, hidden, size, dtype=dtype) / size**0.5
    return x, ids.contiguous(), weights, slots, gate_up, down


def exact(case: Case) -> Tensor:
    """The definition in float64, expert by expert."""
    x, ids, weights, slots, gate_up, down = (
        t.double() if t.is_floating_point() else t for t in case
    )
    out = torch.zeros_like(x)
    for expert, slot in enumerate(slots.tolist()):
        if slot < len(down):
            gate, up = (x @ gate_up[slot].T).chunk(2, dim=-1)
            share = ((ids == expert) * weights).sum(-1, keepdim=True)
            out += share * ((F.silu(gate) * up) @ down[slot].T)
    return out


def check(out: Tensor, case: Case) -> None:
    """Within three roundings: that between the products, of the parts, of the sum."""
    oracle = exact(case)
    assert out.shape == oracle.shape
    assert out.dtype == case[0].dtype
    error = float((out.double() - oracle).norm() / oracle.norm())
    assert error <= 1.5 * TOLERANCE[out.dtype], error


def cases(device: str, dtype: torch.dtype) -> list[Case]:
    """Ragged numbers of tokens; all tokens to the same experts; experts that are not held.

    The interpreter takes milliseconds a program: on a CPU only float32 has all of them.
    """
    shape = (8, 2, 24, 20) if device == "cpu" else (16, 4, 1000, 200)
    if device == "cpu" and dtype != torch.float32:
        return [routed(device, 3, dtype, shape)]
    none = routed(device, 17, dtype, shape)
    some = torch.where(draw(device, *none[1].shape) > 0, none[1], shape[0]).int()
    slots = torch.cat(
        [none[3], none[3].new_tensor([len(none[5])])]
    )  # of no expert, and it has none
    same = torch.tensor([[5, 2, 3, 1][: shape[1]]] * 17, dtype=torch.int32, device=device)
    return [
        *(
            routed(device, n, dtype, shape)
            for n in ((1, 3) if device == "cpu" else (1, 3, 17, 999))
        ),
        routed(device, 17, dtype, shape, ids=same),
        routed(device, 17, dtype, shape, num_slots=3),
        (none[0], some, none[2], slots, *none[4:]),
    ]


def pairs(device: str) -> None:
    for dtype in DTYPES:
        for i, case in enumerate(cases(device, dtype)):
            chosen = pair_tiles(case[1].shape[1], case[5])
            tiles_of = [PAIR_TILES, (chosen,), *[PAIR_TILES[:1]] * 3]
            for tiles in tiles_of[i] if device == "cpu" else (*PAIR_TILES, chosen):
                check(paired_experts(*case, *tiles), case)


def pairs_that_choose(device: str) -> None:
    """The router's choice and the products in one: the experts and weights of its twin.

    Of logits in steps of a half many are equal, and of each token one is NaN or minus infinity.
    """
    for dtype in DTYPES:
        for shape in (
            ((5, 3, 24, 20),) if device == "cpu" else ((16, 4, 1000, 200), (128, 8, 256, 64))
        ):
            num_experts, top_k = shape[:2]
            for num_tokens, num_slots in ((1, None), (2, num_experts // 2)):
                logits = (draw(device, num_tokens, num_experts, dtype=dtype) * 4).round() / 2
                logits[0, 1], logits[-1, 0] = -0.0, -INF
                for renormalize in (True, False):
                    ids, weights = choose_experts_torch(logits, top_k, renormalize)
                    case = routed(device, num_tokens, dtype, shape, ids, num_slots)
                    x, _, _, *rest = case
                    for tiles in (PAIR_TILES[0], pair_tiles(top_k, case[5])):
                        out = routed_pairs(x, logits, top_k, renormalize, *rest, *tiles)
                        check(out, (x, ids, weights, *rest))
    logits[0, 2] = torch.nan
    out = routed_pairs(x, logits, top_k, True, *rest, *PAIR_TILES[0])
    assert out[0].isnan().all()
    assert num_tokens == 1 or not out[1:].isnan().any()


def groups(device: str) -> None:
    # The interpreter's tl.dot takes bfloat16 for integers.
    for dtype in (torch.float32, torch.float16) if device == "cpu" else DTYPES:
        for case in cases(device, dtype):
            num_tokens, top_k = case[1].shape
            aligned = all(n * dtype.itemsize % 16 == 0 for n in case[5].shape[1:])
            chosen = group_tiles(num_tokens, top_k, len(case[5]), dtype.itemsize, aligned)
            for tiles in (*GROUP_TILES, chosen):
                check(tiled_experts(*case, *tiles), case)


def groups_of_many(device: str) -> None:
    """Pairs as the left operand: of none, of one tile, of several, with experts not held."""
    dtypes = (torch.float16,) if device == "cpu" else DTYPES[-2:]
    # Columns in whole tiles, and not.
    shapes = ((3, 2, 40, 24), (3, 2, 64, 32))
    if device != "cpu":
        shapes = ((16, 4, 1000, 200), (16, 4, 1024, 256))
    for dtype, shape in product(dtypes, shapes):
        assert dtype.itemsize == 2
        for num_tokens, num_slots in ((1, None), (45, None), (45, 2)):
            case = routed(device, num_tokens, dtype, shape, num_slots=num_slots)
            check(tiled_experts(*case, *ROW_TILES), case)
        chosen = group_tiles(4096, 8, 128, 2)  # of a step of very many
        assert all(tile.rows_left for tile in chosen)
        if device != "cpu":
            check(tiled_experts(*case, *chosen), case)
    assert not any(tile.rows_left for tile in group_tiles(4096, 8, 128, 2, aligned=False))


def alone_or_together(device: str) -> None:
    """A token's bits do not depend on who is in the step, nor on where it stands."""
    shape = (8, 2, 24, 20) if device == "cpu" else (16, 4, 1024, 256)
    x, ids, weights, slots, gate_up, down = routed(device, 6, torch.float32, shape)
    works: tuple[tuple[Any, Any], ...] = (
        (paired_experts, PAIR_TILES[0]),
        (tiled_experts, GROUP_TILES[0]),
    )
    for work, tiles in works:
        together = work(x, ids, weights, slots, gate_up, down, *tiles)
        for rows in ([3], [5, 0], [5, 4, 3, 2, 1, 0]):
            some = x[rows], ids[rows], weights[rows]
            assert torch.equal(work(*some, slots, gate_up, down, *tiles), together[rows])


CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        choose,
        choose_copies,
        group,
        routes,
        pairs,
        pairs_that_choose,
        groups,
        groups_of_many,
        alone_or_together,
    )
}

if __name__ == "__main__":
    main(CHECKS)
