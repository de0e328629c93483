"""Rejection sampling is exact: joint cells of three tokens, and wrong verifiers that they find.

A target and a draft that depend on the last two of V = 4 tokens write texts, two drafts a round.
The first three tokens fall into 64 cells, whose probabilities are known. To look at single tokens
would not do: two of the mutants below leave the first token exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from quire.kernels.noise import Purpose, uniform
from quire.kernels.sampling import NO_TOKEN, sample_torch
from quire.sampling.drafts import Drafts
from quire.speculation import block
from quire.speculation.rejection import accept_or_replace, draw, residual

VOCAB, LENGTH, K = 4, 3, 2
NONE = VOCAB  # stands in a context before the text begins
TEXTS = 20_000
ALPHA = 1e-6  # how often a right verification would be called wrong
POWER = 0.999  # how often a wrong one must be
DEGREES = VOCAB**LENGTH - 1
LIMIT = float(stats.chi2.isf(ALPHA, DEGREES))

Verify = Callable[[Tensor, Tensor | None, Drafts, Tensor, Tensor], tuple[Tensor, Tensor]]
DraftSeeds = Callable[[Tensor, Tensor], Tensor]  # from seeds and the positions where a round begins

# Each context has one of these pairs of p and q, in hundredths. A search among random pairs found
# them: of all mutants of both verifications, the one that is hardest to find shall be easy to find.
BASES = (
    ((15, 19, 15, 51), (21, 16, 50, 13)),
    ((4, 33, 15, 48), (68, 15, 14, 3)),
)


@dataclass
class Models:
    """Target and draft after each context, the last two tokens: float32 [V + 1, V + 1, V]."""

    p: Tensor
    q: Tensor  # what the verifier is told
    drawn: Tensor  # what drafts are drawn from


def models_of(bases: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Models:
    """Give each context one of the bases (p, q), in hundredths, its tokens turned round."""
    p, q = torch.zeros(2, VOCAB + 1, VOCAB + 1, VOCAB)
    for a in range(VOCAB + 1):
        for b in range(VOCAB + 1):
            base = bases[(a + 2 * b) % len(bases)]
            for table, values in zip((p, q), base, strict=True):
                table[a, b] = torch.tensor(values).roll(a + 3 * b) / 100
    return Models(p, q, q)


MODELS = models_of(BASES)


def cells(p: Tensor) -> Tensor:
    """Return the probability of each text of three tokens, float64 [64]."""
    p = p.double()
    second = p[NONE, NONE][:, None] * p[NONE, :VOCAB]
    return (second[:, :, None] * p[:VOCAB, :VOCAB]).flatten()


def own_seeds(seeds: Tensor, begins: Tensor) -> Tensor:
    """Draft with the request's seed in every round."""
    return seeds


def write(
    models: Models,
    verify: Verify,
    count: int = TEXTS,
    draft_seeds: DraftSeeds = own_seeds,
    told_q: bool = True,
) -> Tensor:
    """Write `count` texts in rounds of K drafts; return how many fall into each cell."""
    texts = torch.full((count, 2 + LENGTH + 2 * K), NONE)  # two that are not, and some over
    lengths = torch.zeros(count, dtype=torch.int64)
    while (lengths < LENGTH).any():
        request = (lengths < LENGTH).nonzero()[:, 0]
        begins = lengths[request]
        seeds = draft_seeds(request, begins)
        for i in range(K):
            at = begins + i
            q = models.drawn[texts[request, at], texts[request, at + 1]]
            texts[request, at + 2] = draw(q, seeds, at, Purpose.DRAFT)
        at = begins[:, None] + torch.arange(1 + K)
        of = request[:, None]
        context = texts[of, at], texts[of, at + 1]
        tokens, kept = verify(
            models.p[context].flatten(0, 1),
            models.q[context].flatten(0, 1) if told_q else None,
            Drafts(texts[of, at + 2].flatten(), list(range(0, at.numel() + 1, 1 + K))),
            request.repeat_interleave(1 + K),
            at.flatten(),
        )
        texts[of, at + 2] = tokens
        lengths[request] += kept
    a, b, c = texts[:, 2 : 2 + LENGTH].unbind(dim=1)
    return torch.bincount((a * VOCAB + b) * VOCAB + c, minlength=VOCAB**LENGTH)


