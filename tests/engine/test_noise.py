"""The noise against statistics: uniform, and independent over seeds, positions, purposes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from naive_sampling import ALPHA
from scipy import stats
from torch import Tensor

from quire.kernels.noise import Purpose, exponential, uniform


def noise(seeds: Sequence[int], positions: Sequence[int], width: int = 1, kind: int = 1) -> Tensor:
    return uniform(torch.tensor(seeds), torch.tensor(positions), Purpose(kind), width)


SERIES: dict[str, Callable[[], Tensor]] = {
    "seeds": lambda: noise(range(50_000), [0] * 50_000)[:, 0],
    "high halves of seeds": lambda: noise([i << 32 for i in range(50_000)], [9] * 50_000)[:, 0],
    "negative seeds": lambda: noise([-i - 1 for i in range(50_000)], [9] * 50_000)[:, 0],
    "positions": lambda: noise([0] * 50_000, range(50_000))[:, 0],
    "lanes": lambda: noise([1], [1], 50_000)[0],
    "purposes": lambda: torch.cat(
        [noise(range(17_000), [3] * 17_000, 1, k)[:, 0] for k in (1, 2, 3)]
    ),
}


@pytest.mark.parametrize("name", SERIES)
def test_noise_is_uniform(name: str) -> None:
    values = SERIES[name]().double().numpy()
    assert 0 < values.min() < values.max() < 1
    assert stats.kstest(values, "uniform").pvalue > ALPHA
    # Neighbours are independent: pairs fill an 8×8 table evenly.
    cells = (values[:-1:2] * 8).astype(int) * 8 + (values[1::2] * 8).astype(int)
    counts = [int((cells == cell).sum()) for cell in range(64)]
    assert stats.chisquare(counts).pvalue > ALPHA
    assert abs(stats.pearsonr(values[:-1], values[1:]).statistic) < 4 / len(values) ** 0.5


PAIRS: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
    "one seed to the next": (
        lambda: noise([5], [2], 40_000),
        lambda: noise([6], [2], 40_000),
    ),
    "seeds apart in the high half": (
        lambda: noise([5], [2], 40_000),
        lambda: noise([5 + (1 << 32)], [2], 40_000),
    ),
    "a seed and its negative": (
        lambda: noise([5], [2], 40_000),
        lambda: noise([-5], [2], 40_000),
    ),
    "one position to the next": (
        lambda: noise([5], [2], 40_000),
        lambda: noise([5], [3], 40_000),
    ),
    "one purpose to the next": (
        lambda: noise([5], [2], 40_000, 1),
        lambda: noise([5], [2], 40_000, 2),
    ),
    "seed and position exchanged": (
        lambda: noise([5], [2], 40_000),
        lambda: noise([2], [5], 40_000),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_streams_are_independent(name: str) -> None:
    one, other = (make()[0].double().numpy() for make in PAIRS[name])
    assert abs(stats.pearsonr(one, other).statistic) < 4 / len(one) ** 0.5
    cells = (one * 8).astype(int) * 8 + (other * 8).astype(int)
    assert stats.chisquare([int((cells == cell).sum()) for cell in range(64)]).pvalue > ALPHA


def test_no_two_draws_share_their_noise() -> None:
    seeds = [seed for seed in range(100) for _ in range(100)]
    positions = [position for _ in range(100) for position in range(100)]
    rows = noise(seeds, positions, 4).tolist()
    assert len({tuple(row) for row in rows}) == len(rows)


def test_noise_resolves_small_probabilities() -> None:
    """Near 0, where the race is won, the uniforms keep 32 bits; float32 alone has 24."""
    values = noise([0], [0], 4_000_000)[0]
    small = values[values < 2.0**-16]
    assert len(small) > 20
    assert (small * 2.0**24).frac().abs().max() > 0
    assert exponential(torch.tensor([0]), torch.tensor([0]), Purpose.TOKEN, 100).min() > 0


def test_exponential_is_exponential() -> None:
    values = exponential(torch.tensor([3]), torch.tensor([4]), Purpose.TOKEN, 50_000)[0]
    assert stats.kstest(values.double().numpy(), "expon").pvalue > ALPHA


def test_noise_does_not_depend_on_its_row_or_width() -> None:
    alone = noise([7], [3], 50)
    batch = noise([1, 7, 2], [3, 3, 9], 80)
    assert torch.equal(batch[1, :50], alone[0])
