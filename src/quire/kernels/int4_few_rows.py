"""Products of a few rows with a weight of four bits, whose words stay in registers.

A step of a few requests uses each word of a weight once. So each thread loads the very words that
the matrix units want from it (`quire.kernels.fragments`), and they go through no shared memory.
They are loaded some turns ahead, the first ones before the program waits for x. A word is unpacked
by the magic number of `quire.kernels.int4`, but the zero is taken off a group's sum and not off
each weight. See the page "Running on codes".
"""

# A tuple grows while a kernel is unrolled, which types of tuples do not allow for.
# mypy: disable-error-code="assignment, var-annotated"

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from quire.kernels.fragments import (
    OUTPUTS,
    ROWS,
    add_warps,
    fragments_of_row,
    fragments_of_rows,
    load_registers,
    multiply_bf16,
    result_outputs,
    result_rows,
)
from quire.kernels.int4_packing import PackedInt4, scale_of
from quire.kernels.runtime import jit, starts_early, tl, triton


@dataclass(frozen=True)
class Share:
    """What a program takes: tiles of 16 outputs, whose columns its warps share.

    In a turn each warp takes 128 columns of every tile.
    """

    tiles: int
    num_warps: int
    ahead: int  # turns that are loaded before they are needed
    # The most that a thread takes, where a block of columns is one group. None: the compiler's own
    # choice, which loads later what there is no register for.
    registers: int | None = None


def share_for(rows: int, outputs: int, depth: int) -> Share | None:
    """Return the best share of a sweep over the products of the 8B shape on an H200.

    The faster ones have all programs on the GPU at once, and as many registers as that leaves: of
    four warps two programs a multiprocessor with 255, three with 168.

    None: `quire.kernels.int4`, with tiles in shared memory, is faster for more rows, which use
    each word more often; and it takes an odd number of columns. Here x is loaded two columns at a
    time.

    Args:
        rows: of x, the tokens of a step.
        outputs, depth: N and K of the weight.
    """
    if rows > ROWS or depth % 2:
        return None
    if outputs > 16384:
        return Share(2, 2, 2, 168)
    ahead = 8 if rows == 1 and depth > 8192 else 4
    return Share(1, 4, ahead, 255 if outputs <= 4096 else 168)


def few_rows_int4_linear(
    x: Tensor, weight: PackedInt4, bias: Tensor | None, share: Share
) -> Tensor:
    """Return x · weightᵀ + bias, bfloat16 [rows, N].

    Args:
        x: bfloat16 [rows, K], contiguous, K even. Any number of rows; `share_for` says how many
            are fast.
        weight: [N, K], packed.
        bias: bfloat16 [N].
        share: its tiles divide 8, as weights are padded to 128 outputs and nothing masks a word.
    """
    num_rows, depth = x.shape
    size = weight.shape[0]
    out = x.new_empty(num_rows, size)
    early = starts_early(x)
    limited = share.registers is not None and weight.groups_a_block == 1  # more groups would spill
    _few_rows_kernel[(triton.cdiv(size, OUTPUTS * share.tiles),)](
        x,
        weight.words,
        weight.scales,
        out if bias is None else bias,
        out,
        num_rows,
        size,
        depth=depth,
        blocks=weight.words.shape[1],
        groups=weight.groups_a_block,
        halves=weight.halves,
        adds_bias=bias is not None,
        tiles=share.tiles,
        beside=triton.cdiv(num_rows, ROWS),
        single=num_rows == 1,
        warps=share.num_warps,
        ahead=share.ahead,
        early=early,
        num_warps=share.num_warps,
        maxnreg=share.registers if limited else None,
        launch_pdl=early,
    )
    return out


# docs: numbers begin
@jit
def _number(word):
    """Return the lowest code of each half word as bfloat16, 128 + code, two in a register.

    (word & 0x000f000f) | 0x43004300, in one instruction.
    """
    return tl.inline_asm_elementwise(
        "lop3.b32 $0, $1, 0x000f000f, 0x43004300, 0xEA;",
        "=r,r",
        [word],
        dtype=tl.int32,
        is_pure=True,
        pack=1,
    )


@jit
def _numbers(words, piece: tl.constexpr):
    """Return a of 16 columns: code `piece`, of 0 to 3, of each half word of four words."""
    return (
        _number(words[0] >> (4 * piece)),
        _number(words[1] >> (4 * piece)),
        _number(words[2] >> (4 * piece)),
        _number(words[3] >> (4 * piece)),
    )


# docs: numbers end


@jit
def _minus_zero_of(unit):
    """Return the upper half of words, which is bfloat16: -(128 + zero), float32."""
    return (unit & -65536).to(tl.float32, bitcast=True)


@jit
def _weight_of(
    words,
    scales,
    first,
    turn,
    blocks: tl.constexpr,
    groups: tl.constexpr,
    tiles: tl.constexpr,
    warps: tl.constexpr,
):
    """Load a turn's words of each tile, and of each group the units: scale and zero in 32 bits.

    A thread takes four words for the left 16 of every 32 columns, and four for the right.
    """
    thread = tl.arange(0, 32 * warps)
    block = turn * warps + thread // 32
    inside = block < blocks
    words_at = words.to(tl.pointer_type(tl.int32)) + thread % 32 * 4
    loaded = ()
    for tile in tl.static_range(tiles):
        place = (first + tile) * blocks + block
        left = load_registers(words_at + place * 256, inside, 32 * warps)
        right = load_registers(words_at + place * 256 + 128, inside, 32 * warps)
        units = ()
        for group in tl.static_range(groups):
            at = scales + (place * groups + group) * 16 + thread % 32 // 4
            units += ((tl.load(at, inside, other=0), tl.load(at + 8, inside, other=0)),)
        loaded += ((left, right, units),)
    return loaded


