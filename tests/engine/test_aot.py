"""Every served kernel compiled ahead of time for the GPUs it serves, without one.

A kernel is added by an entry in `SERVED`; of the modules that have one there, none of their
kernels may be left out. The compiler runs in a process of its own, since another test may
have chosen Triton's interpreter for this one.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from quire.kernels.linear import DEEP
from quire.kernels.tiled_matrix import tile_for
from quire.kv.quantized import FORMATS, LARGEST

HALF, FLOAT, INT, LONG = "*bf16", "*fp32", "*i32", "*i64"
CACHE_STRIDES = {
    f"{of}_{by}_stride": "i32" for of in ("key", "value") for by in ("block", "head", "offset")
}


@dataclass(frozen=True)
class Served:
    """One kernel with the argument types and constants of a real launch."""

    kernel: str  # module.name, below quire.kernels
    arguments: dict[str, str]
    constants: dict[str, object]
    options: dict[str, int] = field(default_factory=dict)
    oldest: int = 80  # compute capability it can be compiled for


FEW_ROWS = {"x": HALF, "weight": HALF, "bias": HALF, "out": HALF, "size": "i32"}
SAMPLED = {"logits": HALF, "stride": "i32"}
FILTERS = {"temperatures": FLOAT, "top_ks": LONG, "top_ps": FLOAT, "min_ps": FLOAT}
GROUPS = {"maxima": FLOAT, "tops": FLOAT, "masses": FLOAT}
BEST = {"values": FLOAT, "token_ids": INT}

ATTENDED = {
    "output": HALF, "query": HALF, "key": HALF, "value": HALF, "block_table": INT, "rows": INT,
    "lengths": INT, "query_starts": INT, "scale": "fp32", "query_stride": "i32",
    "block_stride": "i32", "head_stride": "i32", "offset_stride": "i32", "table_stride": "i32",
}  # fmt: skip
UNSCALED = {"key_scale": None, "value_scale": None}
SCALES = {"key_scale": FLOAT, "value_scale": FLOAT}
OLDEST = {"int8": 80, "fp8": 89}  # E4M3 came with Ada and Hopper
CODES = {"int8": "*i8", "fp8": "*fp8e4nv"}
DECODED = {**ATTENDED, "partials": FLOAT, "sums": FLOAT, "arrivals": INT}
DECODE = {
    "TOKENS": 1, "GROUP": 4, "PADDED": 4, "ROWS": 16, "HEAD_SIZE": 128, "PAGE": 16, "TILE": 16,
    "MIN_TILES": 2, "STAGES": 3, "MOST": 64, "CHUNK": 8, "LATE": True,
}  # fmt: skip
INT4 = {
    "x": HALF, "words": "*i16", "scales": INT, "bias": HALF, "out": HALF, "parts": FLOAT,
    "counters": INT, "num_rows": "i32", "size": "i32",
}  # fmt: skip
INT4_TILE = {
    "depth": 4096, "blocks": 32, "groups": 1, "halves": False, "adds_bias": False,
    "block_rows": 16, "block_outputs": 64, "split": 4,
}  # fmt: skip
TILED = ("parts", "counters")  # what only a product of tiles takes
INT4_FEW_ROWS = {
    "depth": 1024, "blocks": 8, "groups": 1, "halves": False, "adds_bias": False, "tiles": 1,
    "beside": 1, "single": False, "ahead": 8,
}  # fmt: skip
EXPERTS = {"hidden": 2048, "size": 768, "num_slots": 128, "top_k": 8}
# Of pairs by ids and by logits: what is chosen from, and how many logits a token has.
CHOICES: tuple[tuple[str, dict[str, object]], ...] = (
    (INT, {"num_experts": 0, "block_experts": 1}),
    (HALF, {"num_experts": 128, "block_experts": 128}),
    (FLOAT, {"num_experts": 8, "block_experts": 8}),
)
# Of the router: it gives experts, or the slots of their copies.
ROUTES: tuple[tuple[dict[str, str], dict[str, object]], ...] = (
    ({}, {"copies": None, "places": None, "most_copies": 1}),
    ({"copies": INT, "places": INT}, {"most_copies": 2}),
)
GROUPED = {"hidden": 2048, "size": 768, "block_rows": 16, "block_outputs": 64, "block_depth": 64}
GATE_UP_TILES = (
    ({"block_depth": 128}, {"num_warps": 4, "num_stages": 3}),
    ({"block_rows": 256}, {"num_warps": 8, "num_stages": 3}),
)
DOWN_TILES = (
    ({"block_outputs": 128}, {"num_warps": 4, "num_stages": 5}),
    ({"block_rows": 128, "block_outputs": 256}, {"num_warps": 8, "num_stages": 3}),
)
DRAFTS = {"TOKENS": 5, "PADDED": 32, "ROWS": 32}
PREFILL_TILES = {
    "num_kv_heads": 8,
    "GROUP": 4,
    "ROWS": 64,
    "HEAD_SIZE": 128,
    "TILE": 64,
    "STAGES": 3,
}
WHOLE = {"lse": None, "key_starts": None}  # not a part of a sequence
PREFILL = {**PREFILL_TILES, **WHOLE, "window": None, "sinks": None}
DESCRIPTOR = "tensordesc<bf16[64, 128]>"
FRESH = {**ATTENDED, "tiles": INT, "key": DESCRIPTOR, "value": DESCRIPTOR}


def on_hopper(group: int, page: int | None, kind: str = "bf16") -> Served:
    """Hopper's prefill in Gluon: its descriptors name the layout in shared memory."""
    layout = (
        "NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank={}, "
        "transposed=False, fp4_padded=False, cga_layout=[])"
    )
    keys = f"tensordesc<{kind}[{page or 128}, 128],{layout.format(2)}>"
    return Served(
        "hopper_prefill._prefill",
        {
            "output": f"*{kind}",
            "query": f"tensordesc<{kind}[{64 // group}, {group}, 128],{layout.format(3)}>",
            "key": keys, "value": keys, "block_table": INT, "rows": INT, "lengths": INT,
            "query_starts": INT, "tiles": INT, "scale": "fp32", "table_stride": "i32",
            "num_work": "i32",
        },
        {"num_kv_heads": 8, "GROUP": group, "PAGE": page},
        {"num_warps": 4},
        oldest=90,
    )  # fmt: skip


