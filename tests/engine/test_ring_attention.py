"""Ring attention: every rank's rows against the whole prompt, and equal work for all ranks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

import kernel_checks
import pytest
import ring_checks
import ring_ranks
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import draw
from ring_checks import CHECKS, TOLERANCE, oracle
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from quire.errors import QuireError
from quire.kernels.part_attention import attend_part, attend_part_torch, merge
from quire.kernels.prefill import prefill
from quire.parallel import ring_attention as ring
from quire.parallel.comm import Arrival, Solo
from quire.parallel.lockstep import Lockstep, LockstepComm
from quire.parallel.ring_layout import InOrder, RingLayout, Zigzag, zigzag

Layout = Callable[[int, int], RingLayout]
LAYOUTS: list[Layout] = [Zigzag, InOrder]
# Pieces that are equal, that differ, of one token, and none at all.
LENGTHS = (48, 37, 21, 8, 5, 3, 1, 0)


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str | None]:
    """The outcome of each check, from one process with Triton's interpreter in it."""
    pytest.importorskip("triton")
    return kernel_checks.outcomes(ring_checks.__file__, CHECKS)


@pytest.mark.parametrize("name", CHECKS)
def test_kernel_under_the_interpreter(name: str, interpreted: dict[str, str | None]) -> None:
    assert interpreted[name] is None, interpreted[name]


@pytest.mark.gpu
@pytest.mark.parametrize("name", CHECKS)
def test_kernel_on_a_gpu(name: str) -> None:
    kernel_checks.run(name, "cuda", CHECKS)


def prompt(num_tokens: int, heads: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    q, k, v = (
        draw("cpu", num_tokens, n, size, dtype=dtype)
        for n, size in ((heads[0], 16), (heads[1], 16), (heads[1], 17))
    )
    return [q, k, v[..., 1:].contiguous()]


def in_lockstep(task: Callable[[LockstepComm], Tensor], size: int) -> list[Tensor]:
    world = Lockstep(size)
    return world.run([partial(task, world.comm(rank)) for rank in range(size)])


def on_ranks(
    whole: list[Tensor], layout: RingLayout, comm: Callable[[LockstepComm], LockstepComm]
) -> list[Tensor]:
    """What each rank gives for its rows."""

    def task(own: LockstepComm) -> Tensor:
        rows = layout.rows(own.rank)
        q, k, v = (x[rows] for x in whole)
        return ring.ring_attention(comm(own), q, k, v, 0.3, layout)

    return in_lockstep(task, layout.size)


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("heads", [(4, 2), (5, 1), (3, 3)])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_ranks_give_the_attention_of_the_whole_prompt(
    size: int, heads: tuple[int, int], kind: Layout
) -> None:
    for num_tokens in LENGTHS:
        whole, layout = prompt(num_tokens, heads, torch.float32), kind(num_tokens, size)
        expected, _ = oracle(*whole, 0.3, True)
        for rank, found in enumerate(on_ranks(whole, layout, lambda comm: comm)):
            exact = expected[layout.rows(rank)]
            assert (found.dtype, found.shape) == (torch.float32, exact.shape)
            assert (found - exact).abs().max() < 1e-5 if len(exact) > 0 else True


def test_bfloat16_comes_back_rounded_once() -> None:
    """Parts are merged in float32, so that four hops lose no more than one."""
    whole, layout = prompt(64, (4, 2), torch.bfloat16), Zigzag(64, 4)
    expected, _ = oracle(*whole, 0.3, True)
    for rank, found in enumerate(on_ranks(whole, layout, lambda comm: comm)):
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, expected[layout.rows(rank)].to(torch.bfloat16))


def test_one_rank_needs_nobody() -> None:
    whole = prompt(21, (4, 2), torch.float32)
    found = ring.ring_attention(Solo(), *whole, 0.3, Zigzag(21, 1))
    assert (found - oracle(*whole, 0.3, True)[0]).abs().max() < 1e-5


@pytest.mark.parametrize("kind", LAYOUTS)
def test_ranks_share_the_rows_and_see_what_the_mask_allows(kind: Layout) -> None:
    """Each row has one rank, and a hop's keys are those before the query, no more, no fewer."""
    for num_tokens, size in itertools.product(LENGTHS, (1, 2, 3, 4, 5)):
        layout = kind(num_tokens, size)
        rows = [layout.rows(rank) for rank in range(size)]
        assert torch.equal(torch.cat(rows).sort().values, torch.arange(num_tokens))
        assert [layout.length(rank) for rank in range(size)] == [len(own) for own in rows]
        assert all((own.diff() > 0).all() for own in rows)
        for rank, source in itertools.permutations(range(size), 2):
            seen = torch.zeros(len(rows[rank]), len(rows[source]), dtype=torch.bool)
            slices = layout.seen(rank, source)
            if slices is not None:
                seen[slices] = True
            assert torch.equal(seen, rows[source][None, :] <= rows[rank][:, None])


def pairs(layout: RingLayout) -> list[list[int]]:
    """How many pairs of query and key each rank has in each hop."""
    rows = [layout.rows(rank) for rank in range(layout.size)]
    return [
        [int((rows[rank - hop] <= own[:, None]).sum()) for hop in range(layout.size)]
        for rank, own in enumerate(rows)
    ]


