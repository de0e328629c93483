"""Products of a few rows of eight-bit codes with a weight that stays in registers.

As in `quire.kernels.int4_few_rows`, each thread loads what the matrix units want from it, some
turns ahead and the first ones before the program waits for x. The order in which columns are added
is free, as long as both sides keep to it. So a thread takes sixteen neighbouring columns in one
load, of the weight and of x, where the instruction's own order would have it load four. See the
page "Running on codes".
"""

# A tuple grows while a kernel is unrolled, which types of tuples do not allow for.
# mypy: disable-error-code="assignment, var-annotated"

from __future__ import annotations

import torch
from torch import Tensor

from quire.kernels.fragments import (
    OUTPUTS,
    ROWS,
    add_warps,
    load_registers,
    multiply_fp8,
    multiply_int8,
    result_outputs,
    result_rows,
)
from quire.kernels.int4_few_rows import Share
from quire.kernels.runtime import jit, starts_early, tl, triton


def share_for(rows: int, outputs: int, depth: int, *, by_group: bool) -> Share | None:
    """Return the best share of a sweep over the products of the 8B shape on an H200.

    None: `quire.kernels.eight_bits`, with tiles in shared memory, is faster, or has to serve
    because a row of the weight does not end where sixteen codes end.

    Args:
        rows: of x, the tokens of a step.
        outputs, depth: N and K of the weight.
        by_group: whether 128 columns share a scale, instead of a row.
    """
    if depth % 16 or rows > 2 * ROWS:
        return None
    if rows > ROWS:
        return Share(1, 4, 8) if by_group and depth <= 4096 and outputs <= 16384 else None
    return Share(1, 4, 8) if outputs <= 4096 and depth <= 4096 else Share(1, 4, 4)


def few_rows_eight_bit_linear(
    codes: Tensor,
    code_scale: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    share: Share,
) -> Tensor:
    """`quire.kernels.eight_bits.eight_bit_linear` for few rows: [rows, N] in `dtype`.

    Args:
        codes: int8 or float8_e4m3fn [rows, K], K a multiple of 16; like all others contiguous.
            Any number of rows; `share_for` says how many are fast.
        code_scale: float32 [rows, G], G being 1 or ⌈K / 128⌉.
        weight: of the same kind, [N, K].
        scale: float32 [N, G].
        bias: [N] in `dtype`.
    """
    num_rows, depth = codes.shape
    size = weight.shape[0]
    out = codes.new_empty(num_rows, size, dtype=dtype)
    early = starts_early(codes)
    _few_rows_kernel[(triton.cdiv(size, OUTPUTS * share.tiles),)](
        codes,
        code_scale,
        weight,
        scale,
        out if bias is None else bias,
        out,
        num_rows,
        size,
        depth=depth,
        groups=scale.shape[1],
        adds_bias=bias is not None,
        is_int=weight.dtype == torch.int8,
        tiles=share.tiles,
        beside=triton.cdiv(num_rows, ROWS),
        warps=share.num_warps,
        ahead=share.ahead,
        early=early,
        num_warps=share.num_warps,
        launch_pdl=early,
    )
    return out


@jit
def _multiply(low, high, values, total, is_int: tl.constexpr):
    """Add 64 columns: four registers each of an output, of the one 8 further on, and of a row."""
    for half in tl.static_range(2):
        a = (low[2 * half], high[2 * half], low[2 * half + 1], high[2 * half + 1])
        b = (values[2 * half], values[2 * half + 1])
        if is_int:  # noqa: SIM108, Triton takes no expression that has another type each way
            total = multiply_int8(a, b, total)
        else:
            total = multiply_fp8(a, b, total)
    return total


