"""The kernels of the ladders with the types and constants of their real launches.

From these they are compiled without a GPU: for the counts of their instructions, and to know
that a GPU will take them.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from quire.bench.ladders import (
    autotune,
    decode_kernels,
    gemv,
    int4_gemv,
    int4_matrix,
    ladder,
    matmul,
    prefill,
    prefill_scores,
    softmax,
)
from quire.bench.ladders.ptx import ptx_counts, row
from quire.bench.ladders.record import Launch, launch_of
from quire.bench.measurement import Row
from quire.kernels import int4, int4_packing, linear
from quire.kernels.softmax import _softmax_kernel

HALF, FLOAT, INT = "*bf16", "*fp32", "*i32"
SIZE = "i32:16"  # all sizes and strides here are multiples of 16


def counted() -> list[Launch]:
    """The steps whose instructions the chapter compares: products of one row, of 16 and 4 bits."""
    dense = {"x": HALF, "weight": HALF, "out": HALF, "size": SIZE}
    wide = {"depth": 4096, "share": 4096, "block_outputs": 4, "block_depth": 256}
    four = {"num_warps": 4}
    codes = {"x": HALF, "words": INT, "scale": HALF, "zero": "*u8", "out": HALF, "size": SIZE}
    lanes = {"depth": 4096, "block_outputs": 16, "block_groups": 4}
    bits, number = 0x4300, 128.0
    return [
        Launch("gemv-small-loads", gemv._gemv_kernel, dense, {**wide, "block_depth": 32}, four),
        Launch("gemv-wide-loads", gemv._gemv_kernel, dense, wide, four),
        Launch(
            "gemv-split-columns",
            gemv._gemv_kernel,
            {**dense, "out": FLOAT},
            {**wide, "share": 1024},
            four,
        ),
        launch_of("gemv-engine", linear, "_few_rows_kernel", _engine_gemv),
        Launch("int4-gemv-naive", int4_gemv._naive_kernel, codes, lanes, four),
        Launch("int4-gemv-zero-a-group", int4_gemv._zero_a_group_kernel, codes, lanes, four),
        Launch("int4-gemv-magic-number", int4_gemv._magic_kernel, codes, lanes, four),
        Launch(
            "int4-gemv-matrix-units",
            int4_matrix._matrix_kernel,
            {**codes, "words": "*i16", "parts": FLOAT, "counters": INT},
            {"depth": 4096, "bits": bits, "number": number, "block_outputs": 64,
             "block_rows": 16, "split": 2},
            {"num_warps": 4, "num_stages": 4},
        ),
        launch_of("int4-gemv-engine", int4, "_int4_kernel", _engine_int4),
    ]  # fmt: skip


def _engine_gemv() -> None:
    size, depth = gemv.SHAPE
    x = torch.empty(1, depth, dtype=torch.bfloat16, device="meta")
    weight = torch.empty(size, depth, dtype=torch.bfloat16, device="meta")
    gemv.engine(gemv.Product(x, weight))


def _engine_int4() -> None:
    size, depth = gemv.SHAPE
    cpu = torch.device("cpu")
    product = int4_gemv.random_product(0, cpu, torch.bfloat16, (int4_packing.TALLEST, depth))
    packed = replace(product.packed, shape=(size, depth))  # of the words only how deep they are
    int4_gemv.engine(replace(product, packed=packed))


def others() -> list[Launch]:
    """The other kernels of the ladders."""
    made = [
        Launch(
            "softmax-fused", _softmax_kernel, {"x": HALF, "out": HALF},
            {"size": 4096, "block": 4096}, {"num_warps": 4},
        ),
        Launch(
            "softmax-wide-fused", _softmax_kernel, {"x": HALF, "out": HALF},
            {"size": 131072, "block": 131072}, {"num_warps": 16},
        ),
        Launch(
            "softmax-online", softmax._online_kernel, {"x": HALF, "out": HALF},
            {"size": 131072, "block": 2048}, {"num_warps": 8},
        ),
        Launch(
            "add-parts", ladder._add_parts_kernel, {"parts": FLOAT, "out": HALF, "size": SIZE},
            {"count": 4, "block": 1024},
        ),
        Launch(
            "autotune", autotune._sum_kernel, {"values": FLOAT, "out": "*fp64", "size": SIZE},
            {"block": 1024},
        ),
    ]  # fmt: skip
    for step, tiling in (
        ("matmul-row-order", matmul.ROW_ORDER),
        ("matmul-grouped-order", matmul.GROUPED),
        ("matmul-large-tiles", matmul.LARGE),
        ("matmul-pipelined", matmul.PIPELINED),
        ("matmul-m64-tiles", matmul.FEW_ROWS),
        ("matmul-m64-split-k", matmul.SPLIT_K),
    ):
        made.append(
            Launch(
                step,
                matmul._matmul_kernel,
                {"a": HALF, "weight": HALF, "out": HALF if tiling.split == 1 else FLOAT,
                 "num_rows": SIZE, "size": SIZE},
                {"depth": 4096, "share": 4096 // tiling.split, "block_rows": tiling.rows,
                 "block_outputs": tiling.outputs, "block_depth": tiling.depth,
                 "group": tiling.group},
                {"num_warps": tiling.num_warps, "num_stages": tiling.num_stages},
            )
        )  # fmt: skip
    return made + _attention()


def _attention() -> list[Launch]:
    whole = {"group": 4, "num_kv_heads": 8, "head_size": 128}
    prompts = {"query": HALF, "key": HALF, "value": HALF, "out": HALF, "length": SIZE}
    strides = dict.fromkeys(("block_stride", "head_stride", "offset_stride"), SIZE)
    paged = {"query": HALF, "key": HALF, "value": HALF, "table": INT, "length": SIZE,
             "scale": "fp32", **strides}  # fmt: skip
    page = {"blocks": 512, "group": 4, "head_size": 128, "page": 16, "tile": decode_kernels.TILE}
    return [
        Launch(
            "prefill-scores", prefill_scores._scores_kernel,
            {"query": HALF, "key": HALF, "scores": HALF, "length": SIZE, "scale": "fp32"},
            {**whole, "block": 128}, {"num_warps": 8, "num_stages": 1},
        ),
        Launch(
            "prefill-values", prefill_scores._values_kernel,
            {"weights": HALF, "value": HALF, "out": HALF, "length": SIZE},
            {**whole, "block": 128, "depth": 64}, {"num_warps": 8, "num_stages": 4},
        ),
        *(
            Launch(
                f"prefill-{name}", prefill._online_kernel, {**prompts, "scale": "fp32"},
                {**whole, "block": 128, "tile": 64, "skips": skips},
                {"num_warps": 8, "num_stages": 3},
            )
            for name, skips in (("online", False), ("skipping", True))
        ),
        Launch(
            "decode-a-query-head", decode_kernels._query_head_kernel, {**paged, "out": HALF},
            page, {"num_warps": 4},
        ),
        *(
            Launch(
                f"decode-{name}", decode_kernels._kv_head_kernel,
                {**paged, "parts": FLOAT, "stats": FLOAT}, {**page, "share": share, "rows": 16},
                {"num_warps": 4, "num_stages": 3},
            )
            for name, share in (("gqa-rows", 8192), ("split-kv", 512))
        ),
        Launch(
            "decode-merge", decode_kernels._merge_kernel,
            {"parts": FLOAT, "stats": FLOAT, "out": HALF},
            {"splits": 16, "block": 16, "head_size": 128}, {"num_warps": 4},
        ),
    ]  # fmt: skip


def ptx_rows() -> list[Row]:
    """Count the instructions of each step of the products of one row, for Hopper; no GPU needed."""
    return [
        row(
            each.step,
            ptx_counts(each.kernel, each.signature, each.constants, each.options),
        )
        for each in counted()
    ]
