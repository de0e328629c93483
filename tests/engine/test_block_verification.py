"""Block verification is exact over several rounds, accepts more, and needs coins of each round."""

from __future__ import annotations

import pytest
import torch
from test_rejection import (
    LIMIT,
    MODELS,
    TEXTS,
    VOCAB,
    DraftSeeds,
    K,
    Verify,
    assert_found,
    cells,
    chi_square,
    distributions,
    own_seeds,
    write,
)
from torch import Tensor

from quire.kernels.noise import Purpose, uniform
from quire.sampling.drafts import Drafts
from quire.speculation import rejection
from quire.speculation.block import accept_or_replace, round_seeds
from quire.speculation.rejection import draw


class Plain:
    """The rule spelled out for requests with K drafts each; a mutant gets one part wrong."""

    def __call__(
        self, p: Tensor, q: Tensor | None, drafts: Drafts, seeds: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        assert q is not None
        p, q = p.view(-1, 1 + K, VOCAB), q.view(-1, 1 + K, VOCAB)
        tokens, seeds, positions = (
            x.view(-1, 1 + K) for x in (drafts.tokens.clamp(max=VOCAB - 1), seeds, positions)
        )
        coins = self.coins(seeds, positions)
        kept = torch.zeros(len(p), dtype=torch.int64)
        weight = torch.ones(len(p))
        weights = [weight]
        for i in range(1, K + 1):
            ratio = (p / q)[:, i - 1].gather(-1, tokens[:, i - 1, None])[:, 0]
            weight = self.weight(weight, ratio)
            weights.append(weight)
            chance = weight
            if i < K:
                chance = self.chance(weight, self.left(p[:, i], q[:, i], weight).sum(dim=-1))
            kept = self.longer(kept, i, coins[:, i] < chance)
        at = torch.arange(len(p)), kept
        left = self.left(p[at], q[at], torch.stack(weights, dim=1)[at])
        replaced = draw(left, seeds[at], positions[at], Purpose.RESIDUAL)
        bonus = draw(p[:, K], seeds[:, K], positions[:, K], Purpose.TOKEN)
        tokens = tokens.clone()
        tokens[at] = torch.where(kept < K, replaced, bonus)
        return tokens, 1 + kept

    def coins(self, seeds: Tensor, positions: Tensor) -> Tensor:
        seeds = round_seeds(seeds, positions[:, :1])
        return uniform(seeds.flatten(), positions.flatten(), Purpose.ACCEPT, 1).view(seeds.shape)

    def weight(self, weight: Tensor, ratio: Tensor) -> Tensor:
        return (weight * ratio).clamp(max=1)

    def chance(self, weight: Tensor, left: Tensor) -> Tensor:
        return left / (left + 1 - weight)

    def longer(self, kept: Tensor, i: int, says_yes: Tensor) -> Tensor:
        return torch.where(says_yes, i, kept)

    def left(self, p: Tensor, q: Tensor, weight: Tensor) -> Tensor:
        return (weight[:, None] * p - q).clamp(min=0)


class CoinsOfThePosition(Plain):
    """A coin that said no in one round is looked at again in the next."""

    def coins(self, seeds: Tensor, positions: Tensor) -> Tensor:
        return uniform(seeds.flatten(), positions.flatten(), Purpose.ACCEPT, 1).view(seeds.shape)


class OneCoin(Plain):
    def coins(self, seeds: Tensor, positions: Tensor) -> Tensor:
        return super().coins(seeds, positions)[:, -1:].expand(-1, 1 + K)


class EndsAtTheFirstNo(Plain):
    def longer(self, kept: Tensor, i: int, says_yes: Tensor) -> Tensor:
        return torch.where(says_yes & (kept == i - 1), i, kept)


class ResidualWithoutWeight(Plain):
    def left(self, p: Tensor, q: Tensor, weight: Tensor) -> Tensor:
        return (p - q).clamp(min=0)


class ProductOfChances(Plain):
    def weight(self, weight: Tensor, ratio: Tensor) -> Tensor:
        return weight * ratio.clamp(max=1)


class WeightAsChance(Plain):
    def chance(self, weight: Tensor, left: Tensor) -> Tensor:
        return weight


MUTANTS = (
    CoinsOfThePosition,
    OneCoin,
    EndsAtTheFirstNo,
    ResidualWithoutWeight,
    ProductOfChances,
    WeightAsChance,
)


# --- the law of the text ---------------------------------------------------------


@pytest.mark.parametrize("told_q", [True, False])
def test_texts_have_the_targets_law(told_q: bool) -> None:
    counts = write(MODELS, accept_or_replace, draft_seeds=round_seeds, told_q=told_q)
    assert chi_square(counts, cells(MODELS.p)) < LIMIT


def test_the_rule_spelled_out_says_the_same() -> None:
    """What the mutants are made of is right itself, text by text."""
    ours, spelled_out = (
        write(MODELS, verify, draft_seeds=round_seeds) for verify in (accept_or_replace, Plain())
    )
    assert torch.equal(ours, spelled_out)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_verifier_is_found(mutant: type[Plain]) -> None:
    """Among them the coins of a position: what one round has decided, the next asks again."""
    assert_found(lambda count: write(MODELS, mutant(), count, draft_seeds=round_seeds), MODELS.p)


def test_drafts_with_the_noise_of_the_last_round_are_found() -> None:
    """Fresh coins are not enough: that few drafts stood tells what the others were."""
    assert_found(
        lambda count: write(MODELS, accept_or_replace, count, draft_seeds=own_seeds), MODELS.p
    )


@pytest.mark.parametrize(
    ("verify", "draft_seeds"), [(CoinsOfThePosition(), round_seeds), (accept_or_replace, own_seeds)]
)
def test_one_round_does_not_show_it(verify: Verify, draft_seeds: DraftSeeds) -> None:
    """Either fault leaves a round exact: with the rest drawn from p, the law is the target's."""

    def once(
        p: Tensor, q: Tensor | None, drafts: Drafts, seeds: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        if positions[0] == 0:  # all texts begin together
            return verify(p, q, drafts, seeds, positions)
        tokens = draw(p, seeds, positions, Purpose.TOKEN).view(-1, 1 + K)
        return tokens, torch.ones(len(tokens), dtype=torch.int64)

    counts = write(MODELS, once, 10 * TEXTS, draft_seeds)
    assert chi_square(counts, cells(MODELS.p)) < LIMIT


def test_drafts_that_are_not_drawn_need_no_keys_of_the_round() -> None:
    """With q None the drafts are as good as given, so it does not matter what chose them."""
    counts = write(MODELS, accept_or_replace, draft_seeds=own_seeds, told_q=False)
    assert chi_square(counts, cells(MODELS.p)) < LIMIT


def test_rejection_sampling_needs_no_keys_of_the_round() -> None:
    """There, what lies behind the first rejection has decided nothing."""
    counts = write(MODELS, rejection.accept_or_replace, draft_seeds=own_seeds)
    assert chi_square(counts, cells(MODELS.p)) < LIMIT


# --- how many drafts stand -------------------------------------------------------


def rounds(p: Tensor, q: Tensor, told_q: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Judge one round a request; return what block verification and rejection keep, and drafts.

    Args:
        p, q: float32 [R, 1 + k, V].
    """
    count, width, _ = p.shape
    seeds = torch.arange(count).repeat_interleave(width)
    positions = torch.arange(1, 1 + width).repeat(count)
    p, q = p.flatten(0, 1), q.flatten(0, 1)
    tokens = draw(q, round_seeds(seeds, torch.ones_like(seeds)), positions, Purpose.DRAFT)
    drafts = Drafts(tokens, list(range(0, count * width + 1, width)))
    given = p, q if told_q else None, drafts, seeds, positions
    _, by_block = accept_or_replace(*given)
    _, by_token = rejection.accept_or_replace(*given)
    return by_block.double() - 1, by_token.double() - 1, tokens.view(count, width)


def stands(p: Tensor, q: Tensor, tokens: Tensor) -> Tensor:
    """Return how many drafts stand in expectation, given the drafts; float64 [R]."""
    expected = []
    ratios = (p / q).gather(-1, tokens[..., None])[..., 0].double()
    for row in ratios[:, :-1].tolist():
        weight, total = 1.0, 0.0
        for ratio in row:
            weight = min(1.0, weight * ratio)
            total += weight
        expected.append(total)
    return torch.tensor(expected, dtype=torch.float64)


def test_two_models_that_differ_by_a_third() -> None:
    """The paper's example: of two drafts 10/9 stand by rejection and 11/9 by block."""
    count = 100_000
    p = torch.tensor([1 / 3, 2 / 3, 0.0, 0.0]).expand(count, 3, VOCAB)
    q = torch.tensor([2 / 3, 1 / 3, 0.0, 0.0]).expand(count, 3, VOCAB)
    by_block, by_token, _ = rounds(p, q)
    error = 5 / count**0.5  # five standard errors, of at most 1
    assert float(by_token.mean()) == pytest.approx(10 / 9, abs=error)
    assert float(by_block.mean()) == pytest.approx(11 / 9, abs=error)


@pytest.mark.parametrize("sharpness", [0.5, 1.5, 4.0])
def test_random_models(sharpness: float) -> None:
    """As many stand as shall, which is more than by rejection, where drafts are often wrong."""
    count, width = 20_000, 5
    p, q = distributions(2 * count * width, sharpness).view(2, count, width, VOCAB)
    by_block, by_token, tokens = rounds(p, q)
    expected = stands(p, q, tokens)
    off = by_block - expected
    assert abs(float(off.mean())) < 4 * float(off.std()) / count**0.5
    more = by_block - by_token
    assert float(more.mean()) > 4 * float(more.std()) / count**0.5


def test_drafts_that_are_not_drawn_stand_as_often_by_either() -> None:
    """Their ratio p/1 is at most 1, so nothing can make up for an earlier draft."""
    p, q = distributions(2 * 100_000, 2.0, seed=5).view(2, 20_000, 5, VOCAB)
    by_block, by_token, _ = rounds(p, q, told_q=False)
    more = by_block - by_token
    assert 0.2 < float(by_token.mean()) < 2
    assert abs(float(more.mean())) < 4 * float(more.std()) / 20_000**0.5