def few_rows(rows: int, depth: int, tile: tuple[int, int, int], adds_bias: bool) -> Served:
    outputs, block_depth, num_warps = tile
    constants = {
        "num_rows": rows, "depth": depth, "adds_bias": adds_bias, "block_outputs": outputs,
        "block_depth": block_depth, "unpacks_late": depth >= DEEP,
    }  # fmt: skip
    return Served("linear._few_rows_kernel", FEW_ROWS, constants, {"num_warps": num_warps})


def summed_norm(num_ranks: int, packed: bool) -> Served:
    """The sum of so many ranks and its norm, with a count beside each number or one a row."""
    return Served(
        "summed_norm._summed_norm_kernel",
        {
            **dict.fromkeys(("part", "residual", "weight", "out"), HALF), "eps": "fp32",
            "addresses": LONG, "counts": INT,
        },
        {
            "rank": 1, "num_ranks": num_ranks, "few_rows": 8,
            "most_rows": 16376, "half": 2048, "block": 2048, "packed": packed,
        },
        {"num_warps": 16 if packed else 8},
    )  # fmt: skip


def eight_bit_kernels(name: str) -> list[Served]:
    """The product of codes, and the kernel that makes them of inputs."""
    code, is_int, oldest = CODES[name], name == "int8", OLDEST[name]
    operands = {
        "codes": code, "code_scale": FLOAT, "weight": code, "scale": FLOAT, "bias": HALF,
        "out": HALF, "parts": FLOAT, "counters": INT, "num_rows": "i32", "size": "i32",
    }  # fmt: skip
    tile = {
        "depth": 4096, "by_group": False, "adds_bias": False, "is_int": is_int,
        "block_rows": 16, "block_outputs": 64, "split": 4,
    }  # fmt: skip
    changes = [{}, {"block_rows": 128, "split": 1, "adds_bias": True}, {"by_group": True}]
    rounding = {
        "block": 4096, "width": 4096, "is_fixed": False,
        "is_int": is_int, "largest": LARGEST[FORMATS[name]], "smallest": 1e-12,
    }  # fmt: skip
    rounded = {"fixed": FLOAT, "codes": code, "scale": FLOAT}
    summed = {"x": HALF, "residual": HALF, "weight": HALF, "eps": "fp32"}
    ways: list[dict[str, object]] = [{}, {"width": 128}, {"is_fixed": True}]
    whole_row = {"block": 16384, "width": 16384}
    return [
        *(
            Served(
                "eight_bits._eight_bit_kernel",
                operands,
                {**tile, **change},
                {"num_warps": 4, "num_stages": 4},
                oldest,
            )
            for change in changes
        ),
        *(
            Served(
                "eight_bits_few_rows._few_rows_kernel",
                {name: kind for name, kind in operands.items() if name not in TILED},
                {
                    "depth": 1024,
                    "groups": groups,
                    "adds_bias": False,
                    "is_int": tile["is_int"],
                    "tiles": 1,
                    "beside": beside,
                    "warps": 4,
                    "ahead": 8,
                },
                {"num_warps": 4},
                oldest,
            )
            for groups, beside in ((1, 1), (8, 2))
        ),
        Served(
            "eight_bits._eight_bit_kernel",
            {argument: kind for argument, kind in operands.items() if argument != "num_rows"},
            {**tile, "num_rows": 1},
            {"num_warps": 4, "num_stages": 4},
            oldest,
        ),
        *(
            Served(kernel, {**arguments, **rounded}, {**rounding, **change}, options, oldest)
            for kernel, arguments, options, changes in (
                (
                    "round_inputs._round_kernel",
                    {"x": HALF},
                    {},
                    [{"columns": 4000, **change} for change in ways],
                ),
                (
                    "rounded._norm_round_kernel",
                    summed,
                    {"num_warps": 4},
                    [{"size": 4000, **change} for change in ways],
                ),
                (
                    "rounded._silu_mul_round_kernel",
                    {"gate_up": HALF},
                    {"num_warps": 16},
                    [{"size": 12288, **change} for change in (whole_row, *ways[1:])],
                ),
            )
            for change in changes
        ),
    ]