@jit
def _weight_of(
    weight,
    scale,
    size,
    first,
    turn,
    depth: tl.constexpr,
    groups: tl.constexpr,
    tiles: tl.constexpr,
    warps: tl.constexpr,
):
    """Load a turn's 128 columns of each tile's outputs, and their scales where groups have them.

    A thread has two outputs, 8 apart, and of each sixteen columns of the first 64 and of the last.
    """
    thread = tl.arange(0, 32 * warps)
    group = turn * warps + thread // 32
    words = weight.to(tl.pointer_type(tl.int32))
    loaded = ()
    for tile in tl.static_range(tiles):
        low = first + tile * 16 + thread % 32 // 4
        high = low + 8
        halves = ()
        for half in tl.static_range(2):
            column = group * 32 + half * 16 + thread % 4 * 4  # in words of four codes
            inside = column < depth // 4
            low_at = words + low.to(tl.int64) * (depth // 4) + column
            high_at = words + high.to(tl.int64) * (depth // 4) + column
            halves += (
                (
                    load_registers(low_at, inside & (low < size), 32 * warps),
                    load_registers(high_at, inside & (high < size), 32 * warps),
                ),
            )
        units = ()
        if groups > 1:
            inside = group < groups
            units = (
                tl.load(scale + low * groups + group, inside & (low < size), other=0.0),
                tl.load(scale + high * groups + group, inside & (high < size), other=0.0),
            )
        loaded += ((halves, units),)
    return loaded


@jit
def _rows_of(
    codes,
    code_scale,
    num_rows,
    turn,
    depth: tl.constexpr,
    groups: tl.constexpr,
    beside: tl.constexpr,
    warps: tl.constexpr,
):
    """Load a turn's columns of x, and their scales where groups have them.

    A thread loads codes of row t // 4, but scales of the two rows whose results it will hold.
    """
    thread = tl.arange(0, 32 * warps)
    group = turn * warps + thread // 32
    words = codes.to(tl.pointer_type(tl.int32))
    loaded = ()
    for eight in tl.static_range(beside):
        row = eight * 8 + thread % 32 // 4
        halves = ()
        for half in tl.static_range(2):
            column = group * 32 + half * 16 + thread % 4 * 4
            inside = (column < depth // 4) & (row < num_rows)
            halves += (load_registers(words + row * (depth // 4) + column, inside, 32 * warps),)
        units = ()
        if groups > 1:
            mine = eight * 8 + thread % 4 * 2
            place, inside = code_scale + mine * groups + group, group < groups
            units = (
                tl.load(place, inside & (mine < num_rows), other=0.0),
                tl.load(place + groups, inside & (mine + 1 < num_rows), other=0.0),
            )
        loaded += ((halves, units),)
    return loaded


@jit
def _nothing(is_int: tl.constexpr, warps: tl.constexpr):
    none = tl.zeros((32 * warps,), tl.int32 if is_int else tl.float32)
    return none, none, none, none


@jit
def _turn(
    totals,
    weight,
    rows,
    groups: tl.constexpr,
    is_int: tl.constexpr,
    tiles: tl.constexpr,
    beside: tl.constexpr,
    warps: tl.constexpr,
):
    """Add what 128 columns give to the totals of each tile and eight rows.

    With scales by row they stay sums of codes, and the scales come last; with scales by group a
    group's sum is scaled before it is added.
    """
    added = ()
    for tile in tl.static_range(tiles):
        weights, units = weight[tile]
        for eight in tl.static_range(beside):
            values, code_units = rows[eight]
            total = totals[tile * beside + eight]
            part = total if groups == 1 else _nothing(is_int, warps)
            for half in tl.static_range(2):
                low, high = weights[half]
                part = _multiply(low, high, values[half], part, is_int)
            if groups == 1:
                total = part
            else:
                low_unit, high_unit = units
                one, two = code_units
                total = (
                    total[0] + part[0].to(tl.float32) * (low_unit * one),
                    total[1] + part[1].to(tl.float32) * (low_unit * two),
                    total[2] + part[2].to(tl.float32) * (high_unit * one),
                    total[3] + part[3].to(tl.float32) * (high_unit * two),
                )
            added += (total,)
    return added


@jit
def _few_rows_kernel(
    codes,
    code_scale,
    weight,
    scale,
    bias,
    out,
    num_rows,
    size,
    depth: tl.constexpr,
    groups: tl.constexpr,
    adds_bias: tl.constexpr,
    is_int: tl.constexpr,
    tiles: tl.constexpr,
    beside: tl.constexpr,
    warps: tl.constexpr,
    ahead: tl.constexpr,
    early: tl.constexpr,
):
    """One program some tiles of 16 outputs; its warps take 128 columns, a group, in turn."""
    turns: tl.constexpr = (depth + 128 * warps - 1) // (128 * warps)
    slots: tl.constexpr = min(ahead, turns)
    first = tl.program_id(0) * tiles * 16
    held = ()
    for turn in tl.static_range(slots):
        held += (_weight_of(weight, scale, size, first, turn, depth, groups, tiles, warps),)
    if early:  # the weight is constant, so that x alone has to wait for the kernel in front
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    rows = ()
    for turn in tl.static_range(slots):
        rows += (_rows_of(codes, code_scale, num_rows, turn, depth, groups, beside, warps),)
    totals = ()
    for _ in tl.static_range(tiles * beside):
        totals += (_nothing(is_int and groups == 1, warps),)
    for begin in range(0, turns, slots):
        next_held, next_rows = (), ()
        for slot in tl.static_range(slots):
            totals = _turn(totals, held[slot], rows[slot], groups, is_int, tiles, beside, warps)
            later = begin + slots + slot  # masks let nothing load behind the last turn
            next_held += (
                _weight_of(weight, scale, size, first, later, depth, groups, tiles, warps),
            )
            next_rows += (
                _rows_of(codes, code_scale, num_rows, later, depth, groups, beside, warps),
            )
        held, rows = next_held, next_rows
    for tile in tl.static_range(tiles):
        output = first + tile * 16 + result_outputs()
        for eight in tl.static_range(beside):
            row = result_rows(eight * 8)
            result = add_warps(totals[tile * beside + eight], warps).to(tl.float32)
            if groups == 1:
                unit = tl.load(scale + output, output < size, other=0.0)
                result *= unit * tl.load(code_scale + row, row < num_rows, other=0.0)
            if adds_bias:
                result += tl.load(bias + output, output < size, other=0.0).to(tl.float32)
            place = out + row.to(tl.int64) * size + output
            stored = (output < size) & (row < num_rows)
            tl.store(place, result.to(out.dtype.element_ty), stored)