@jit
def _rows_of(
    x,
    num_rows,
    turn,
    depth: tl.constexpr,
    beside: tl.constexpr,
    single: tl.constexpr,
    warps: tl.constexpr,
):
    """Load a turn's columns of x, two bfloat16 an element: [warps, 64], or [8, warps, 64] each.

    Whole lines, each number once: `quire.kernels.fragments` brings them to their threads.
    """
    pairs = x.to(tl.pointer_type(tl.int32))
    column = (turn * warps + tl.arange(0, warps))[:, None] * 64 + tl.arange(0, 64)[None, :]
    loaded = ()
    if single:
        loaded += (tl.load(pairs + column, column < depth // 2, other=0),)
    else:
        for eight in tl.static_range(beside):
            row = eight * 8 + tl.arange(0, 8)[:, None, None]
            mask = (row < num_rows) & (column < depth // 2)[None]
            loaded += (tl.load(pairs + row * (depth // 2) + column[None], mask, other=0),)
    return loaded


@jit
def _nothing(warps: tl.constexpr):
    none = tl.zeros((32 * warps,), tl.float32)
    return none, none, none, none


@jit
def _turn(
    totals,
    weight,
    rows,
    groups: tl.constexpr,
    halves: tl.constexpr,
    tiles: tl.constexpr,
    beside: tl.constexpr,
    single: tl.constexpr,
    warps: tl.constexpr,
):
    """Add what a block of columns gives to the totals of each tile and eight rows.

    A code q enters as 128 + q. Over a group that is too much by (128 + zero) · Σ x, which is
    taken off afterwards. Σ x is the same for all outputs, and comes from a product with ones.
    """
    steps: tl.constexpr = 8 // groups  # of 16 columns in a group
    one = tl.full((32 * warps,), 0x3F803F80, tl.int32)  # two bfloat16 ones
    values = ()
    for eight in tl.static_range(beside):
        if single:
            values += (fragments_of_row(rows[0], warps),)
        else:
            values += (fragments_of_rows(rows[eight], warps),)
    for group in tl.static_range(groups):
        sums = ()
        for eight in tl.static_range(beside):
            total = _nothing(warps)
            for step in tl.static_range(steps):
                b = values[eight][group * steps + step]
                total = multiply_bf16((one, one, one, one), b, total)
            sums += (total,)
        added = ()
        for tile in tl.static_range(tiles):
            low, high = weight[tile][2][group]
            low_scale, high_scale = scale_of(low, halves), scale_of(high, halves)
            low_zero, high_zero = _minus_zero_of(low), _minus_zero_of(high)
            for eight in tl.static_range(beside):
                part = _nothing(warps)
                for step in tl.static_range(steps):
                    numbers = _numbers(weight[tile][step % 2], (group * steps + step) // 2)
                    part = multiply_bf16(numbers, values[eight][group * steps + step], part)
                total, more = totals[tile * beside + eight], sums[eight]
                added += (
                    (
                        total[0] + (part[0] + low_zero * more[0]) * low_scale,
                        total[1] + (part[1] + low_zero * more[1]) * low_scale,
                        total[2] + (part[2] + high_zero * more[2]) * high_scale,
                        total[3] + (part[3] + high_zero * more[3]) * high_scale,
                    ),
                )
        totals = added
    return totals


@jit
def _few_rows_kernel(
    x,
    words,
    scales,
    bias,
    out,
    num_rows,
    size,
    depth: tl.constexpr,
    blocks: tl.constexpr,
    groups: tl.constexpr,
    halves: tl.constexpr,
    adds_bias: tl.constexpr,
    tiles: tl.constexpr,
    beside: tl.constexpr,
    single: tl.constexpr,
    warps: tl.constexpr,
    ahead: tl.constexpr,
    early: tl.constexpr,
):
    """One program some tiles of 16 outputs; its warps take blocks of 128 columns in turn."""
    turns: tl.constexpr = (blocks + warps - 1) // warps
    slots: tl.constexpr = min(ahead, turns)
    first = tl.program_id(0).to(tl.int64) * tiles
    held = ()
    for turn in tl.static_range(slots):
        held += (_weight_of(words, scales, first, turn, blocks, groups, tiles, warps),)
    if early:  # the weight is constant, so that x alone has to wait for the kernel in front
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    rows = ()
    for turn in tl.static_range(slots):
        rows += (_rows_of(x, num_rows, turn, depth, beside, single, warps),)
    totals = ()
    for _ in tl.static_range(tiles * beside):
        totals += (_nothing(warps),)
    for begin in range(0, turns, slots):
        next_held, next_rows = (), ()
        for slot in tl.static_range(slots):
            totals = _turn(
                totals, held[slot], rows[slot], groups, halves, tiles, beside, single, warps
            )
            later = begin + slots + slot  # masks let nothing load behind the last turn
            next_held += (_weight_of(words, scales, first, later, blocks, groups, tiles, warps),)
            next_rows += (_rows_of(x, num_rows, later, depth, beside, single, warps),)
        held, rows = next_held, next_rows
    for tile in tl.static_range(tiles):
        output = (first + tile) * 16 + result_outputs()
        for eight in tl.static_range(beside):
            result = add_warps(totals[tile * beside + eight], warps)
            if adds_bias:
                result += tl.load(bias + output, output < size, other=0.0).to(tl.float32)
            row = result_rows(eight * 8)
            place = out + row.to(tl.int64) * size + output
            stored = (output < size) & (row < num_rows)
            tl.store(place, result.to(out.dtype.element_ty), stored)