def chi_square(observed: Tensor, expected: Tensor) -> float:
    """Pearson's statistic, which has as many degrees of freedom as there are cells, less 1."""
    wanted = expected * observed.sum()
    return float(((observed - wanted) ** 2 / wanted).sum())


def power(observed: Tensor, expected: Tensor) -> float:
    """Return the probability that TEXTS texts of a wrong law are found to be wrong.

    `observed` counts many texts of that law. Its statistic is about 63 + λ with a variance of
    2 · 63 + 4λ, so λ is taken two standard deviations lower, and scaled down to TEXTS.
    """
    excess = chi_square(observed, expected) - DEGREES
    sure = excess - 2 * (2 * DEGREES + 4 * max(excess, 0.0)) ** 0.5
    return float(stats.ncx2.sf(LIMIT, DEGREES, max(sure, 0.0) * TEXTS / float(observed.sum())))


def assert_found(counts: Callable[[int], Tensor], p: Tensor) -> None:
    """A wrong law is told from p's with TEXTS texts, and would be with nearly any seeds."""
    expected = cells(p)
    assert chi_square(counts(TEXTS), expected) > LIMIT
    assert power(counts(10 * TEXTS), expected) >= POWER


# --- wrong verifiers -----------------------------------------------------------


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
        right = self.coins(seeds, positions)[:, :K] < self.chance(p, q, tokens)[:, :K]
        kept = right.long().cumprod(dim=1).sum(dim=1)
        at = torch.arange(len(p)), kept
        replaced = self.replace(p[at], q[at], tokens[at], seeds[at], positions[at])
        bonus = draw(self.bonus(p), seeds[:, K], positions[:, K], Purpose.TOKEN)
        tokens = tokens.clone()
        tokens[at] = torch.where(kept < K, replaced, bonus)
        return tokens, 1 + kept

    def coins(self, seeds: Tensor, positions: Tensor) -> Tensor:
        flat = uniform(seeds.flatten(), positions.flatten(), Purpose.ACCEPT, 1)
        return flat.view(seeds.shape)

    def chance(self, p: Tensor, q: Tensor, tokens: Tensor) -> Tensor:
        p, q = (x.gather(-1, tokens[..., None])[..., 0] for x in (p, q))
        return p / q

    def left(self, p: Tensor, q: Tensor, tokens: Tensor) -> Tensor:
        return (p - q).clamp(min=0)

    def replace(
        self, p: Tensor, q: Tensor, tokens: Tensor, seeds: Tensor, positions: Tensor
    ) -> Tensor:
        return draw(self.left(p, q, tokens), seeds, positions, Purpose.RESIDUAL)

    def bonus(self, p: Tensor) -> Tensor:
        return p[:, K]


class OneCoin(Plain):
    def coins(self, seeds: Tensor, positions: Tensor) -> Tensor:
        return super().coins(seeds, positions)[:, :1].expand(-1, 1 + K)


class StaleBonusRow(Plain):
    def bonus(self, p: Tensor) -> Tensor:
        return p[:, K - 1]


class OneHotResidual(Plain):
    def left(self, p: Tensor, q: Tensor, tokens: Tensor) -> Tensor:
        return residual(p, None, tokens)


class ResampledFromP(Plain):
    def left(self, p: Tensor, q: Tensor, tokens: Tensor) -> Tensor:
        return p


class AcceptedByP(Plain):
    def chance(self, p: Tensor, q: Tensor, tokens: Tensor) -> Tensor:
        return super().chance(p, torch.ones_like(q), tokens)


class TheDraftsNoise(Plain):
    def replace(
        self, p: Tensor, q: Tensor, tokens: Tensor, seeds: Tensor, positions: Tensor
    ) -> Tensor:
        return draw(self.left(p, q, tokens), seeds, positions, Purpose.DRAFT)


