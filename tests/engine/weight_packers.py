"""What other people's tools store for one weight, and the weight that this stands for.

compressed-tensors' own compressors write its formats. GPTQ's and AWQ's tools need a GPU or an
old torch, so their words are packed here, number by number, as their sources say: GPTQModel
7.3.4, `gptqmodel/nn_modules/qlinear/__init__.py` (`pack_original`) and `gptqmodel/utils/model.py`
(`convert_gptq_v2_to_v1_format_module`); AutoAWQ 0.2.9, `awq/modules/linear/gemm.py`
(`WQLinear_GEMM.from_linear`). quire's readers have no part in any of it.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
from compressed_tensors.quantization.utils import calculate_qparams
from torch import Tensor
from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

E4M3 = torch.float8_e4m3fn
INPUT_SCALE = {"int": 0.03, "fp8": 0.01}  # fixed ones: the inputs of a norm reach from -3 to 3

Tensors = dict[str, Tensor]


def words_of(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Pack rows of numbers [count, columns] into 32-bit words [count * bits / 32, columns].

    Row r * 8 + j lies in word r, shifted by j times the bits; a last word is filled with zeros.
    """
    per_word = 32 // bits
    words = np.zeros((-(-len(numbers) // per_word), numbers.shape[1]), dtype=np.uint32)
    for row, values in enumerate(numbers):
        words[row // per_word] |= values.astype(np.uint32) << np.uint32(row % per_word * bits)
    return words


def as_words(words: np.ndarray) -> Tensor:
    """Words as the files have them, int32."""
    return torch.from_numpy(np.ascontiguousarray(words).view(np.int32))


def rounded(weight: Tensor, groups: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, ...]:
    """Numbers int64 [N, K], zeros int64 [N, G] and float16 scales [N, G] of a weight.

    Of an asymmetric one some zeros are set to the least and the largest, so that all occur.
    """
    top, num_groups = (1 << bits) - 1, int(groups.max()) + 1
    columns = [weight[:, groups == group] for group in range(num_groups)]
    least = torch.stack([part.amin(1).clamp(max=0) for part in columns], 1)
    most = torch.stack([part.amax(1).clamp(min=0) for part in columns], 1)
    if symmetric:
        scale = (2 * torch.maximum(-least, most) / top).half()
        zero = torch.full(scale.shape, 1 << (bits - 1))
    else:
        scale = ((most - least) / top).half()
        zero = (-least / scale.float()).round().clamp(0, top).long()
        zero[::7], zero[3::7] = 0, top
    numbers = (weight / scale.float()[:, groups] + zero[:, groups]).round().clamp(0, top).long()
    return numbers, zero, scale


def gptq(
    weight: Tensor,
    bits: int = 4,
    group_size: int = -1,
    symmetric: bool = True,
    version: int = 1,
    act_order: bool = False,
) -> tuple[Tensors, Tensor]:
    """GPTQ's `qweight`, `qzeros`, `scales` and `g_idx`; a last group may be short."""
    columns = weight.shape[1]
    groups = torch.arange(columns) // (columns if group_size == -1 else group_size)
    if act_order:  # layers with the same input have the same order, and so have all of a width
        groups = groups[torch.randperm(columns, generator=torch.Generator().manual_seed(columns))]
    numbers, zero, scale = rounded(weight, groups, bits, symmetric)
    qzeros = words_of(zero.numpy(), bits).T  # along the rows
    if version == 1:
        ones = sum(1 << shift for shift in range(0, 32, bits))
        qzeros = qzeros - np.uint32(ones)  # from the whole word, modulo 2**32
    tensors = {
        "qweight": as_words(words_of(numbers.T.numpy(), bits)),
        "qzeros": as_words(qzeros),
        "scales": scale.T.contiguous(),
        "g_idx": groups.int(),
    }
    return tensors, (numbers - zero[:, groups]) * scale.float()[:, groups]


def awq(weight: Tensor, group_size: int, zero_point: bool = True) -> tuple[Tensors, Tensor]:
    """AutoAWQ's `qweight`, `qzeros` and `scales` of version "gemm"."""
    rows, columns = weight.shape
    groups = torch.arange(columns) // group_size
    numbers, zero, scale = rounded(weight, groups, 4, not zero_point)

    def pack(values: Tensor) -> Tensor:
        matrix = values.T.numpy()  # [K or G, N]
        words = np.zeros((len(matrix), rows // 8), dtype=np.uint32)
        for word in range(rows // 8):
            for place, row in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
                shifted = matrix[:, word * 8 + row].astype(np.uint32) << np.uint32(4 * place)
                words[:, word] |= shifted
        return as_words(words)

    tensors = {"qweight": pack(numbers), "qzeros": pack(zero), "scales": scale.T.contiguous()}
    return tensors, (numbers - zero[:, groups]) * scale.float()[:, groups]


def fp8_blocks(weight: Tensor, block: tuple[int, int]) -> tuple[Tensors, Tensor]:
    """`weight` and `weight_scale_inv` as DeepSeek and Qwen publish them; blocks may be cut short.

    What they stand for is transformers' own reading.
    """
    rows, columns = weight.shape
    values = torch.empty_like(weight, dtype=E4M3)
    scale = torch.empty(-(-rows // block[0]), -(-columns // block[1]))
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            part = (
                slice(i * block[0], (i + 1) * block[0]),
                slice(j * block[1], (j + 1) * block[1]),
            )
            scale[i, j] = weight[part].abs().max() / 448
            values[part] = (weight[part] / scale[i, j]).to(E4M3)
    dense = _dequantize_fp8_weight(values, scale, list(block), torch.float32)
    return {"weight": values, "weight_scale_inv": scale}, dense


def compressed(scheme: QuantizationScheme, weight: Tensor) -> tuple[Tensors, Tensor]:
    """What compressed-tensors' compressor of the scheme's format stores, and makes of it again."""
    args = scheme.weights
    assert args is not None
    if args.strategy == "block":
        assert args.block_structure is not None
        height, width = args.block_structure
        rows, columns = weight.shape
        whole = F.pad(weight, (0, -columns % width, 0, -rows % height))
        blocks = whole.unflatten(0, (-1, height)).unflatten(2, (-1, width))
        least, most = blocks.amin((1, 3)), blocks.amax((1, 3))
    elif args.strategy == "tensor":
        least, most = weight.amin().reshape(1), weight.amax().reshape(1)
    else:
        parts = weight.unflatten(
            1, (-1, args.group_size if args.strategy == "group" else weight.shape[1])
        )
        least, most = parts.amin(-1), parts.amax(-1)
    scale, zero = calculate_qparams(least, most, args)
    scale = scale.to(torch.bfloat16).float()
    if not args.symmetric:
        zero[::7], zero[3::7] = -(1 << (args.num_bits - 1)), (1 << (args.num_bits - 1)) - 1
    compressor = BaseCompressor.get_value_from_registry(str(scheme.format))
    state = {"weight": weight, "weight_scale": scale}
    if not args.symmetric:
        state["weight_zero_point"] = zero
    tensors = compressor.compress(state, scheme)
    dense = compressor.decompress(tensors, scheme)["weight"]
    inputs = scheme.input_activations
    if inputs is not None and not inputs.dynamic:
        kind = "fp8" if inputs.type == "float" else "int"
        tensors["input_scale"] = torch.tensor([INPUT_SCALE[kind]])
    tensors["weight_scale"] = tensors["weight_scale"].to(torch.bfloat16)
    return tensors, dense


def out_of_order(weight: Tensor, group_size: int) -> tuple[Tensors, Tensor]:
    """compressed-tensors' old act-order: the columns are grouped in the order of `weight_g_idx`.

    The library wrote it until 0.19 and refuses it since, so the columns are sorted first, and
    its functions see groups in order.
    """
    columns = weight.shape[1]
    args = QuantizationArgs(num_bits=4, group_size=group_size)
    groups = torch.arange(columns) // group_size
    groups = groups[torch.randperm(columns, generator=torch.Generator().manual_seed(columns))]
    order = groups.argsort(stable=True)
    parts = weight[:, order].unflatten(1, (-1, group_size))
    scale, zero = calculate_qparams(parts.amin(-1), parts.amax(-1), args)
    numbers = quantize(weight[:, order], scale, zero, args, dtype=torch.int8)
    dense = dequantize(numbers, scale, zero, args)
    back = order.argsort()
    tensors = {
        "weight_packed": pack_to_int32(numbers[:, back].contiguous(), 4),
        "weight_scale": scale,
        "weight_shape": torch.tensor(weight.shape),
        "weight_g_idx": groups.int(),
    }
    return tensors, dense[:, back].contiguous()
