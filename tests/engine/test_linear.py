"""What multiplies on a CPU: chosen by the weights, equal to the product in float64."""

from __future__ import annotations

import pytest
import torch

from quire.layers.linear import Linear
from quire.quantization.cpu import FBGEMM, CPUFloat32, OneDNN
from quire.quantization.factory import unquantized
from quire.quantization.unquantized import Unquantized

CPU = torch.device("cpu")
needs_fbgemm = pytest.mark.skipif(not FBGEMM.available(), reason="torch has no FBGEMM here")


def loaded(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
    """Return a layer of a float32 weight, ready to multiply."""
    out_features, in_features = weight.shape
    layer = Linear(
        in_features,
        {"out": out_features},
        unquantized(torch.float32, CPU),
        bias=bias is not None,
        dtype=torch.float32,
        device=CPU,
    )
    for name, tensor in {"out.weight": weight, "out.bias": bias}.items():
        if tensor is not None:
            layer.takes()[name].take(tensor)
    layer.finish_load()
    return layer


def random(*shape: int, std: float = 0.02) -> torch.Tensor:
    return std * torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@needs_fbgemm
@pytest.mark.parametrize("num_tokens", [0, 1, 2, 7, 65, 1030])
@pytest.mark.parametrize("with_bias", [False, True])
def test_weights_of_16_bits_lose_nothing(num_tokens: int, with_bias: bool) -> None:
    """As close to the float64 product as any sum of 96 float32 products can be expected to be."""
    weight, x = random(48, 96).bfloat16().float(), random(num_tokens, 96, std=1.0)
    bias = random(48) if with_bias else None
    layer = loaded(weight, bias)
    assert isinstance(layer.method, FBGEMM)
    exact = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    magnitude = x.double().abs() @ weight.double().abs().T
    assert ((layer(x) - exact).abs() <= 2**-22 * magnitude + 1e-8).all()


def test_weights_trained_in_float32_stay_in_float32() -> None:
    weight, x = random(48, 96), random(3, 96, std=1.0)
    layer = loaded(weight)
    assert isinstance(layer.method, OneDNN if OneDNN.available() else Unquantized)
    assert not isinstance(layer.method, FBGEMM | CPUFloat32)
    torch.testing.assert_close(layer(x), x @ weight.T, rtol=0, atol=1e-6)


@needs_fbgemm
@pytest.mark.parametrize(
    ("weight", "suits"),
    [
        (torch.zeros(4, 4), True),
        (torch.tensor([[0.5, 2.0**-14]]), True),
        (torch.tensor([[0.5, 2.0**-14 + 2.0**-20]]), True),  # a bfloat16 that float16 has too
        (torch.tensor([[2.0**-20 + 2.0**-27] * 4]), False),  # all too small for float16's bits
        (torch.tensor([[70_000.0, 0.1]]), False),  # beyond float16's largest
        (torch.tensor([[float("nan"), 0.1]]), False),
    ],
)
def test_what_float16_can_hold(weight: torch.Tensor, suits: bool) -> None:
    assert FBGEMM.suits(weight) is suits


@needs_fbgemm
def test_one_bad_row_of_many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight is looked over piece by piece, and what is lost is weighed against the whole."""
    weight = random(40, 96).bfloat16().float()
    bad, slightly = weight.clone(), weight.clone()
    bad[37] += 1e-4
    slightly[37, 0] += 1e-9
    for elements in (1, 96 * 7, 1 << 22):
        monkeypatch.setattr(FBGEMM, "ELEMENTS_AT_ONCE", elements)
        assert [FBGEMM.suits(w) for w in (weight, bad, slightly)] == [True, False, True]


@pytest.mark.parametrize("rounded", [True, False])
def test_the_weight_that_is_multiplied_by(rounded: bool) -> None:
    """Whatever a method packs, it can unpack."""
    weight = random(48, 96)
    weight = weight.bfloat16().float() if rounded else weight
    layer = loaded(weight, random(48))
    assert torch.equal(layer.method.dequantize(layer), weight)


@needs_fbgemm
def test_a_packed_weight_is_not_asked_for_torch_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer is a C++ exception, which takes longer than a small product."""
    layer, asked = loaded(random(48, 96).bfloat16().float()), []

    def answer(packed: object, name: str) -> object:
        asked.append(name)
        raise AttributeError(name)

    monkeypatch.setattr(torch.ScriptObject, "__getattr__", answer)
    layer(random(1, 96))
    assert asked == []
    torch.ops.quantized.linear_dynamic_fp16.op(random(1, 96), layer.packed)
    assert asked == ["__torch_function__"]  # else the test sees nothing


@needs_fbgemm
def test_the_shipped_model_is_read_at_two_bytes_a_weight() -> None:
    from quire.llm import LLM

    llm = LLM("quire-mini", device="cpu", dtype="float32", max_num_seqs=1)
    model = llm.engine.executor.worker.runner._parts.model
    methods = {type(m.method) for m in model.modules() if isinstance(m, Linear)}
    assert methods == {FBGEMM}