def code_kernels(name: str) -> list[Served]:
    """The kernels that write or read the cache, for a cache of codes."""
    cache = {**SCALES, "key": CODES[name], "value": CODES[name]}
    oldest = OLDEST[name]
    return [
        Served(
            "qkv._norm_rotate_kernel",
            {
                "qkv": HALF, "head_norm_weight": HALF, "eps": "fp32", "cos": HALF, "sin": HALF,
                "positions": LONG, "key_cache": CODES[name], "value_cache": CODES[name],
                "slots": LONG, **SCALES, **CACHE_STRIDES,
            },
            {
                "num_heads": 32, "num_kv_heads": 8, "head_size": 128, "half_block": 64,
                "heads_per_program": 4, "block_size": 16, "normalises": True, "writes": True,
                "lets_in": False, "largest_code": LARGEST[FORMATS[name]],
            },
            oldest=oldest,
        ),
        Served(
            "paged_decode._paged_decode",
            {**DECODED, **cache},
            {**DECODE, "sequences": None, "window": None, "sinks": None},
            {"num_warps": 1},
            oldest,
        ),
        Served(
            "prefill._prefill",
            {**ATTENDED, **cache, "tiles": INT},
            {**PREFILL, "PAGE": 16},
            {"num_warps": 4},
            oldest,
        ),
    ]  # fmt: skip