class OtherTemperature(Plain):
    """The target's logits are divided by 1.15 in place of 1."""

    def __call__(
        self, p: Tensor, q: Tensor | None, drafts: Drafts, seeds: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        p = p ** (1 / 1.15)
        return super().__call__(p / p.sum(dim=-1, keepdim=True), q, drafts, seeds, positions)


def with_raw_q(models: Models) -> Models:
    """Draw drafts from the two likeliest tokens, and tell the verifier of q before that cut."""
    cut = models.q.where(models.q >= models.q.topk(2).values[..., 1:], 0)
    return replace(models, drawn=cut / cut.sum(dim=-1, keepdim=True))


MUTANTS = (
    OneCoin,
    StaleBonusRow,
    OneHotResidual,
    ResampledFromP,
    AcceptedByP,
    TheDraftsNoise,
    OtherTemperature,
)
FIRST_TOKEN_EXACT = (OneCoin, StaleBonusRow)


# --- the law of the text ---------------------------------------------------------


@pytest.mark.parametrize("told_q", [True, False])
def test_texts_have_the_targets_law(told_q: bool) -> None:
    """Also if drafts that were drawn are judged as if they had not been: fewer are accepted."""
    counts = write(MODELS, accept_or_replace, told_q=told_q)
    assert chi_square(counts, cells(MODELS.p)) < LIMIT


def test_each_cell_can_be_judged() -> None:
    assert float(cells(MODELS.p).min()) * TEXTS > 20
    assert (MODELS.p > 0).all()
    torch.testing.assert_close(MODELS.p.sum(dim=-1), torch.ones(VOCAB + 1, VOCAB + 1))


def test_the_rule_spelled_out_says_the_same() -> None:
    """What the mutants are made of is right itself, text by text."""
    assert torch.equal(write(MODELS, Plain()), write(MODELS, accept_or_replace))


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_verifier_is_found(mutant: type[Plain]) -> None:
    assert_found(lambda count: write(MODELS, mutant(), count), MODELS.p)


def test_q_that_is_not_what_was_drawn_from_is_found() -> None:
    models = with_raw_q(MODELS)
    assert_found(lambda count: write(models, accept_or_replace, count), models.p)


@pytest.mark.parametrize("mutant", FIRST_TOKEN_EXACT)
def test_the_first_token_does_not_show_it(mutant: type[Plain]) -> None:
    """Why the test looks at three tokens together: ten times the texts, and nothing is seen."""
    first = write(MODELS, mutant(), 10 * TEXTS).view(VOCAB, -1).sum(dim=1)
    expected = MODELS.p[NONE, NONE].double()
    assert chi_square(first, expected) < stats.chi2.isf(1e-3, VOCAB - 1)


# --- a round of either verification ----------------------------------------------

either = pytest.mark.parametrize("verify", [accept_or_replace, block.accept_or_replace])


def judge(
    verify: Verify,
    p: Sequence[Sequence[float]],
    q: Sequence[Sequence[float]] | None,
    tokens: Sequence[int],
    first_rows: Sequence[int],
    seed: int = 0,
) -> list[list[int]]:
    """Return the tokens that each request accepts."""
    positions = [i - begin for begin, end in pairwise(first_rows) for i in range(begin, end)]
    given, kept = verify(
        torch.tensor(p),
        None if q is None else torch.tensor(q),
        Drafts(torch.tensor(tokens), list(first_rows)),
        torch.full((len(p),), seed),
        torch.tensor(positions) + 10,
    )
    assert given.shape == (len(first_rows) - 1, max(b - a for a, b in pairwise(first_rows)))
    assert given.dtype == kept.dtype == torch.int64
    return [row[:n].tolist() for row, n in zip(given, kept.tolist(), strict=True)]


def distributions(count: int, sharpness: float = 1.0, seed: int = 0) -> Tensor:
    """Return random distributions over the vocabulary, float32 [count, V]."""
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(count, VOCAB, generator=generator)).softmax(dim=-1)


