"""Readers of quantized weights against what other people's tools wrote.

The oracles: compressed-tensors 0.20's compressors, unpacking and AutoAWQ converter; transformers'
reading of compressed-tensors checkpoints and of FP8 blocks; for GPTQ, words worked out by hand
from GPTQModel 7.3.4's source and `weight_packers`, whose tensors that version's own
`dequantize_weight` was seen to read to the same weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import checkpoints
import pytest
import torch
import weight_packers as packers
from checkpoints import SPECS, TOLERANCE
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized_checkpoints import KINDS, linear_layers, read_all, write_quantized
from torch import Tensor
from transformers import AutoModelForCausalLM, CompressedTensorsConfig
from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

from quire.errors import CheckpointError, UnsupportedModelError
from quire.models.config import ModelConfig
from quire.quantization.checkpoint import QuantConfig
from quire.quantization.codes import Codes
from quire.quantization.formats.awq import AWQ
from quire.quantization.formats.compressed_tensors import Integers
from quire.quantization.formats.fp8 import FP8
from quire.quantization.formats.gptq import GPTQ
from quire.quantization.formats.interface import WeightFormat
from quire.quantization.scheme import Scheme

LAYER = "model.layers.0.mlp.up_proj"
SIZES = [(96, 96), (80, 96), (96, 80), (16, 192)]  # of the tiny models; 80 is no multiple of 32
FEW = settings(max_examples=60, deadline=None)
Tensors = dict[str, Tensor]


def format_of(kind: str) -> WeightFormat:
    stored = QuantConfig.of(KINDS[kind].config).format_for(LAYER)
    assert stored is not None
    return stored


def weight_of(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def words(*numbers: int) -> Tensor:
    """32-bit words as a file has them."""
    return torch.tensor(numbers, dtype=torch.int64).to(torch.int32)  # modulo 2**32


# Every kind ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_reads_as_its_producer_means_it(kind: str, size: tuple[int, int]) -> None:
    stored = format_of(kind)
    tensors, expected = KINDS[kind].pack(weight_of(*size))
    codes = stored.read(tensors, *size)
    codes.check()
    assert torch.equal(codes.dequantize(), expected)
    names = stored.tensors()
    assert set(tensors) <= set(names)
    assert {name for name, required in names.items() if required} <= set(tensors)
    assert codes.bits == stored.scheme.bits
    assert codes.group_size == stored.scheme.group_size
    assert codes.is_float == (stored.scheme.kind == "fp8")
    assert stored.scheme.symmetric == (codes.zero is None)
    assert stored.scheme.inputs == KINDS[kind].inputs
    scale = stored.input_scale(tensors)
    if stored.scheme.inputs == "tensor":
        assert scale is not None
        assert scale.tolist() == [torch.tensor(packers.INPUT_SCALE[stored.scheme.kind]).item()]
    else:
        assert scale is None


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_fused_layer_stack_with_scales_of_their_own(kind: str) -> None:
    stored = format_of(kind)
    parts = {(96, 96): 1.0, (32, 96): 7.0, (16, 96): 0.1}  # 16 rows end inside a block
    read = []
    for (rows, columns), factor in parts.items():
        tensors, dense = KINDS[kind].pack(weight_of(rows, columns, rows) * factor)
        read.append((stored.read(tensors, rows, columns), dense))
    whole = Codes.stack([codes for codes, _ in read])
    whole.check()
    assert torch.equal(whole.dequantize(), torch.cat([dense for _, dense in read]))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", ["ct-int4-g16-asym", "gptq-act-order", "awq-g16", "fp8-blocks"])
def test_every_architecture(spec: str, kind: str, tmp_path: Path) -> None:
    folder, dense_folder = write_quantized(tmp_path, SPECS[spec], KINDS[kind], ["v_proj"])
    dense = read_all(dense_folder)
    for name, weight in dequantized(folder, dense).items():
        assert torch.equal(weight, dense[name]), name


def dequantized(folder: Path, dense: Tensors) -> Tensors:
    """The weights of a checkpoint's linear layers, read by quire; shapes are those of `dense`."""
    model = ModelConfig.from_folder(folder)
    assert model.quantization is not None
    config, tensors = QuantConfig.of(model.quantization, model), read_all(folder)
    weights = {}
    for layer in linear_layers(dense):
        stored, name = config.format_for(layer), f"{layer}.weight"
        if stored is None:
            weights[name] = tensors[name]
            continue
        parts = {last: tensors.get(f"{layer}.{last}") for last in stored.tensors()}
        there = {last: tensor for last, tensor in parts.items() if tensor is not None}
        weights[name] = stored.read(there, *dense[name].shape).dequantize()
    return weights