def many_rows(num_stages: int, oldest: int) -> list[Served]:
    """Products of very many pairs: an A100 has room for a stage less."""
    tiles = {"hidden": 2048, "size": 768, "block_rows": 128, "block_depth": 64}
    options = {"num_warps": 8, "num_stages": num_stages}
    order = {"order": INT, "starts": INT}
    return [
        Served(
            "expert_rows._rows_gate_up_kernel",
            {"x": HALF, **order, "gate_up": "tensordesc<bf16[128, 64]>", "hidden_states": HALF},
            {**tiles, "block_outputs": 128, "top_k": 8},
            options,
            oldest,
        ),
        Served(
            "expert_rows._rows_down_kernel",
            {
                "hidden_states": "tensordesc<bf16[128, 64]>", **order, "weights": FLOAT,
                "down": "tensordesc<bf16[256, 64]>", "parts": HALF,
            },
            {**tiles, "block_outputs": 256},
            options,
            oldest,
        ),
    ]  # fmt: skip


def expert_kernels() -> list[Served]:
    """A mixture of experts: the choice, the pairs' order, products by pairs and by groups."""
    return [
        *(
            Served(
                "router._choose_kernel",
                {"logits": HALF, "ids": INT, "weights": FLOAT, **tables},
                {
                    "num_experts": 128, "block": 128, "top_k": 8, "padded_k": 8,
                    "renormalize": True, **copies,
                },
                {"num_warps": 1},
            )
            for tables, copies in ROUTES
        ),
        Served(
            "grouping._group_kernel",
            {"ids": INT, "slots": INT, "order": INT, "starts": INT, "num_pairs": "i32"},
            {"block": 2048},
            {"num_warps": 8},
        ),
        *(
            Served(
                "expert_pairs._pair_gate_up_kernel",
                {"x": HALF, "choices": of, "slots": INT, "gate_up": HALF, "hidden_states": HALF},
                {**EXPERTS, **routing, "block_outputs": 1, "block_depth": 1024},
                {"num_warps": 2},
            )
            for of, routing in CHOICES
        ),
        *(
            Served(
                "expert_pairs._pair_down_kernel",
                {
                    "hidden_states": HALF, "choices": of, "weights": FLOAT if of == INT else of,
                    "slots": INT, "down": HALF, "out": HALF,
                },
                {
                    **EXPERTS, **routing, "renormalize": of != INT, "block_outputs": 2,
                    "block_depth": 256,
                },
                {"num_warps": 2},
            )
            for of, routing in CHOICES
        ),
        *(
            Served(
                "expert_groups._group_gate_up_kernel",
                {
                    "x": HALF, "order": INT, "starts": INT, "gate_up": HALF,
                    "hidden_states": HALF,
                },
                {**GROUPED, "top_k": 8, **change},
                options,
            )
            for change, options in GATE_UP_TILES
        ),
        *(
            Served(
                "expert_groups._group_down_kernel",
                {
                    "hidden_states": HALF, "order": INT, "starts": INT, "weights": FLOAT,
                    "down": HALF, "parts": HALF,
                },
                {**GROUPED, **change},
                options,
            )
            for change, options in DOWN_TILES
        ),
        *(served for stages, oldest in ((3, 80), (4, 90)) for served in many_rows(stages, oldest)),
        Served(
            "expert_groups._sum_kernel",
            {"parts": HALF, "ids": INT, "slots": INT, "out": HALF},
            {"hidden": 2048, "num_slots": 128, "top_k": 8, "padded_k": 8, "block": 1024},
            {"num_warps": 4},
        ),
    ]  # fmt: skip


