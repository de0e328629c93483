"""`quire bench ring`: what it compares, and where it refuses to run."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import draw
from torch import Tensor

from quire.analysis import catalog_config
from quire.bench import ring as bench
from quire.errors import QuireError
from quire.kernels.part_attention import attend_part
from quire.parallel import ring_attention as ring
from quire.parallel.lockstep import Lockstep
from quire.parallel.ring_layout import Zigzag

MODEL = catalog_config("Qwen/Qwen3-8B")


def test_a_cpu_is_refused() -> None:
    assert MODEL is not None
    with pytest.raises(QuireError, match="at least two GPUs, and on cpu torch sees 0"):
        bench.run(MODEL, torch.device("cpu"))


def test_a_ring_that_sends_nothing_computes_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ranks attend with as many queries to as many keys, in the same order, all alone."""
    layout, shapes = Zigzag(64, 4), []

    def noted(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
        shapes.append((q.shape, k.shape, causal))
        return attend_part(q, k, v, scale, causal)

    monkeypatch.setattr(ring, "attend_part", noted)
    own = [draw("cpu", 16, heads, 16) for heads in (4, 2, 2)]
    for rank in range(4):
        bench.attend(bench.Unsent(rank, 4), own, layout)
    alone, world = shapes.copy(), Lockstep(4)
    shapes.clear()
    world.run([lambda r=r: bench.attend(world.comm(r), own, layout) for r in range(4)])
    assert len(alone) == 16
    assert sorted(alone) == sorted(shapes)


def test_lengths_are_equal_pieces_on_every_ring() -> None:
    """A ring that sends nothing takes its neighbour's keys to be as many as its own."""
    for num_tokens in bench.TOKENS:
        assert all(num_tokens % (2 * size) == 0 for size in bench.SIZES)


def test_rows_have_what_stands_beside_the_ring() -> None:
    assert MODEL is not None
    times = {"ring": 2.0, "in_order": 3.0, "compute": 1.5, "sends": 0.5, "eager": 2.1, "one": 7.0}
    (row,) = bench.rows(MODEL, {(8192, 4): times})
    assert (row.case, row.metric, row.value, row.unit) == ("ring-8192-4", "ms", 2.0, "ms")
    assert row.baselines == {name: value for name, value in times.items() if name != "ring"}
    # 32 heads of 128: two products of 2 operations; three hops of keys and values of 8 heads.
    assert row.parameters["flops"] == 4 * 32 * 128 * 8192 * 8193 / 2
    assert row.parameters["bytes_sent_by_rank"] == 3 * 2048 * 2 * 8 * 128 * 2


def test_a_wrong_ring_is_not_timed() -> None:
    """NaN neither."""
    expected = draw("cpu", 8, 2, 16)
    bench.compare(expected * 1.01, expected, "a ring")
    for wrong in (expected * 1.03, expected * torch.nan):
        with pytest.raises(QuireError, match=r"a ring is off by (3\.0%|nan%).*2% is what rounding"):
            bench.compare(wrong, expected, "a ring")