@pytest.mark.parametrize(
    "kind", ["ct-int4-g16-asym", "ct-int8-channel", "ct-w8a8-asym", "ct-fp8", "ct-fp8-block"]
)
def test_transformers_reads_the_same_model(kind: str, tmp_path: Path) -> None:
    """Its weights, bit for bit, and the logits of a decoder that has ours."""
    pack = KINDS[kind].pack

    def whole_scales(weight: Tensor) -> tuple[Tensors, Tensor]:  # transformers computes in theirs
        tensors, dense = pack(weight)
        return {**tensors, "weight_scale": tensors["weight_scale"].float()}, dense

    spec = SPECS["qwen2"]
    folder, dense_folder = write_quantized(tmp_path, spec, replace(KINDS[kind], pack=whole_scales))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the config is overwritten
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            quantization_config=CompressedTensorsConfig(dequantize=True),
        ).eval()
    ours = dequantized(folder, read_all(dense_folder))
    theirs = model.state_dict()
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name]), name
    decoder = checkpoints.load_decoder(dense_folder)
    tokens = checkpoints.random_prompts([20])[0]
    expected = checkpoints.oracle_logits(model, tokens)
    assert (checkpoints.decoder_logits(decoder, tokens) - expected).abs().max() < TOLERANCE


# compressed-tensors ----------------------------------------------------------------------


@FEW
@given(st.data())
def test_numbers_in_words_with_short_groups_and_rows(data: st.DataObject) -> None:
    """Any numbers, zeros and sizes, packed by compressed-tensors' own function."""
    bits = data.draw(st.sampled_from([2, 4, 8]))
    rows, columns = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 70))
    size = data.draw(st.sampled_from([None, 1, 5, 16, 32]))
    symmetric = data.draw(st.booleans())
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    groups = torch.arange(columns) // (size or columns)
    num_groups, half = int(groups.max()) + 1, 1 << (bits - 1)

    def numbers(*shape: int) -> Tensor:
        return torch.randint(-half, half, shape, generator=generator).to(torch.int8)

    values, zero = numbers(rows, columns), numbers(rows, num_groups)
    scale = torch.rand(rows, num_groups, generator=generator)
    tensors = {"weight_packed": pack_to_int32(values, bits), "weight_scale": scale}
    if not symmetric:
        tensors["weight_zero_point"] = pack_to_int32(zero, bits, packed_dim=0)
    stored = Integers(Scheme("int", bits, size, symmetric=symmetric), packed=True)
    codes = stored.read(tensors, rows, columns)
    codes.check()
    shift = zero.float()[:, groups] * (0 if symmetric else 1)
    assert torch.equal(codes.dequantize(), (values.float() - shift) * scale[:, groups])


def test_order_that_nobody_set_is_no_order() -> None:
    stored = format_of("ct-int4-act-order")
    tensors, _ = KINDS["ct-int4-act-order"].pack(weight_of(16, 96))
    tensors["weight_g_idx"] = torch.full((96,), -1, dtype=torch.int32)
    assert stored.read(tensors, 16, 96).group_of is None


