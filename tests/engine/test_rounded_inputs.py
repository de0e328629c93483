"""A layer rounds what it hands to a product of codes, if that product asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from quire import LLM
from quire.attention.torch_backend import TorchAttention
from quire.kernels.round_inputs import Rounded, Rounding
from quire.layers.linear import Linear, QuantMethod
from quire.models.config import ModelConfig
from quire.models.decoder import Decoder
from quire.models.loader import initialize_random
from quire.quantization.unquantized import Unquantized
from quire.resources import shipped_models

CPU = torch.device("cpu")


class Asks(Unquantized):
    """Plain weights, and a wish for codes once they are there."""

    input_rounding: Rounding

    def finish_load(self, layer: Linear) -> None:
        self.input_rounding = Rounding(torch.int8)

    def apply_rounded(self, layer: Linear, x: Rounded) -> Tensor:
        return self.apply(layer, x.codes.float() * x.scale)


def decoder(asking: Sequence[str]) -> Decoder:
    """A small decoder whose layers of these names ask for codes."""

    def method_for(names: Sequence[str]) -> QuantMethod:
        return Asks() if any(part in names[0] for part in asking) else Unquantized()

    config = ModelConfig.from_folder(shipped_models()["quire-mini-draft"])
    model = Decoder(config, TorchAttention(), 64, torch.float32, CPU, method_for)
    initialize_random(model)
    return model


@pytest.mark.parametrize(
    ("asking", "wanted"),
    [
        (("q_proj",), (True, False, False)),
        (("gate_proj",), (False, True, False)),
        (("down_proj",), (False, False, True)),
        (("_proj",), (True, True, True)),
        ((), (False, False, False)),
    ],
)
def test_who_rounds(asking: Sequence[str], wanted: tuple[bool, ...]) -> None:
    """Each norm and the gate ask the product behind it alone; the last norm has none."""
    model = decoder(asking)
    for layer in model.layers:
        places: tuple[Any, ...] = (
            layer.input_layernorm.rounding,
            layer.post_attention_layernorm.rounding,
            layer.mlp._rounding,
        )
        assert tuple(place is not None for place in places) == wanted
    assert model.norm.rounding is None


def test_a_product_takes_both() -> None:
    """Codes go to the method's own way, and give what the numbers they stand for give."""
    linear = decoder(("gate_proj",)).layers[0].mlp.gate_up_proj
    x = Rounded(
        torch.randint(-127, 128, (3, linear.in_features), dtype=torch.int8), torch.rand(3, 1)
    )
    numbers = x.codes.float() * x.scale
    assert torch.equal(linear(x), linear(numbers))
    assert linear(x).abs().sum() > 0


@pytest.mark.parametrize("scheme", [None, "int8", "fp8"])
def test_a_cpu_rounds_in_the_product(scheme: str | None) -> None:
    """What multiplies on a CPU asks for nothing: its inputs come as they are."""
    llm = LLM("quire-mini-draft", quantization=scheme, device="cpu", num_blocks=300)
    model = llm.engine.executor.worker._model  # type: ignore[attr-defined]
    for layer in model.layers:
        products = (layer.self_attn.qkv_proj, layer.self_attn.o_proj, layer.mlp.down_proj)
        assert all(product.input_rounding is None for product in (*products, layer.mlp))
