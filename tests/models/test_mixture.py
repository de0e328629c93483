"""quire-mini-moe's decoder, balance loss, router figures and gate, against transformers."""

from __future__ import annotations

import json
import lzma
import math
from pathlib import Path
from typing import Any

import balance
import code_and_prose
import moe_gate
import numpy as np
import optim
import pytest
import torch
from moe_decoder import QUIRE_MINI_MOE, MoEDecoder, MoEShape, Routing, choose
from pace import COMPILED, Pace
from safetensors.torch import load_file
from torch import nn
from train import documents, export, measure
from train_moe import balanced_loss
from transformers import AutoModelForCausalLM
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

SMALL = MoEShape(
    num_hidden_layers=2,
    hidden_size=32,
    intermediate_size=48,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    vocab_size=97,
    max_position_embeddings=64,
    num_experts=5,
    num_experts_per_tok=2,
    moe_intermediate_size=24,
    router_aux_loss_coef=0.01,
)


def random_model(shape: MoEShape, std: float = 0.3) -> MoEDecoder:
    generator = torch.Generator().manual_seed(3)
    model = MoEDecoder(shape)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator) * std
        # Rounded, so that the bfloat16 of a checkpoint loses nothing.
        parameter.data = (parameter.data + noise).bfloat16().float()
    return model.eval()


def random_ids(shape: MoEShape, *size: int) -> torch.Tensor:
    return torch.randint(shape.vocab_size, size, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def model() -> MoEDecoder:
    return random_model(SMALL)


@pytest.fixture(scope="module")
def folder(model: MoEDecoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("mixture")
    export(model, path)
    return path


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    model_class: Any = AutoModelForCausalLM
    loaded, told = model_class.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not told["missing_keys"], told
    assert not told["unexpected_keys"], told
    return loaded.eval()


def test_the_checkpoint_is_a_qwen3_moe_of_transformers(model: MoEDecoder, reference: Any) -> None:
    assert type(reference).__name__ == "Qwen3MoeForCausalLM"
    ids = random_ids(SMALL, 3, 40)
    with torch.inference_mode():
        ours, theirs = model(ids), reference(ids).logits
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_renormalisation_and_the_number_of_experts_change_the_logits(
    model: MoEDecoder, folder: Path
) -> None:
    """The two settings whose loss would be silent: transformers' defaults differ from ours."""
    ids = random_ids(SMALL, 2, 20)
    with torch.inference_mode():
        ours = model(ids)
        for change in ({"norm_topk_prob": False}, {"num_experts_per_tok": 1}):
            other: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **change)
            assert (other.eval()(ids).logits - ours).abs().max() > 1e-2


def test_experts_are_saved_one_matrix_each(model: MoEDecoder, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    experts = {name for name in tensors if ".experts." in name}
    assert experts == {
        f"model.layers.{layer}.mlp.experts.{expert}.{projection}_proj.weight"
        for layer in range(SMALL.num_hidden_layers)
        for expert in range(SMALL.num_experts)
        for projection in ("gate", "up", "down")
    }
    assert tensors["model.layers.1.mlp.experts.3.down_proj.weight"].shape == (32, 24)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    again = MoEDecoder(SMALL)
    again.load_checkpoint(tensors)
    for name, parameter in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], parameter), name
    del tensors["model.layers.1.mlp.experts.3.down_proj.weight"]
    with pytest.raises(RuntimeError, match="down_proj"):
        again.load_checkpoint(tensors)


def test_the_gradient_is_that_of_the_sparse_layer(model: MoEDecoder, reference: Any) -> None:
    ids = random_ids(SMALL, 2, 24)
    model.zero_grad()
    reference.zero_grad()
    inputs, targets = ids[:, :-1], ids[:, 1:]
    for logits in (model(inputs), reference(inputs).logits):
        nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    theirs = reference.model.layers[1].mlp
    ours: Any = model.model.layers[1].mlp
    assert theirs.gate.weight.grad.abs().max() > 1e-3
    torch.testing.assert_close(ours.gate.weight.grad, theirs.gate.weight.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        ours.experts.down_proj.grad, theirs.experts.down_proj.grad, atol=1e-5, rtol=1e-4
    )
    model.zero_grad()


def test_the_shape_of_quire_mini_moe() -> None:
    model = MoEDecoder(QUIRE_MINI_MOE)
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_303_616
    config = QUIRE_MINI_MOE.config()
    assert config["norm_topk_prob"] is True
    assert json.loads(json.dumps(config)) == config


# Router.