def test_zeros_of_a_symmetric_weight_are_read_if_they_say_so() -> None:
    stored = format_of("ct-w8a8")
    tensors, expected = KINDS["ct-w8a8"].pack(weight_of(16, 96))
    tensors["weight_zero_point"] = torch.zeros(16, 1, dtype=torch.int8)
    assert torch.equal(stored.read(tensors, 16, 96).dequantize(), expected)
    tensors["weight_zero_point"][3] = 1
    with pytest.raises(CheckpointError, match="not 0 in a symmetric weight"):
        stored.read(tensors, 16, 96)


# GPTQ ------------------------------------------------------------------------------------

# Eight columns of eight rows. Column k of row 0 is k: `qweight` packs along the columns, the
# first in the lowest bits, so row 0's word is 0x76543210; row 1's is that of 15 - k.
COLUMNS = words(0x76543210, 0x89ABCDEF, *[0x88888888] * 6).reshape(1, 8)
# Zeros of rows 0 to 7: 0, 5, 0, 0, 8, 15, 1, 0, packed along the rows: 0x01F80050.
ZEROS = [0, 5, 0, 0, 8, 15, 1, 0]
VERSION_2 = 0x01F80050
VERSION_1 = VERSION_2 - 0x11111111  # 0xF0E6EF3F: GPTQModel's `qzeros.data -= 0b0001…0001`


@pytest.mark.parametrize(("version", "word"), [(1, VERSION_1), (2, VERSION_2)])
def test_gptq_by_hand(version: int, word: int) -> None:
    tensors = {
        "qweight": COLUMNS,
        "qzeros": words(word).reshape(1, 1),
        "scales": torch.full((1, 8), 0.5, dtype=torch.float16),
        "g_idx": torch.zeros(8, dtype=torch.int32),
    }
    codes = GPTQ(Scheme("int", 4, None, symmetric=False), version).read(tensors, 8, 8)
    assert codes.zero is not None
    assert codes.zero[:, 0].tolist() == ZEROS
    assert codes.values[0].tolist() == list(range(8))
    assert codes.values[1].tolist() == [15 - k for k in range(8)]
    assert codes.dequantize()[1].tolist() == [(10 - k) * 0.5 for k in range(8)]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("bits", "word"), [(4, 0x77777777), (4, 0x88888888), (8, 0x7F7F7F7F)])
def test_a_symmetric_zero_says_its_version_itself(version: int, bits: int, word: int) -> None:
    numbers = torch.randint(0, 1 << bits, (8, 8), generator=torch.Generator().manual_seed(0))
    tensors = {
        "qweight": packers.as_words(packers.words_of(numbers.T.numpy(), bits)),
        "qzeros": words(word).expand(1, 8 * bits // 32),
        "scales": torch.ones(1, 8),
    }
    codes = GPTQ(Scheme("int", bits, None), version).read(tensors, 8, 8)
    assert codes.zero is None
    assert torch.equal(codes.dequantize(), numbers.float() - (1 << (bits - 1)))


@FEW
@given(st.data())
def test_gptq_of_any_size_and_order(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 70))
    bits, size = data.draw(st.sampled_from([2, 4, 8])), data.draw(st.sampled_from([-1, 8, 32]))
    symmetric, act_order = data.draw(st.booleans()), data.draw(st.booleans())
    version = data.draw(st.sampled_from([1, 2]))
    weight = weight_of(rows, columns, data.draw(st.integers(0, 9))).abs()  # zeros of 0 abound
    tensors, expected = packers.gptq(weight, bits, size, symmetric, version, act_order)
    scheme = Scheme("int", bits, None if size == -1 else size, symmetric=symmetric)
    codes = GPTQ(scheme, version, act_order).read(tensors, rows, columns)
    codes.check()
    assert torch.equal(codes.dequantize(), expected)


def test_groups_in_order_need_no_index() -> None:
    tensors, expected = packers.gptq(weight_of(16, 80), group_size=32)
    stored = GPTQ(Scheme("int", 4, 32))
    assert stored.read(tensors, 16, 80).group_of is None
    del tensors["g_idx"]
    assert torch.equal(stored.read(tensors, 16, 80).dequantize(), expected)


