"""The head that drafts from hidden states: its unrolled training, its step, a small training."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import distill
import evaluation_data
import numpy as np
import pytest
import torch
import train_head
from decoder import Decoder, Shape
from head import HEADS, Head, HeadShape, attend, shifted, target_features, unroll
from safetensors.torch import load_file
from torch import Tensor

TARGET = Shape(3, 32, 48, 2, 1, head_dim=16, vocab_size=97, max_position_embeddings=64)
SMALL = {
    "attention": HeadShape(24, 2, hidden_size=32, head_dim=16),
    "recurrent": HeadShape(24, hidden_size=32, head_dim=16),
    "three-layers": HeadShape(24, 2, layers=(1, 2, 3), hidden_size=32, head_dim=16),
}
STEPS = 4


@pytest.fixture(scope="module")
def target() -> Decoder:
    return randomized(Decoder(TARGET))


def randomized(model: torch.nn.Module, std: float = 0.3) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator) * std
        parameter.data = parameter.data + noise if parameter.ndim == 1 else noise
    return model.eval().requires_grad_(False)


def random_ids(*size: int) -> Tensor:
    return torch.randint(97, size, generator=torch.Generator().manual_seed(5))


def tables(target: Decoder, end: int) -> tuple[Tensor, Tensor]:
    return target.get_buffer("cos")[:end], target.get_buffer("sin")[:end]


def chain(head: Head, target: Decoder, ids: Tensor, begin: int) -> list[Tensor]:
    """Outputs of a chain that knows the target's states before position `begin`, step by step."""
    features, _ = target_features(target, head.shape, ids)
    tokens, known = target.embed(ids), shifted(head.fuse(features), 1)
    room = ids.shape[1], head.shape.head_dim
    cache = None
    if head.shape.num_heads:
        cache = torch.zeros(len(ids), *room), torch.zeros(len(ids), *room)
    cos, sin = tables(target, begin + 1)
    output = head(known[:, : begin + 1], tokens[:, : begin + 1], cos, sin, cache)[:, -1:]
    outputs = [output]
    for at in range(begin + 1, begin + STEPS):
        output = head(output, tokens[:, at : at + 1], *tables(target, at + 1), cache)
        outputs.append(output)
    return outputs


@pytest.mark.parametrize("name", SMALL)
def test_unrolled_outputs_are_those_of_chains(name: str, target: Decoder) -> None:
    head = randomized(Head(SMALL[name]))
    assert isinstance(head, Head)
    ids = random_ids(2, 24)
    features, _ = target_features(target, head.shape, ids)
    outputs = unroll(head, features, target.embed(ids), *tables(target, 24), STEPS)
    for begin in (STEPS, 9, 24 - STEPS):
        for step, output in enumerate(chain(head, target, ids, begin)):
            expected = outputs[step][:, begin + step]
            torch.testing.assert_close(output[:, 0], expected, atol=1e-5, rtol=1e-5)


def test_the_first_step_attends_causally() -> None:
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(2, 7, 2, 16, generator=generator)
    k, v = (torch.randn(2, 7, 16, generator=generator) for _ in "kv")
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), k[:, None], v[:, None], is_causal=True, enable_gqa=True
    )
    out = attend(q, [(k, v)])
    torch.testing.assert_close(out, expected.transpose(1, 2).flatten(2), atol=1e-5, rtol=1e-5)


def test_features_end_in_what_the_target_says(target: Decoder) -> None:
    ids = random_ids(2, 12)
    for shape in SMALL.values():
        features, states = target_features(target, shape, ids)
        assert features.shape == (2, 12, shape.feature_size)
        logits = torch.nn.functional.linear(states, target.model.embed_tokens.weight)
        torch.testing.assert_close(logits, target(ids), atol=1e-5, rtol=1e-5)


def test_heads_are_under_a_megabyte_in_bfloat16() -> None:
    for name, shape in HEADS.items():
        size = 2 * sum(p.numel() for p in Head(shape).parameters())
        assert 0.95e6 < size < 1e6, (name, size)