SERVED = [
    few_rows(1, 1024, (4, 256, 2), adds_bias=False),
    few_rows(1, 1024, (8, 128, 2), adds_bias=False),
    few_rows(1, 3072, (2, 512, 4), adds_bias=False),
    few_rows(4, 4096, (2, 1024, 4), adds_bias=True),
    Served(
        "skinny_matrix._matrix_kernel",
        {"x": HALF, "weight": HALF, "bias": HALF, "out": HALF, "size": "i32", "num_rows": "i32"},
        {
            "depth": 4096, "adds_bias": True, "block_rows": 16, "block_outputs": 16,
            "block_depth": 256,
        },
        {"num_warps": 1, "num_stages": 5},
    ),
    *(
        Served(
            "tiled_matrix._tiled_kernel",
            {
                "x": HALF, "weight": HALF, "bias": HALF, "out": HALF, "parts": FLOAT,
                "counters": INT, "num_rows": "i32", "size": "i32", "depth": "i32",
            },
            {
                "adds_bias": True, "block_rows": tile.rows, "block_outputs": tile.outputs,
                "split": tile.split,
            },
            {"num_warps": tile.num_warps, "num_stages": tile.num_stages},
            oldest=90,
        )
        for tile in (
            tile_for(16, 4096, 4096), tile_for(16, 24_576, 4096), tile_for(32, 4096, 4096),
            tile_for(32, 24_576, 4096), tile_for(64, 1024, 3072), tile_for(64, 6144, 4096),
        )
        if tile is not None
    ),
    Served(
        "norm._rms_norm_kernel",
        {"x": HALF, "residual": HALF, "weight": HALF, "out": HALF, "eps": "fp32"},
        {"size": 5120, "block": 8192, "add": True},
        {"num_warps": 8},
    ),
    Served(
        "activation._silu_mul_kernel",
        {"gate_up": HALF, "out": HALF, "size": "i32"},
        {"block": 1024},
    ),
    Served("softmax._softmax_kernel", {"x": HALF, "out": HALF}, {"size": 4096, "block": 4096}),
    Served(
        "qkv._norm_rotate_kernel",
        {
            "qkv": HALF, "head_norm_weight": HALF, "eps": "fp32", "cos": HALF, "sin": HALF,
            "positions": LONG, "key_cache": HALF, "value_cache": HALF, "slots": LONG,
            **CACHE_STRIDES,
        },
        {
            **UNSCALED, "largest_code": 0.0,
            "num_heads": 32, "num_kv_heads": 8, "head_size": 128, "half_block": 64,
            "heads_per_program": 4, "block_size": 16, "normalises": True, "writes": True,
            "lets_in": True,
        },
    ),
    Served(
        "candidates._groups_kernel",
        {**SAMPLED, **FILTERS, **GROUPS},
        {"vocab_size": 151_936, "group": 64, "block": 2048},
    ),
    Served(
        "cutoff._list_kernel",
        {
            **SAMPLED, **FILTERS, **GROUPS, "chosen": INT, "values": HALF, "token_ids": INT,
            "counts": INT, "cutoffs": FLOAT, "last_ties": INT,
        },
        {
            "vocab_size": 151_936, "num_groups": 2400, "group": 64, "num_parts": 75,
            "padded_parts": 128, "few": 256, "most": 1024, "capacity": 4096, "block": 1024,
            "gather_block": 2048,
        },
        {"num_warps": 8},
    ),
    Served(
        "cutoff._cutoff_kernel",
        {
            **SAMPLED, **FILTERS, "tops": FLOAT, "counts": INT,
            "cutoffs": FLOAT, "last_ties": INT,
        },
        {"vocab_size": 151_936, "num_parts": 75, "padded_parts": 128, "block": 8192},
        {"num_warps": 16},
    ),
    Served("sampling._largest_kernel", {**SAMPLED, **BEST}, {"vocab_size": 151_936, "block": 2048}),
    Served(
        "sampling._race_kernel",
        {
            **SAMPLED, "temperatures": FLOAT, "cutoffs": FLOAT, "last_ties": INT,
            "candidates": HALF, "candidate_ids": INT, "counts": INT, "seeds": LONG,
            "positions": LONG, **BEST,
        },
        {"vocab_size": 151_936, "capacity": 4096, "block": 2048, "purpose": 1},
    ),
    *(
        Served(
            "step._begin_step",
            {
                "rows": INT, "first_positions": INT, "num_drafts": INT, "first_new": INT,
                "new_blocks": INT, "token_ids": LONG,
                "tokens_stride": "i32", "table": INT, "table_stride": "i32", "tokens_out": LONG,
                "positions_out": LONG, "slots_out": LONG, "lengths_out": INT, **known,
            },
            {
                "block_size": 16, "width": 5, "padded_width": 8, "most_new": 1, "padded_new": 1,
                **none,
            },
            {"num_warps": 1},
        )
        for known, none in (({"num_known": LONG}, {}), ({}, {"num_known": None}))
    ),
    *(
        Served(
            "paged_decode._paged_decode",
            {**DECODED, **lists},
            {**DECODE, **UNSCALED, "sinks": None, **none},
            {"num_warps": 1},
        )
        for lists, none in (
            ({"sequences": INT}, {"window": None}),
            ({}, {"sequences": None, "window": None}),
            ({"window": "i32"}, {"sequences": None}),
        )
    ),
    Served(
        "prefill._prefill",
        {**ATTENDED, "tiles": INT},
        {**PREFILL, **UNSCALED, "PAGE": 16},
        {"num_warps": 4},
    ),
    Served(
        "prefill._prefill",
        FRESH,
        {**PREFILL, **UNSCALED, "PAGE": None},
        {"num_warps": 4},
    ),
    *(
        Served(
            "prefill._prefill",
            {**FRESH, "output": FLOAT, "lse": FLOAT, **starts},
            {**PREFILL_TILES, **UNSCALED, "PAGE": None, "window": None, "sinks": None, **none},
            {"num_warps": 4},
        )
        for starts, none in (({}, {"key_starts": None}), ({"key_starts": INT}, {}))
    ),
    on_hopper(4, None),
    on_hopper(4, 16),
    on_hopper(1, 8, "fp16"),
    Served(
        "part_attention._merge_kernel",
        {**dict.fromkeys(("y", "lse", "part", "part_lse"), FLOAT), "num_rows": "i32"},
        {"size": 128, "block": 128, "rows": 16},
    ),
    Served(
        "paged_decode._paged_decode",
        DECODED,
        {
            **DECODE, **UNSCALED, **DRAFTS, "LATE": False,
            "sequences": None, "window": None, "sinks": None,
        },
        {"num_warps": 1},
    ),
    Served(
        "paged_decode._paged_decode",
        {**DECODED, "window": "i32", "sinks": "i32"},
        {**DECODE, **UNSCALED, "sequences": None},
        {"num_warps": 1},
    ),
    Served(
        "prefill._prefill",
        {**ATTENDED, "tiles": INT, "window": "i32", "sinks": "i32"},
        {**PREFILL_TILES, **WHOLE, **UNSCALED, "PAGE": 16},
        {"num_warps": 4},
    ),
    *(served for name in CODES for served in code_kernels(name)),
    *(
        Served(
            "int4._int4_kernel",
            INT4,
            {**INT4_TILE, **change},
            {"num_warps": 4, "num_stages": 4},
        )
        for change in (
            {},
            {"split": 1, "block_rows": 64, "block_outputs": 128},
            {"groups": 4, "halves": True, "adds_bias": True, "depth": 1000, "blocks": 8},
            {"groups": 2, "block_rows": 32},
        )
    ),
    # Of one row the number of rows is a constant to Triton.
    Served(
        "int4._int4_kernel",
        {name: kind for name, kind in INT4.items() if name != "num_rows"},
        {**INT4_TILE, "num_rows": 1},
        {"num_warps": 4, "num_stages": 4},
    ),
    Served(
        "int4._int4_kernel",
        INT4,
        {**INT4_TILE, "block_rows": 8, "block_outputs": 32},
        {"num_warps": 1, "num_stages": 3},
    ),
    *(
        Served(
            "int4_few_rows._few_rows_kernel",
            {name: kind for name, kind in INT4.items() if name not in ("parts", "counters", *left)},
            {**INT4_FEW_ROWS, "warps": warps, **change},
            {"num_warps": warps, **limit},
        )
        for warps, left, change, limit in (
            (4, ("num_rows",), {"num_rows": 1, "single": True}, {"maxnreg": 168}),
            (2, ("num_rows",), {"num_rows": 1, "single": True, "tiles": 2}, {"maxnreg": 168}),
            (2, (), {"tiles": 4, "ahead": 2, "adds_bias": True}, {}),
            (4, (), {"tiles": 2, "ahead": 4, "groups": 4, "halves": True}, {}),
        )
    ),
    *(
        Served(
            "int4._unpack_kernel",
            {"words": "*i16", "scales": INT, "out": HALF, "size": "i32", "depth": "i32"},
            {"blocks": 32, "groups": groups, "halves": False, "tiles": 4},
            {"num_warps": 4},
        )
        for groups in (1, 2, 4)
    ),
    *(served for name in CODES for served in eight_bit_kernels(name)),
    *expert_kernels(),
    Served(
        "best_keys._best_key_kernel",
        {**BEST, "keys": LONG},
        {"first": 75_968, "num_parts": 38, "block": 64},
        {"num_warps": 1},
    ),
    Served(
        "best_keys._best_token_kernel",
        {"keys": LONG, "tokens": LONG, "num_rows": "i32"},
        {"num_ranks": 2, "block": 2},
        {"num_warps": 1},
    ),
    *(summed_norm(num_ranks, packed) for num_ranks in (2, 8) for packed in (True, False)),
    Served("sampling._best_kernel", {**BEST, "tokens": LONG}, {"num_parts": 75, "block": 128}),
]  # fmt: skip
# Compute capability → bytes of shared memory a program may take.
TARGETS = {80: 163 * 1024, 90: 227 * 1024}


