"""Codes to a checkpoint that other engines load: tensors, their names, `quantization_config`.

Integers and FP8 with a scale a row go out as compressed-tensors (the keys are those of its
`QuantizationConfig`, version 0.20): packed into words where inputs stay as they are, a byte
each where inputs are rounded too. Blocks of FP8 go out as Qwen3 and DeepSeek publish them. The
formats are described in the chapter "Quantization" and read by `quire.quantization.formats`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quire.errors import QuireError
from quire.quantization.codes import Codes
from quire.quantization.scheme import Scheme

PACKED_BITS = (4, 8)  # what engines have kernels for


def check_writable(scheme: Scheme) -> None:
    """Raise QuireError unless a checkpoint can hold a scheme's weights."""
    if scheme.kind == "int" and scheme.bits not in PACKED_BITS:
        raise QuireError(
            f"scheme {scheme}: checkpoints for serving hold integers of 4 or 8 bits; choose "
            "int4-g128 or int8-g128, say"
        )


def is_packed(scheme: Scheme) -> bool:
    """Whether a scheme's integers lie in 32-bit words."""
    return scheme.kind == "int" and scheme.inputs == "plain"


# docs: tensors begin
def stored_tensors(codes: Codes, scheme: Scheme, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return what stands for a weight in a checkpoint, by the last part of its name.

    Args:
        codes: of the weight, [N, K].
        scheme: of the weight.
        dtype: the model's, in which scales are stored; of blocks they are float32.
    """
    if scheme.block_rows > 1:
        scale = codes.scale[:: scheme.block_rows].contiguous()  # [N / 128, K / 128]
        return {"weight": codes.values, "weight_scale_inv": scale}
    scale = codes.scale.to(dtype)
    if not is_packed(scheme):
        values = codes.values
        if not codes.is_float:
            values = (codes.values ^ (1 << (scheme.bits - 1))).view(torch.int8)  # minus half
        return {"weight": values, "weight_scale": scale}
    tensors = {
        "weight_packed": pack(codes.values, scheme.bits),
        "weight_scale": scale,
        "weight_shape": torch.tensor(codes.values.shape),
    }
    if codes.zero is not None:  # along the rows: the numbers of a column share words
        tensors["weight_zero_point"] = pack(codes.zero.T, scheme.bits).T.contiguous()
    return tensors


def pack(values: Tensor, bits: int) -> Tensor:
    """Return small integers, uint8 [R, C], in words: int32 [R, ⌈C · bits / 32⌉].

    The first number takes the lowest bits. compressed-tensors stores a signed number with half
    its range added, which is what codes are.
    """
    rows, columns = values.shape
    expanded = np.unpackbits(
        values.contiguous().numpy()[..., None], axis=-1, count=bits, bitorder="little"
    )
    packed = np.packbits(expanded.reshape(rows, columns * bits), axis=-1, bitorder="little")
    words = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 4))).view("<i4")
    return torch.from_numpy(words)


# docs: tensors end


def quantization_config(scheme: Scheme, ignore: Sequence[str]) -> dict[str, Any]:
    """Return the table of `config.json` that says how the weights are stored.

    Args:
        scheme: of every linear layer that is not ignored.
        ignore: names of linear layers that stay as they were, the head among them.

    In which order GPTQ rounded columns is not said: it leaves no trace in the tensors, and vLLM
    refuses the key where a row has one scale (vllm-project/llm-compressor#2805).
    """
    if scheme.block_rows > 1:
        return {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "weight_block_size": [scheme.block_rows, scheme.group_size],
            "modules_to_not_convert": list(ignore),
        }
    kind = "float" if scheme.kind == "fp8" else "int"
    storage = "pack-quantized" if is_packed(scheme) else f"{kind}-quantized"
    weights: dict[str, Any] = {
        "num_bits": scheme.bits,
        "type": kind,
        "symmetric": scheme.symmetric,
        "strategy": "channel" if scheme.group_size is None else "group",
        "group_size": scheme.group_size,
        "dynamic": False,
    }
    inputs: dict[str, Any] | None = None
    if scheme.inputs == "token":
        inputs = {
            "num_bits": 8,
            "type": kind,
            "symmetric": True,
            "strategy": "token",
            "group_size": None,
            "dynamic": True,
        }
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": inputs,
        "output_activations": None,
        "format": storage,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": storage,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": list(ignore),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }
