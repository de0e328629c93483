"""Rounds of heads, counted from texts: against a walk draft by draft, and the formula's speed."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest
import torch
from decoder import Decoder, Shape
from head import HEADS, Head
from head_costs import Costs
from head_rounds import Said, load_heads, model_agrees, speed_rows, walk
from safetensors.torch import save_file
from torch import Tensor
from train import MODELS

from quire.bench.speculation_rounds import Rounds
from quire.resources import load_measurement


def rounds_by_hand(agreed: Tensor, k: int) -> list[tuple[int, int, int]]:
    """Text, beginning and drafts kept of every round that has room."""
    _, count, num_tokens = agreed.shape
    found = []
    for text in range(count):
        known = 1
        while num_tokens - known >= k + 1:
            kept = 0
            while kept < k and agreed[kept, text, known + kept]:
                kept += 1
            found.append((text, known, kept))
            known += kept + 1
    return found


@pytest.mark.parametrize("k", [1, 3, 8])
def test_rounds_are_those_of_a_walk(k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    agreed = torch.rand(8, 5, 40, generator=generator) < 0.7
    rounds, expected = walk(agreed, k), rounds_by_hand(agreed, k)
    assert rounds.stood.sum() == len(expected)
    for text in range(5):
        kept = [j for t, _, j in expected if t == text]
        assert rounds.stood[text].tolist() == [kept.count(j) for j in range(k + 1)]
        begins = [at for t, at, _ in expected if t == text]
        assert rounds.begins[text].nonzero()[:, 0].tolist() == begins
    assert rounds.tokens_a_step == pytest.approx(1 + sum(j for *_, j in expected) / len(expected))


def test_drafts_agree_where_the_same_noise_chooses_what_was_said() -> None:
    torch.manual_seed(2)
    model = Decoder(Shape(1, 32, 32, 2, 1, head_dim=16, vocab_size=50, max_position_embeddings=32))
    model.model.embed_tokens.weight.data *= 0.2  # a draw is not the likeliest token
    prompts, num_tokens = torch.randint(50, (3, 6)), 9
    noise = torch.rand(3, num_tokens, 50) + 0.01
    ids = prompts
    with torch.inference_mode():
        for at in range(num_tokens):
            p = model(ids)[:, -1].softmax(-1)
            ids = torch.cat((ids, (p / noise[:, at]).argmax(-1, keepdim=True)), 1)
    assert model_agrees(model, Said(ids, 6, noise)).all()
    assert not model_agrees(model, Said(ids, 6, None)).all()
    other = ids.clone()
    other[1, 6 + 4] = (other[1, 6 + 4] + 1) % 50
    found = model_agrees(model, Said(other, 6, noise))
    assert found.shape == (8, 3, num_tokens)
    assert found[:, [0, 2]].all()
    assert found[:, 1, :4].all()
    assert not found[:, 1, 4].any()


def test_speed_is_the_formula_at_the_best_k() -> None:
    drafting = {("a", 1): 15.0, ("a", 2): 20.0, ("draft", 1): 25.0, ("draft", 2): 50.0}
    costs = Costs(100.0, {1: 110.0, 2: 130.0}, drafting, {})
    assert costs.round("a", 2) == pytest.approx((130 + 15 + 5) / 100)
    none = torch.zeros(2, dtype=torch.int64)
    kept = {("draft", 1): [[2, 8], [2, 8]], ("draft", 2): [[5, 0, 5], [5, 0, 5]]}
    kept |= {("a", 1): [[0, 9], [0, 9]], ("a", 2): [[3, 3, 3], [3, 3, 3]]}
    rounds = {
        (who, k, 0.0): Rounds(torch.tensor(stood), none, torch.empty(0))
        for (who, k), stood in kept.items()
    }
    draft, head = speed_rows(rounds, costs)
    assert draft.case == "speed-draft-T0"
    assert draft.value == pytest.approx(1.8 / 1.35)
    assert draft.parameters == {"k": 1, "temperature": 0.0}
    assert head.case == "speed-a-T0"
    assert head.value == pytest.approx(2 / 1.25)
    ratio = (2 / 1.25) / (1.8 / 1.35)
    # All texts are alike, so no draw of them differs.
    assert [head.parameters[key] for key in ("over_draft", "low", "high")] == pytest.approx(
        [ratio] * 3, rel=1e-5
    )


def test_heads_come_back_by_name(tmp_path: Path) -> None:
    heads = {name: Head(shape).bfloat16() for name, shape in HEADS.items()}
    weights = {f"{n}.{k}": v for n, head in heads.items() for k, v in head.state_dict().items()}
    save_file(weights, tmp_path / "heads.safetensors")
    loaded = load_heads(tmp_path)
    assert list(loaded) == sorted(HEADS)
    for name, head in loaded.items():
        for key, value in head.state_dict().items():
            assert torch.equal(value, heads[name].state_dict()[key].float())


def test_recorded_rounds_of_the_draft_model_are_the_engines() -> None:
    """Rounds counted along the texts are those that the engine's benchmark counted, to the bit."""
    ours, engine = (
        {row["case"]: row for row in load_measurement(name)["rows"]}
        for name in ("speculation-heads-cpu", "speculation-acceptance-cpu")
    )
    for k, t in product((2, 3, 4, 8), (0, 1)):
        counted = ours[f"round-draft-k{k}-T{t}"], engine[f"round-draft-k{k}-T{t}-coupled"]
        assert counted[0]["value"] == counted[1]["value"]
        for key in ("low", "high", "steps", "acceptance_1", "acceptance_2_high"):
            assert counted[0]["parameters"][key] == counted[1]["parameters"][key]


def test_card_and_ledger_state_what_was_recorded() -> None:
    rows = {row["case"]: row for row in load_measurement("speculation-heads-cpu")["rows"]}
    card, ledger = (
        " ".join((MODELS.parent / path).read_text("utf8").split())
        for path in ("models/README.md", "measurements/LEDGER.md")
    )
    for name in HEADS:
        positions = f"{rows[f'trained-{name}']['value'] / 1e6:.0f} M"
        assert re.search(rf"`{name}` (?:learned )?from {positions}", card), (name, positions)
        tokens = ", ".join(f"{rows[f'round-{name}-k4-T{t}']['value']:.2f}" for t in (0, 1))
        assert f"; {positions} positions" in ledger
        assert tokens in ledger
    speeds = [rows[f"speed-three-layers-T{t}"]["parameters"] for t in (0, 1)]
    for speed, when in zip(speeds, ("greedily", "at temperature 1"), strict=True):
        low, high = f"{speed['low']:.2f}", f"{speed['high']:.2f}"
        assert re.search(
            rf"{speed['over_draft']:.2f} [a-z' ]*{when} \([^)]*{low} to {high}\)", ledger
        )
