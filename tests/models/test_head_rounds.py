"""Rounds of heads, counted from texts: against a walk draft by draft, and the formula's speed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from decoder import Decoder, Shape
from head import HEADS, Head
from head_costs import Costs
from head_rounds import Said, load_heads, model_agrees, speed_rows, walk
from safetensors.torch import save_file
from torch import Tensor

from quire.bench.measurement import Row


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
    costs = Costs(100.0, {1: 110.0, 2: 130.0}, {("a", 1): 15.0, ("a", 2): 20.0}, {})
    assert costs.round("a", 2) == pytest.approx((130 + 15 + 5) / 100)
    rows = [
        Row(
            f"round-a-k{k}-T0",
            "tokens_per_round",
            value,
            "tokens",
            {},
            {"k": k, "temperature": 0.0, "low": value - 0.1, "high": value + 0.1},
        )
        for k, value in ((1, 1.8), (2, 2.1))
    ]
    (best,) = speed_rows(rows, costs)
    assert best.case == "speed-a-T0"
    assert best.parameters["k"] == 1
    assert best.value == pytest.approx(1.8 / 1.25)
    assert best.parameters["low"] == pytest.approx(1.7 / 1.25)


def test_heads_come_back_by_name(tmp_path: Path) -> None:
    heads = {name: Head(shape).bfloat16() for name, shape in HEADS.items()}
    weights = {f"{n}.{k}": v for n, head in heads.items() for k, v in head.state_dict().items()}
    save_file(weights, tmp_path / "heads.safetensors")
    loaded = load_heads(tmp_path)
    assert list(loaded) == sorted(HEADS)
    for name, head in loaded.items():
        for key, value in head.state_dict().items():
            assert torch.equal(value, heads[name].state_dict()[key].float())
