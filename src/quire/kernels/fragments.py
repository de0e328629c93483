"""The matrix units' own instruction, and what it takes from each thread.

`tl.dot` brings its operands to where the matrix units want them, through shared memory. In a
product of a few rows a program uses each number of the weight once, so nothing pays for that way.
Here a tensor has one element a thread, which stands for one of its registers, and each
thread loads what the instruction wants from it (PTX ISA, "Matrix fragments for mma.m16n8k16" and
"mma.m16n8k32"): of a tile of 16 outputs thread t of a warp holds outputs t / 4 and t / 4 + 8; of
8 rows of x it gives row t / 4, and of the result it holds rows 2 (t mod 4) and the next.
"""

from __future__ import annotations

from quire.kernels.runtime import jit, tl

OUTPUTS = 16  # of one instruction
ROWS = 8  # of x in one instruction


@jit
def load_registers(place, mask, threads: tl.constexpr):
    """Return four neighbouring words of 32 bits a thread, in one load; `place` is the first's."""
    words = tl.load(place[:, None] + tl.arange(0, 4)[None, :], mask[:, None], other=0)
    even, odd = tl.split(tl.reshape(words, (threads, 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@jit
def _floats(instruction: tl.constexpr, a, b, c):
    """Run an instruction of the matrix units whose result is float32."""
    return tl.inline_asm_elementwise(
        instruction,
        "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f",
        [a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], c[2], c[3]],
        dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
        is_pure=True,
        pack=1,
    )


@jit
def multiply_bf16(a, b, c):
    """Return c plus what 16 columns of 16 outputs, a, give with 8 rows of x, b.

    a: four registers of two bfloat16; b: two; c: four float32.
    """
    return _floats(
        """mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
        {$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};""",
        a,
        b,
        c,
    )


@jit
def multiply_fp8(a, b, c):
    """`multiply_bf16` for 32 columns of E4M3 numbers, four a register."""
    return _floats(
        """mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32
        {$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};""",
        a,
        b,
        c,
    )


@jit
def multiply_int8(a, b, c):
    """`multiply_fp8` for INT8; c is int32."""
    return tl.inline_asm_elementwise(
        """mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32
        {$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};""",
        "=r,=r,=r,=r,r,r,r,r,r,r,r,r,r,r",
        [a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], c[2], c[3]],
        dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
        is_pure=True,
        pack=1,
    )


@jit
def _eight_pairs(each, threads: tl.constexpr):
    """Return what threads hold, [threads, 16], as eight pairs of tensors."""
    zero, one = tl.split(tl.reshape(each, (threads, 2, 2, 2, 2)))
    a0, a1 = tl.split(zero)  # even and odd steps of the first registers
    b0, b1 = tl.split(one)
    a00, a10 = tl.split(a0)
    a01, a11 = tl.split(a1)
    b00, b10 = tl.split(b0)
    b01, b11 = tl.split(b1)
    x0, x4 = tl.split(a00)
    x2, x6 = tl.split(a10)
    x1, x5 = tl.split(a01)
    x3, x7 = tl.split(a11)
    y0, y4 = tl.split(b00)
    y2, y6 = tl.split(b10)
    y1, y5 = tl.split(b01)
    y3, y7 = tl.split(b11)
    return (x0, y0), (x1, y1), (x2, y2), (x3, y3), (x4, y4), (x5, y5), (x6, y6), (x7, y7)


@jit
def fragments_of_row(pairs, warps: tl.constexpr):
    """Return b of eight steps for one row of x, [warps, 64]: all eight rows are that row."""
    apart = tl.permute(tl.reshape(pairs, (warps, 8, 2, 4)), (0, 3, 1, 2))
    apart = tl.broadcast_to(tl.reshape(apart, (warps, 1, 4, 16)), (warps, 8, 4, 16))
    return _eight_pairs(tl.reshape(apart, (32 * warps, 16)), 32 * warps)


@jit
def fragments_of_rows(pairs, warps: tl.constexpr):
    """Return b of eight steps for eight rows of x, [8, warps, 64] pairs of columns."""
    apart = tl.permute(tl.reshape(pairs, (8, warps, 8, 2, 4)), (1, 0, 4, 2, 3))
    return _eight_pairs(tl.reshape(apart, (32 * warps, 16)), 32 * warps)


@jit
def result_rows(rows: tl.constexpr):
    """Return the rows of x that `add_warps` gives results for, [1, 1, 2] of each thread's two."""
    quad = tl.arange(0, 32)[:, None, None] % 4
    return rows + quad * 2 + tl.arange(0, 2)[None, None, :]


@jit
def result_outputs():
    """Return the outputs of a tile that `add_warps` gives results for, [32, 2, 1]."""
    return tl.arange(0, 32)[:, None, None] // 4 + 8 * tl.arange(0, 2)[None, :, None]


@jit
def add_warps(total, warps: tl.constexpr):
    """Return the sum of the warps' results, [32, 2 outputs, 2 rows], added in their order."""
    top, bottom = tl.join(total[0], total[1]), tl.join(total[2], total[3])
    both = tl.permute(tl.join(top, bottom), (0, 2, 1))
    return tl.sum(tl.reshape(both, (warps, 32, 2, 2)), axis=0)