# Kernels that must read before their wait: a text's length, a pair's expert.
READS_FIRST = {"paged_decode._paged_decode", "expert_pairs._pair_down_kernel"}


def disassembled(cubin: bytes) -> str:
    """Return a kernel's machine instructions, as Triton's own disassembler writes them."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run(
            [tool, "-c", file.name], capture_output=True, text=True, check=True
        ).stdout


def early_use(instructions: str) -> str:
    """Return the first instruction in front of the wait that needs what a load brings, or "".

    `ACQBULK` is `griddepcontrol.wait`: there a weight is to be on its way, not to have come.
    """
    front, wait, _ = instructions.partition("ACQBULK")
    under_way: set[int] = set()  # numbers of registers
    found = re.findall(r"\s([A-Z][A-Z0-9_.]*)\s+([^;/]*);", front if wait else "")
    for operation, operands in found:
        registers = [int(number) for number in re.findall(r"\bR(\d+)\b", operands)]
        read = registers if operation.startswith(("ST", "RED")) else registers[1:]
        if under_way.intersection(read):
            return f"{operation} {operands}"
        if operation.startswith("LDG.") and registers:
            width = {"64": 2, "128": 4}.get(operation.rpartition(".")[2], 1)
            under_way.update(range(registers[0], registers[0] + width))
        else:
            under_way.difference_update(registers[:1])
    return ""


def test_an_early_use_is_found() -> None:
    """Lines of the kernel of one row, as it was compiled before it had its branch, and after."""
    load = "/*0350*/ @!P0 LDG.E.EF.128 R20, desc[UR6][R16.64] ;\n"
    unpack = "/*0400*/ PRMT R0, R22, 0x7632, R0 ;\n"
    wait = "/*04a0*/ ACQBULK ;\n"
    assert early_use(load + unpack + wait).startswith("PRMT R0, R22")
    assert early_use(load + wait + unpack) == ""
    assert early_use(load + unpack) == ""  # a kernel that never waits
    assert early_use(load + "/*0400*/ PRMT R0, R24, 0x7632, R0 ;\n" + wait) == ""


def compile_served(index: int, capability: int) -> dict[str, object]:
    """Compile one entry; runs in a process without the interpreter."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    served = SERVED[index]
    module, name = served.kernel.rsplit(".", 1)
    kernel = getattr(importlib.import_module(f"quire.kernels.{module}"), name)
    constants = dict(served.constants)
    constants |= {name: capability >= 90 for name in kernel.arg_names if name.lower() == "early"}
    place = {argument: (i,) for i, argument in enumerate(kernel.arg_names)}
    missing = set(kernel.arg_names) ^ (set(served.arguments) | set(constants))
    assert not missing, missing
    source = (GluonASTSource if kernel.is_gluon() else ASTSource)(
        kernel,
        {name: served.arguments.get(name, "constexpr") for name in kernel.arg_names},
        {place[name]: value for name, value in constants.items()},
        {
            place[name]: [["tt.divisibility", 16]]
            for name, kind in served.arguments.items()
            if kind[0] == "*"
        },
    )
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options=served.options)
    ptx = compiled.asm["ptx"]
    waits = "griddepcontrol.wait" in ptx
    return {
        "shared": compiled.metadata.shared,
        "cubin": len(compiled.asm["cubin"]),
        "target": next(line for line in ptx.splitlines() if line.startswith(".target")),
        "waits": waits,
        "may_wait": any(name.lower() == "early" for name in kernel.arg_names),
        "early_use": early_use(disassembled(compiled.asm["cubin"])) if waits else "",
    }