# AWQ -------------------------------------------------------------------------------------


def test_awq_by_hand() -> None:
    """AutoAWQ's order: the eight numbers of a word are rows 0, 2, 4, 6, 1, 3, 5, 7."""
    tensors = {
        "qweight": words(0x75316420).reshape(1, 1),
        "qzeros": words(0x00000001).reshape(1, 1),
        "scales": torch.ones(1, 8),
    }
    codes = AWQ(Scheme("int", 4, None, symmetric=False)).read(tensors, 8, 1)
    assert codes.values[:, 0].tolist() == list(range(8))
    assert codes.dequantize()[:, 0].tolist() == [-1, 1, 2, 3, 4, 5, 6, 7]


@FEW
@given(st.data())
def test_awq_as_compressed_tensors_converts_it(data: st.DataObject) -> None:
    """Any words at all: a file of AutoAWQ, turned by their converter, read by either reader."""
    rows, columns = 8 * data.draw(st.integers(1, 5)), 16 * data.draw(st.integers(1, 4))
    size = data.draw(st.sampled_from([16, columns]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))

    def any_words(*shape: int) -> Tensor:
        return torch.randint(-(2**31), 2**31, shape, generator=generator).to(torch.int32)

    tensors = {
        "qweight": any_words(columns, rows // 8),
        "qzeros": any_words(columns // size, rows // 8),
        "scales": torch.rand(columns // size, rows, generator=generator).half(),
    }
    converter = AutoAWQConverter(group_size=size)
    turned = converter.process({f"{LAYER}.{name}": tensor for name, tensor in tensors.items()})
    theirs = {name.removeprefix(f"{LAYER}."): tensor for name, tensor in turned.items()}
    scheme = Scheme("int", 4, size, symmetric=False)
    codes = AWQ(scheme).read(tensors, rows, columns)
    codes.check()
    expected = Integers(scheme, packed=True).read(theirs, rows, columns)
    assert torch.equal(codes.values, expected.values)
    assert torch.equal(codes.dequantize(), expected.dequantize())


@pytest.mark.parametrize(("rows", "columns"), [(12, 32), (16, 24)])
def test_awq_holds_no_odd_shapes(rows: int, columns: int) -> None:
    with pytest.raises(
        UnsupportedModelError, match=rf"{rows} x {columns} in AWQ.*of the group, 16"
    ):
        AWQ(Scheme("int", 4, 16)).read({}, rows, columns)


# FP8 -------------------------------------------------------------------------------------


@FEW
@given(st.data())
def test_fp8_blocks_that_are_cut_short(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    block = data.draw(st.sampled_from([(16, 16), (8, 32), (1, 16), (128, 128)]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    values = torch.randn(rows, columns, generator=generator).to(torch.float8_e4m3fn)
    blocks = (-(-rows // block[0]), -(-columns // block[1]))
    scale = torch.rand(blocks, generator=generator)
    stored = FP8(Scheme("fp8", 8, block[1], block[0], inputs="group"), "weight_scale_inv")
    codes = stored.read({"weight": values, "weight_scale_inv": scale}, rows, columns)
    codes.check()
    expected = _dequantize_fp8_weight(values, scale, list(block), torch.float32)
    assert torch.equal(codes.dequantize(), expected)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (5,), (5, 1)])
def test_fp8_scales_of_a_matrix_or_of_rows(shape: tuple[int, ...]) -> None:
    values = weight_of(5, 7).to(torch.float8_e4m3fn)
    scale = torch.rand(shape, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    codes = FP8(Scheme("fp8", 8)).read({"weight": values, "weight_scale": scale}, 5, 7)
    codes.check()
    assert torch.equal(codes.dequantize(), values.float() * scale.float().reshape(-1, 1))


# What contradicts ------------------------------------------------------------------------


def without(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(name)


def cut(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: tensors[name][:-1]})


def turned(name: str, dtype: torch.dtype) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: tensors[name].to(dtype)})


def filled(name: str, value: float) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: torch.full_like(tensors[name], value)})


BAD = {
    "no scale": ("ct-int4-g16", without("weight_scale"), "weight_scale is missing beside weight_p"),
    "no words": ("ct-int4-g16", without("weight_packed"), "weight_packed is missing"),
    "no zeros": ("ct-int4-g16-asym", without("weight_zero_point"), "weight_zero_point is missing"),
    "no order": ("ct-int4-act-order", without("weight_g_idx"), "weight_g_idx is missing"),
    "no input scale": ("ct-fp8-tensor", without("input_scale"), "input_scale is missing"),
    "input scale of 0": ("ct-w8a8-static", filled("input_scale", 0), "input_scale is 0"),
    "short words": ("ct-int4-g16", cut("weight_packed"), r"int32 \[15, 12\].*int32 \[16, 12\]"),
    "short scales": ("ct-int4-g16", cut("weight_scale"), r"weight_scale is torch.bfloat16 \[15, 6"),
    "short zeros": ("ct-w8a8-asym", cut("weight_zero_point"), r"weight_zero_point.*16 x 1 groups"),
    "another shape": ("ct-int4-g16", filled("weight_shape", 7), r"weight_shape says \[7, 7\]"),
    "whole scales": (
        "ct-int4-g16",
        turned("weight_scale", torch.int8),
        "weight_scale is torch.int8.*floating-point numbers",
    ),
    "scales not finite": ("ct-fp8", filled("weight_scale", torch.nan), "are not finite"),
    "no FP8 numbers": ("ct-fp8", turned("weight", torch.bfloat16), "weight is torch.bfloat16"),
    "no bytes": ("ct-w8a8", turned("weight", torch.int16), "weight is torch.int16"),
    "GPTQ without order": ("gptq-act-order", without("g_idx"), "g_idx is missing"),
    "GPTQ's short index": ("gptq-g32", cut("g_idx"), r"g_idx is torch.int32 \[95\]"),
    "GPTQ's index of one group": ("gptq-g32", filled("g_idx", 0), "gives group 1 no column"),
    "GPTQ's index too far": ("gptq-g32", filled("g_idx", 3), "from 3 to 3; there are 3 groups"),
    "GPTQ's odd zeros": (
        "gptq-g32",
        filled("qzeros", 0x55555555),
        r"qzeros holds \[5\] in a symmetric weight.*set sym to false",
    ),
    "GPTQ's short words": ("gptq-g32", cut("qweight"), r"\[11, 16\].*\[12, 16\]"),
    "AWQ without zeros": ("awq-g16", without("qzeros"), "qzeros is missing"),
    "AWQ's odd zeros": ("awq-g16-symmetric", filled("qzeros", 0), "zero_point to true"),
    "blocks missing": ("fp8-small-blocks", cut("weight_scale_inv"), r"\[0, 2\].*\[1, 2\]"),
}


@pytest.mark.parametrize(("kind", "spoil", "message"), BAD.values(), ids=BAD)
def test_what_contradicts_the_config_is_named(
    kind: str, spoil: Callable[[Tensors], object], message: str
) -> None:
    stored = format_of(kind)
    tensors, _ = KINDS[kind].pack(weight_of(16, 96))
    spoil(tensors)
    use = stored.input_scale if "input_scale" in message else lambda it: stored.read(it, 16, 96)
    with pytest.raises(CheckpointError, match=message):
        use(tensors)


def test_small_integers_in_bytes_must_fit() -> None:
    stored = Integers(Scheme("int", 4, None), packed=False)
    tensors = {"weight": torch.full((8, 8), 7, dtype=torch.int8), "weight_scale": torch.ones(8, 1)}
    assert torch.equal(stored.read(tensors, 8, 8).dequantize(), torch.full((8, 8), 7.0))
    tensors["weight"][2, 2] = 8
    with pytest.raises(CheckpointError, match="weight reaches from 7 to 8; integers of 4 bits"):
        stored.read(tensors, 8, 8)