@pytest.mark.parametrize("count", [1, 2, 3])
def test_choose_takes_the_largest_and_never_more_at_ties(count: int) -> None:
    probabilities = torch.rand(200, 7, generator=torch.Generator().manual_seed(1))
    chosen = choose(probabilities, count)
    ids = probabilities.topk(count).indices
    assert torch.equal(chosen, torch.zeros_like(chosen).scatter(1, ids, True))
    assert (choose(torch.full((4, 7), 1 / 7), count).sum(-1) == count).all()


def test_balance_loss_is_that_of_transformers_layer_by_layer(
    model: MoEDecoder, reference: Any
) -> None:
    ids = random_ids(SMALL, 2, 30)
    with torch.inference_mode():
        _, routings = model.routed(ids)
        logits = reference(ids, output_router_logits=True).router_logits
    assert len(logits) == SMALL.num_hidden_layers
    for routing, layer in zip(routings, logits, strict=True):
        theirs = load_balancing_loss_func((layer,), SMALL.num_experts, 2)
        assert isinstance(theirs, torch.Tensor)
        torch.testing.assert_close(balance.balance_loss(routing), theirs, atol=1e-5, rtol=1e-5)


def test_balance_loss_of_an_even_and_of_a_collapsed_router() -> None:
    probabilities = torch.full((1, 10, 5), 0.2)
    even = torch.eye(5, dtype=torch.bool).repeat(2, 1)[None]
    even |= even.roll(1, -1)
    assert float(balance.balance_loss(Routing(probabilities, even))) == pytest.approx(2.0)
    sure = torch.zeros(1, 10, 5)
    sure[..., 1] = 1.0
    one = torch.zeros(1, 10, 5, dtype=torch.bool)
    one[..., :2] = True
    assert float(balance.balance_loss(Routing(sure, one))) == pytest.approx(5.0)


def test_training_on_the_balance_loss_spreads_the_load() -> None:
    """A router with a favourite, the first expert, learns from the balance loss alone."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(1, 400, 8, generator=generator)
    x[..., 0] = 1.0
    weight = 0.3 * torch.randn(5, 8, generator=generator)
    weight[0, 0] = 3.0
    weight.requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=0.05)
    skew = []
    for _ in range(100):
        probabilities = (x @ weight.T).softmax(-1)
        routing = Routing(probabilities, choose(probabilities, 2))
        skew.append(float(balance.max_over_mean(routing.chosen.sum((0, 1)))))
        optimizer.zero_grad()
        balance.balance_loss(routing).backward()
        optimizer.step()
    assert skew[0] > 2.0
    assert skew[-1] < 1.3


def test_the_training_loss_adds_its_parts(model: MoEDecoder) -> None:
    ids = random_ids(SMALL, 2, 21)
    inputs, targets = ids[:, :-1], ids[:, 1:]
    with torch.inference_mode():
        total, ce = balanced_loss(model, z_loss=0.5)(inputs, targets)
        logits, routings = model.routed(inputs)
    plain = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(ce, plain)
    squared = logits.logsumexp(-1).square().mean()
    balances = sum(float(balance.balance_loss(routing)) for routing in routings)
    expected = float(ce) + 0.5 * float(squared) + 0.01 * balances / SMALL.num_hidden_layers
    assert float(total) == pytest.approx(expected, rel=1e-5)


def test_tokens_are_counted_once_and_padding_never(model: MoEDecoder) -> None:
    texts = [random_ids(SMALL, length).tolist() for length in (1, 7, 64, 100)]
    counts = balance.tokens_per_expert(model, texts, window=40, batch=3)
    assert counts.sum(-1).tolist() == [2 * 172] * SMALL.num_hidden_layers
    one_by_one = sum(balance.tokens_per_expert(model, [text], window=40) for text in texts)
    # bfloat16 products may round a near tie the other way in a batch of another width.
    assert int((counts - one_by_one).abs().sum()) <= 0.03 * int(counts.sum())


def test_figures_of_loads() -> None:
    even, one = torch.full((1, 4), 25), torch.tensor([[100, 0, 0, 0]])
    assert balance.max_over_mean(torch.cat((even, one))).tolist() == [1.0, 4.0]
    assert balance.distance(even, one).tolist() == [0.75]
    assert balance.distance(one, 3 * one).tolist() == [0.0]


# Gate.


def loads_by_text(monkeypatch: pytest.MonkeyPatch, loads: dict[int, list[int]]) -> None:
    """Replaces the counting: a text's load is that of its first id."""

    def count(model: MoEDecoder, documents: list[list[int]]) -> torch.Tensor:
        return sum((torch.tensor([loads[text[0]]]) for text in documents), torch.zeros(1, 4).long())

    monkeypatch.setattr(moe_gate, "tokens_per_expert", count)


