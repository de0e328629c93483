"""Writes gptq.npz: what llm-compressor 0.14.0.1 makes of the cases in gptq_cases.py.

llm-compressor wants another transformers than quire's environment has. In one of its own, with
torch, numpy, triton, transformers 5.17, compressed-tensors 0.20, and llm-compressor 0.14.0.1 and
quire installed with --no-deps:

    python tests/engine/goldens/make_gptq.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from compressed_tensors.quantization import QuantizationArgs
from gptq_cases import CASES, Case, inputs
from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight
from numpy.typing import NDArray

from quire.quantization.rounding import grid
from quire.quantization.scheme import Scheme


def codes(case: Case) -> NDArray[np.uint8]:
    """Return the codes of a case's weight, [ROWS, COLUMNS]."""
    weight, hessian, _ = inputs(case)
    scheme = Scheme.named(case.scheme)
    scale, zero = grid(weight, scheme)
    middle = 1 << (scheme.bits - 1)
    signed = torch.zeros_like(scale) if zero is None else zero.float() - middle
    args = QuantizationArgs(
        num_bits=scheme.bits,
        symmetric=scheme.symmetric,
        strategy="channel" if scheme.group_size is None else "group",
        group_size=scheme.group_size,
        actorder="static" if case.act_order else None,
    )
    rounded, _, fell_back = quantize_weight(
        weight[None], hessian[None], scale[None], signed[None], None, args, percdamp=case.damp
    )
    assert not fell_back.any()
    group_of = torch.arange(weight.shape[1]) // (scheme.group_size or weight.shape[1])
    values = rounded[0] / scale[:, group_of] + signed[:, group_of] + middle
    assert (values - values.round()).abs().max() < 1e-3
    result: NDArray[np.uint8] = values.round().to(torch.uint8).numpy()
    return result


if __name__ == "__main__":
    path = Path(__file__).with_name("gptq.npz")
    np.savez_compressed(path, **{case.name: codes(case) for case in CASES})
    print(f"wrote {path}, {path.stat().st_size} bytes")