def one_hot(tokens: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(tokens, VOCAB).float()


@either
@settings(max_examples=100, deadline=None)
@given(data=st.data(), told_q=st.booleans())
def test_requests_with_other_numbers_of_drafts_do_not_matter(
    verify: Verify, data: st.DataObject, told_q: bool
) -> None:
    """Each request, judged alone, gets what it gets in a batch."""
    widths = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=5))
    first_rows = [0]
    for width in widths:
        first_rows.append(first_rows[-1] + 1 + width)
    number = first_rows[-1]
    seed = data.draw(st.integers(0, 1000))
    p, q = distributions(2 * number, 2.0, seed).split(number)
    tokens = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=number, max_size=number)))
    seeds = torch.arange(number) // 2 + seed
    positions = torch.arange(number) % 7
    together, kept = verify(p, q if told_q else None, Drafts(tokens, first_rows), seeds, positions)
    for r, (a, b) in enumerate(pairwise(first_rows)):
        alone, count = verify(
            p[a:b],
            q[a:b] if told_q else None,
            Drafts(tokens[a:b], [0, b - a]),
            seeds[a:b],
            positions[a:b],
        )
        assert kept[r] == count[0] <= b - a
        assert together[r, : kept[r]].tolist() == alone[0, : kept[r]].tolist()


@either
def test_without_drafts_it_is_the_sampler(verify: Verify) -> None:
    logits = 3 * torch.randn(500, 50, generator=torch.Generator().manual_seed(1))
    seeds, positions = torch.arange(500), torch.arange(500) % 11
    tokens, kept = verify(
        logits.softmax(dim=-1),
        None,
        Drafts(torch.zeros(500, dtype=torch.int64), list(range(501))),
        seeds,
        positions,
    )
    plain = sample_torch(logits, torch.ones(500), None, None, None, seeds, positions)
    assert tokens[:, 0].tolist() == plain.tolist()
    assert kept.tolist() == [1] * 500


@either
@pytest.mark.parametrize("told_q", [True, False])
def test_greedy_rows_say_what_greedy_says(verify: Verify, told_q: bool) -> None:
    """Whatever the drafts and q are: the longest right beginning, and the right token behind."""
    generator = torch.Generator().manual_seed(2)
    greedy, other = torch.randint(VOCAB, (2, 3000), generator=generator)
    chance = torch.rand(2, 3000, generator=generator)
    tokens = torch.where(chance[0] < 0.7, greedy, other)
    q = torch.where(chance[1, :, None] < 0.5, one_hot(tokens), distributions(3000, 3.0))
    said, kept = verify(
        one_hot(greedy),
        q if told_q else None,
        Drafts(tokens, list(range(0, 3001, 4))),
        torch.arange(3000) // 4,
        torch.arange(3000) % 4,
    )
    greedy, tokens = greedy.view(-1, 4), tokens.view(-1, 4)
    right = (greedy == tokens)[:, :3].long().cumprod(dim=1).sum(dim=1)
    assert kept.tolist() == (1 + right).tolist()
    column = torch.arange(4)
    assert torch.equal(
        said.where(column < kept[:, None], -2), greedy.where(column < kept[:, None], -2)
    )


@either
@pytest.mark.parametrize("told_q", [True, False])
def test_nothing_is_read_from_the_device(verify: Verify, told_q: bool) -> None:
    """Tensors without values will do, so no number decides about a shape or a branch."""
    p = torch.empty(6, VOCAB, device="meta")
    keys = torch.empty(6, dtype=torch.int64, device="meta")
    tokens, kept = verify(p, p if told_q else None, Drafts(keys, [0, 1, 5, 6]), keys, keys)
    assert (tokens.shape, kept.shape) == ((3, 4), (3,))


@either
def test_p_equal_to_q_accepts_everything(verify: Verify) -> None:
    p = distributions(40_000, 4.0)
    tokens = draw(p, torch.arange(40_000), torch.zeros(40_000, dtype=torch.int64), Purpose.DRAFT)
    _, kept = verify(
        p, p, Drafts(tokens, [0, 39_999, 40_000]), torch.arange(40_000), torch.arange(40_000)
    )
    assert kept.tolist() == [39_999, 1]