def test_loss_is_what_it_says(target: Decoder) -> None:
    head = randomized(Head(SMALL["recurrent"]))
    assert isinstance(head, Head)
    ids = random_ids(2, 20)
    total, first = train_head.head_loss(head, target, 0.5, steps=1)(ids, ids)
    _, states = target_features(target, head.shape, ids)
    (output,) = unroll(head, states, target.embed(ids), *tables(target, 20), 1)
    states, output, matrix = states[:, 1:], output[:, 1:], target.model.embed_tokens.weight
    p, q = ((x @ matrix.T).double().log_softmax(-1) for x in (states, output))
    hard = -q.gather(-1, p.argmax(-1, keepdim=True)).mean()
    divergence = (p.exp() * (p - q)).sum(-1).mean()
    entropy = -(p.exp() * p).sum(-1).mean()
    assert float(first) == pytest.approx(float(divergence + 0.3 * hard), rel=1e-4)
    scale = states.square().mean().sqrt()
    apart = torch.nn.functional.smooth_l1_loss(output / scale, states / scale)
    expected = divergence + 0.3 * hard + entropy + 0.5 * apart
    assert float(total) == pytest.approx(float(expected), rel=1e-4)


def test_later_steps_weigh_less(target: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    head = randomized(Head(SMALL["attention"]))
    assert isinstance(head, Head)
    losses = iter(torch.tensor([[1.0, 0.0], [2.0, 4.0], [0.0, 0.0]]))
    monkeypatch.setattr(train_head, "output_loss", lambda *_: next(losses))
    total, _ = train_head.head_loss(head, target, 0.5, steps=3)(random_ids(1, 9), random_ids(1, 9))
    assert float(total) == pytest.approx((1 + 0.8 * (2 + 0.5 * 4)) / (1 + 0.8 + 0.64))


def test_a_small_training_lowers_the_loss_and_saves_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole program, on one held-out text and a target cut down to what a test can wait for."""
    document = max(evaluation_data.heldout_documents(), key=lambda d: len(d.ids))
    np.save(tmp_path / "tokens.npy", np.array(document.ids[:6000], dtype=np.uint16))
    for module in (train_head, distill):
        monkeypatch.setattr(module, "ROW", 24)
    monkeypatch.setattr(distill, "PROMPT", 8)
    monkeypatch.setattr(train_head, "VALIDATION_ROWS", 4)
    monkeypatch.setattr(train_head, "UNROLL", 2)
    options = ["--tokens", str(tmp_path / "tokens.npy"), "--out", str(tmp_path / "out")]
    options += ["--heads", "attention", "--positions", "3840", "--written-rows", "16"]
    options += ["--device", "cpu", "--set", "batch_tokens=192"]
    monkeypatch.setattr(sys, "argv", ["train_head.py", *options])
    train_head.main()
    record = json.loads((tmp_path / "out/heads.json").read_text())["heads"]["attention"]
    losses = [row["loss"] for row in record["log"]]
    assert losses[-1] < 0.7 * losses[0], losses
    assert record["positions"] == 3840
    assert len(record["kept"]["greedy"]) == len(record["kept"]["overlap"]) == 8
    weights = load_file(tmp_path / "out/heads.safetensors")
    head = Head(HEADS["attention"])
    head.load_state_dict({k.removeprefix("attention."): v.float() for k, v in weights.items()})
    assert sum(p.numel() for p in head.parameters()) == record["parameters"]


def test_pack_takes_whole_files_in_a_fixed_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [[0, *range(10 * i + 1, 10 * i + 6)] for i in range(20)]
    monkeypatch.setattr(train_head, "documents", lambda split: {"train": texts}[split])
    for name in "ab":
        train_head.pack(tmp_path / f"{name}.npy", num_tokens=33)
    ids = np.load(tmp_path / "a.npy")
    assert ids.dtype == np.uint16
    assert len(ids) == 33
    assert (ids == np.load(tmp_path / "b.npy")).all()
    assert all(ids[at : at + 6].tolist() in texts for at in range(0, 30, 6))