def kernels_of(module: str) -> list[str]:
    """Return the kernels that a module launches: those that no other kernel of it calls."""
    from triton import JITFunction

    functions = {
        name: value
        for name, value in vars(importlib.import_module(f"quire.kernels.{module}")).items()
        if isinstance(value, JITFunction)
    }
    return [
        name
        for name in functions
        if not any(
            re.search(rf"\b{name}[(,]", f.src) for other, f in functions.items() if other != name
        )
    ]


def main() -> None:
    report = {
        "kernels": {m: kernels_of(m) for m in sorted({s.kernel.split(".")[0] for s in SERVED})},
        "compiled": {
            f"{i}-{capability}": compile_served(i, capability)
            for i in range(len(SERVED))
            for capability in TARGETS
            if capability >= SERVED[i].oldest
        },
    }
    print(json.dumps(report))


@pytest.fixture(scope="module")
def report() -> dict[str, dict[str, dict[str, object]]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    answer = subprocess.run(
        [sys.executable, str(Path(__file__))], env=environment, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    loaded: dict[str, dict[str, dict[str, object]]] = json.loads(answer.stdout)
    return loaded


@pytest.mark.parametrize(
    ("index", "capability"),
    [
        pytest.param(i, capability, id=f"{served.kernel}-{i}-{capability}")
        for i, served in enumerate(SERVED)
        for capability in TARGETS
        if capability >= served.oldest
    ],
)
def test_kernel_compiles(
    index: int, capability: int, report: dict[str, dict[str, dict[str, object]]]
) -> None:
    compiled = report["compiled"][f"{index}-{capability}"]
    assert str(compiled["target"]).startswith(f".target sm_{capability}")
    assert int(str(compiled["cubin"])) > 1000
    assert int(str(compiled["shared"])) <= TARGETS[capability]
    # Hopper's early start is compiled in there and only there.
    assert compiled["waits"] is (capability >= 90 and compiled["may_wait"])
    served = SERVED[index]
    if served.kernel not in READS_FIRST and served.constants.get("unpacks_late", True):
        assert compiled["early_use"] == ""


def test_no_kernel_is_forgotten(report: dict[str, dict[str, dict[str, object]]]) -> None:
    launched = {f"{module}.{name}" for module, names in report["kernels"].items() for name in names}
    assert launched == {served.kernel for served in SERVED}


if __name__ == "__main__":
    main()