@either
def test_acceptance_is_one_minus_the_total_variation(verify: Verify) -> None:
    p, q = distributions(2, 1.5, seed=3)
    count = 100_000
    seeds, zeros = torch.arange(count), torch.zeros(count, dtype=torch.int64)
    tokens = draw(q.expand(count, -1), seeds, zeros, Purpose.DRAFT)
    _, kept = verify(
        p.expand(2 * count, -1),
        q.expand(2 * count, -1),
        Drafts(tokens.repeat_interleave(2), list(range(0, 2 * count + 1, 2))),
        seeds.repeat_interleave(2),
        zeros.repeat_interleave(2),
    )
    wanted = float(torch.minimum(p, q).sum())
    assert 0.2 < wanted < 0.8
    assert float((kept - 1).double().mean()) == pytest.approx(wanted, abs=5 * 0.5 / count**0.5)


# --- what is not a distribution --------------------------------------------------

NAN = float("nan")
EVEN, SURE = [0.25] * 4, [0.0, 0.0, 1.0, 0.0]


@either
@pytest.mark.parametrize("broken", [[NAN] * 4, [0.5, NAN, 0.25, 0.25], [0.0] * 4])
def test_a_row_without_p(verify: Verify, broken: list[float]) -> None:
    """It ends the drafts, and has no token if the text gets there; other requests go on."""
    assert judge(verify, [SURE, broken, SURE], None, [2, 0, 0], [0, 3]) == [[2, NO_TOKEN]]
    assert judge(verify, [SURE, broken, SURE], [EVEN] * 3, [2, 0, 0], [0, 3]) == [[2, NO_TOKEN]]
    assert judge(verify, [SURE, SURE, broken], None, [2, 2, 0], [0, 3]) == [[2, 2, NO_TOKEN]]
    assert judge(verify, [SURE, broken, SURE], None, [1, 0, 0], [0, 3]) == [[2]]  # it does not
    assert judge(verify, [broken, SURE, SURE], None, [0, 2, 0], [0, 1, 3]) == [[NO_TOKEN], [2, 2]]


@either
@pytest.mark.parametrize("broken", [[NAN] * 4, [0.5, NAN, 0.25, 0.25], [0.0] * 4])
def test_a_row_without_q(verify: Verify, broken: list[float]) -> None:
    """Nobody knows how its draft was drawn, so p decides alone."""
    assert judge(verify, [SURE] * 3, [EVEN, broken, EVEN], [2, 2, 2], [0, 3]) == [[2, 2]]
    not_read = [EVEN, EVEN, broken]
    assert judge(verify, [SURE] * 3, not_read, [2, 2, 2], [0, 3]) == [[2, 2, 2]]


@either
@pytest.mark.parametrize("token", [NO_TOKEN, VOCAB, 10**9])
def test_a_draft_outside_the_vocabulary(verify: Verify, token: int) -> None:
    for q in (None, [EVEN] * 3):
        assert judge(verify, [SURE] * 3, q, [2, token, 2], [0, 3]) == [[2, 2]]
        behind = [2, 2, token]
        assert judge(verify, [SURE] * 3, q, behind, [0, 3]) == [[2, 2, 2]]


@either
def test_a_draft_that_q_cannot_have_drawn(verify: Verify) -> None:
    q = [[0.5, 0.5, 0.0, 0.0]] * 2
    for seed in range(50):
        assert judge(verify, [[0.0, 0.0, 0.5, 0.5], SURE], q, [2, 0], [0, 2], seed) == [[2, 2]]
        assert judge(verify, [[0.5, 0.0, 0.0, 0.5], SURE], q, [2, 0], [0, 2], seed) == [[3]]


@either
def test_a_residual_that_rounding_left_empty(verify: Verify) -> None:
    """Of p a little is missing, and nothing is more than q: a rejected draft is redrawn from p."""
    p, q = [0.0, 0.3, 0.3, 0.3], [0.1, 0.3, 0.3, 0.3]
    said = {tuple(judge(verify, [p, SURE], [q, q], [0, 0], [0, 2], seed)[0]) for seed in range(60)}
    assert said == {(1,), (2,), (3,)}
