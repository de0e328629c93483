"""The matrix units' own instruction, and what it takes from each thread.

`tl.dot` brings its operands to where the matrix units want them, through shared memory. In a
product of a few rows a program uses each number of the weight once, so that way saves nothing.
Here a tensor has one element a thread, which stands for one of its registers of 32 bits, and each
thread loads of the weight what the instruction wants from it.

What that is says the PTX ISA ("Matrix fragments for mma.m16n8k16" and "mma.m16n8k32"). Of a, 16
outputs of the weight, thread t of a warp holds outputs t // 4 and t // 4 + 8; of b, 8 rows of x,
row t // 4. A register has the columns 2 (t mod 4) and the next, or of eight bits the four from
4 (t mod 4) on; the second half of a and of b lies 8 or 16 columns on. Of the result the thread
holds rows 2 (t mod 4) and the next, for the same two outputs.

bfloat16 and INT8 need compute capability 8.0, FP8 needs 8.9. See the page "Running on codes".
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
    """`multiply_bf16` for 32 columns of E4M3 numbers, four a register.

    One instruction at compute capability 8.9. At 9.0 the assembler makes two products of float16
    of it and unpacks a and b for them in registers: FP8's rate is that of `wgmma`, which takes at
    least 64 outputs. A few rows are bound by reading, so it does not matter here.
    """
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
    """Return what threads hold, [threads, 16], as eight pairs of tensors [threads].

    The 16 are two registers of step 0, two of step 1 and so on: a split takes the last bit of
    their number apart, first the register, then the step from its lowest bit up.
    """
    zero, one = tl.split(tl.reshape(each, (threads, 2, 2, 2, 2)))
    a0, a1 = tl.split(zero)  # the first register of even and of odd steps
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
    """Return b of eight steps of 16 columns for one row of x: all eight rows are that row.

    pairs: [warps, 64], the 128 columns of each warp, two bfloat16 an element. They change threads
    through shared memory, which is little beside the weight.
    """
    apart = tl.permute(tl.reshape(pairs, (warps, 8, 2, 4)), (0, 3, 1, 2))
    apart = tl.broadcast_to(tl.reshape(apart, (warps, 1, 4, 16)), (warps, 8, 4, 16))
    return _eight_pairs(tl.reshape(apart, (32 * warps, 16)), 32 * warps)


@jit
def fragments_of_rows(pairs, warps: tl.constexpr):
    """`fragments_of_row` for eight rows of x, pairs [8, warps, 64]."""
    apart = tl.permute(tl.reshape(pairs, (8, warps, 8, 2, 4)), (1, 0, 4, 2, 3))
    return _eight_pairs(tl.reshape(apart, (32 * warps, 16)), 32 * warps)


@jit
def result_rows(rows: tl.constexpr):
    """Return the rows of x that `add_warps` gives results for, [32, 1, 2], from `rows` on."""
    quad = tl.arange(0, 32)[:, None, None] % 4
    return rows + quad * 2 + tl.arange(0, 2)[None, None, :]


@jit
def result_outputs():
    """Return the outputs of a tile, 0 to 15, that `add_warps` gives results for, [32, 2, 1]."""
    return tl.arange(0, 32)[:, None, None] // 4 + 8 * tl.arange(0, 2)[None, :, None]


@jit
def add_warps(total, warps: tl.constexpr):
    """Return the sum of the warps' results, [32, 2 outputs, 2 rows].

    Warps of one program add through shared memory, in an order that is fixed when the kernel is
    compiled: no parts in memory, no counters.
    """
    top, bottom = tl.join(total[0], total[1]), tl.join(total[2], total[3])
    both = tl.permute(tl.join(top, bottom), (0, 2, 1))
    return tl.sum(tl.reshape(both, (warps, 32, 2, 2)), axis=0)