@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_a_zigzag_is_equal_work(size: int) -> None:
    """In every hop, but for a token more or less; in order the last rank has 2 - 1/size times."""
    for num_tokens in (2 * size * 25, 2 * size * 25 + 1, 2 * size * 26 - 1):
        work = pairs(Zigzag(num_tokens, size))
        longest = -(-num_tokens // (2 * size))
        for hop in zip(*work, strict=True):
            assert max(hop) - min(hop) <= (0 if num_tokens % (2 * size) == 0 else 2 * longest)
    ordered = [sum(hops) for hops in pairs(InOrder(50 * size, size))]
    assert max(ordered) * size / sum(ordered) == pytest.approx(2 - 1 / size, abs=0.02)


def test_zigzag_gives_the_rows() -> None:
    assert zigzag(10, 0, 2).tolist() == [0, 1, 2, 8, 9]
    assert zigzag(10, 1, 2).tolist() == [3, 4, 5, 6, 7]
    assert zigzag(1, 1, 2).tolist() == []


def test_the_next_keys_travel_while_these_are_attended_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exchange begins before the attention of its hop, and is waited for behind it."""
    events: list[str] = []

    class Watched(LockstepComm):
        def pass_on(self, x: Tensor, like: Tensor) -> Arrival:
            if self.rank == 1:
                events.append("begin")
            arrival = super().pass_on(x, like)

            class Noted:
                def wait(noted) -> Tensor:
                    if self.rank == 1:
                        events.append("wait")
                    return arrival.wait()

            return Noted()

    def attend(*arguments: object, causal: bool) -> tuple[Tensor, Tensor]:
        if causal:  # all ranks do; rank 1 is the second
            events.append("causal")
        return attend_part(*arguments, causal=causal)  # type: ignore[arg-type]

    monkeypatch.setattr(ring, "attend_part", attend)
    whole, layout = prompt(24, (2, 1), torch.float32), Zigzag(24, 3)
    on_ranks(whole, layout, lambda comm: Watched(comm._world, comm.rank, comm._members))
    own = [event for event in events if event != "causal"]
    assert own == ["begin", "wait", "begin", "wait"]
    assert events[:4] == ["causal", "begin", "causal", "wait"]


def test_what_does_not_fit_is_refused() -> None:
    q, k, v = prompt(6, (4, 2), torch.float32)
    with pytest.raises(QuireError, match=r"layout of 2 ranks does not fit a group of 1"):
        ring.ring_attention(Solo(), q, k, v, 0.3, Zigzag(6, 2))
    with pytest.raises(QuireError, match=r"rank 0 has 6 queries, 5 keys and 6 values.*7 rows"):
        ring.ring_attention(Solo(), q, k[:5], v, 0.3, Zigzag(7, 1))
    with pytest.raises(QuireError, match="not 5 keys for 6 queries"):
        attend_part(q, k[:5], v[:5], 0.3, causal=True)
    with pytest.raises(QuireError, match="4 query heads do not share 3 KV heads evenly"):
        attend_part(q, q[:, :3], q[:, :3], 0.3, causal=False)
    y, lse = attend_part(q, k, v, 0.3, causal=False)
    with pytest.raises(ValueError, match=r"part of shape \[5, 4, 16\].*none of \[6, 4, 16\]"):
        merge(y, lse, y[:5], lse[:5])
    with pytest.raises(ValueError, match="window 4 and keys from tuple"):
        prefill(y, q, (k, v), None, None, 0.3, 4, None, lse, lse)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    sizes=st.lists(st.sampled_from([0.01, 1.0, 50.0]), min_size=6, max_size=6),
    data=st.data(),
)
def test_the_order_of_parts_does_not_matter(
    parts: list[int], sizes: list[float], data: st.DataObject
) -> None:
    """Any cut of the keys, parts without keys too, merged in any order: the whole."""
    q, k, v = prompt(4, (2, 1), torch.float32)[0], *draw("cpu", 2, sum(parts), 1, 16)
    for keys, factor in zip(k.split(parts), sizes, strict=False):
        keys *= factor
    cut = list(zip(k.split(parts), v.split(parts), strict=True))
    y, lse = torch.zeros_like(q), torch.full((4, 2), -torch.inf)
    for i in data.draw(st.permutations(range(len(parts)))):
        merge(y, lse, *attend_part_torch(q, *cut[i], 0.3, False))
    expected, exact = oracle(q, k, v, 0.3, False)
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lse.double(), exact, rtol=1e-5, atol=1e-4)


def in_processes(
    kind: str, folder: Path, size: int, lengths: list[int], dtype: torch.dtype
) -> None:
    """Each rank's rows of each prompt against the whole one."""
    arguments = (size, str(folder), kind, lengths, dtype)
    start_processes(ring_ranks.rank, arguments, size, start_method="forkserver")
    found = [torch.load(folder / f"{rank}.pt") for rank in range(size)]
    for i, length in enumerate(lengths):
        expected, _ = oracle(*ring_ranks.prompt(length, dtype), ring_ranks.SCALE, True)
        for rank in range(size):
            own, exact = found[rank][i].double(), expected[zigzag(length, rank, size)]
            assert own.shape == exact.shape
            assert (own - exact).norm() <= TOLERANCE[dtype] * exact.norm()


def test_processes_pass_keys_on(tmp_path: Path) -> None:
    """Over gloo; the last prompt leaves one rank without a row."""
    in_processes("cpu", tmp_path, 2, [64, 37, 3, 1], torch.float32)


@pytest.mark.gpu
@pytest.mark.two_gpus
@pytest.mark.whole_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_gpus_pass_keys_on(dtype: torch.dtype, tmp_path: Path) -> None:
    """Over NCCL, with the kernel."""
    in_processes("cuda", tmp_path, 2, [4096, 1001, 37, 3], dtype)