@pytest.mark.parametrize(
    ("bits", "loads", "fails"),
    [
        (0.7, {0: [70, 10, 10, 10], 1: [10, 70, 10, 10]}, []),
        (0.81, {0: [70, 10, 10, 10], 1: [10, 70, 10, 10]}, ["bits_per_byte"]),
        (0.7, {0: [30, 23, 24, 23], 1: [10, 70, 10, 10]}, ["skew"]),
        (0.7, {0: [70, 10, 10, 10], 1: [70, 10, 10, 10]}, ["code_unlike_prose"]),
    ],
)
def test_the_gate_names_what_fails(
    bits: float,
    loads: dict[int, list[int]],
    fails: list[str],
    model: MoEDecoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads_by_text(monkeypatch, loads)
    record = moe_gate.gate(model, bits, code=[[0], [0]], prose=[[1], [1], [1]])
    assert [name for name, passed in record["verdicts"].items() if not passed] == fails
    assert record["passes"] is (not fails)
    assert record["loads"] == {
        "code": [[2 * n for n in loads[0]]],
        "prose": [[3 * n for n in loads[1]]],
    }


def test_texts_that_differ_among_themselves_do_not_pass_for_two_sorts(
    model: MoEDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads_by_text(monkeypatch, {0: [70, 10, 10, 10], 1: [10, 70, 10, 10]})
    record = moe_gate.gate(model, 0.7, code=[[0], [1]], prose=[[1], [1], [0], [1]])
    assert record["verdicts"]["code_unlike_prose"] is False


def test_a_corpus_that_is_not_the_recorded_one_gives_no_figure(
    model: MoEDecoder, tmp_path: Path
) -> None:
    ids = np.array([0, 5, 6, 0, 7], "<u2")
    (tmp_path / "validation.bin.xz").write_bytes(lzma.compress(ids.tobytes()))
    assert documents("validation", tmp_path) == [[0, 5, 6], [0, 7]]
    with pytest.raises(ValueError, match=r"validation in .* has 5 tokens, corpus.json records"):
        measure(model, tmp_path)


# Code and prose.

SOURCE = '''"""Reads a file of lines and gives back those that hold a word.

    >>> this is no prose although it has quite a few words in it

Args:
    path: where the file stands, which may be relative to the folder
"""
import os


class Reader:
    """Holds one open file and the words that were found in it so far."""

    def words(self):
        """Short."""
        text = """A string that is no docstring stays with the code, however long it is."""
        return text.split(" ")
'''


def test_docstrings_leave_the_code_and_their_sentences_are_the_prose() -> None:
    code, prose = code_and_prose.split(SOURCE)
    assert prose.split("\n\n") == [
        "Reads a file of lines and gives back those that hold a word.",
        "Holds one open file and the words that were found in it so far.",
    ]
    assert '"""A string that is no docstring' in code
    assert "import os" in code
    assert "def words(self):" in code
    for gone in ("Reads a file", "Args:", "Holds one", "Short."):
        assert gone not in code


def test_there_is_enough_of_both_sorts() -> None:
    sizes = {sort: sum(map(len, group)) for sort, group in code_and_prose.texts().items()}
    assert sizes["code"] > 1_000_000
    assert sizes["prose"] > 100_000


# Training.


def test_a_stack_of_experts_is_updated_matrix_by_matrix() -> None:
    generator = torch.Generator().manual_seed(2)
    start, gradient = torch.randn(2, 3, 16, 8, generator=generator).unbind(0)
    stack = nn.Parameter(start.clone())
    parts = [nn.Parameter(matrix.clone()) for matrix in start]
    stack.grad = gradient.clone()
    for part, matrix in zip(parts, gradient, strict=True):
        part.grad = matrix.clone()
    for params in ([stack], parts):
        optim.Muon(params, lr=0.1, momentum=0.9, weight_decay=0.1).step()
    torch.testing.assert_close(stack.data, torch.stack([part.data for part in parts]))
    assert (stack.data - start).abs().max() > 0.01


def test_a_run_without_limit_counts_its_steps() -> None:
    pace = Pace(20, seconds=None, clock=lambda: math.nan)
    places = []
    while not pace.ended:
        places.append(pace.at)
        pace.advance()
    assert places == [float(step) for step in range(20)]


def test_a_slow_run_ends_in_time_and_at_the_end_of_its_schedule() -> None:
    now = iter(range(1000))
    pace = Pace(1000, seconds=50, clock=lambda: float(next(now)))  # one second a step
    places = []
    while not pace.ended:
        places.append(pace.at)
        pace.advance()
    assert pace.done == COMPILED + 50
    assert places[:COMPILED] == [float(step) for step in range(COMPILED)]
    assert places == sorted(places)
    assert 970 <= places[-1] < 1000
