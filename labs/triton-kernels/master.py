# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Lab: kernels that survive a GPU
#
# You write the kernels of a decode step in Triton: a fused norm, a product with four-bit weights in
# a packing that nobody ships, a product that many programs share, and one more kernel of your
# variant. Then quire takes a step with them. Chapter: *Triton kernels*. 100 points, 70 core and 30
# depth, all on a CPU. The minutes below are estimates. They add up to a little more than five
# hours, which is two evenings.
#
# | task | tier | points | minutes |
# |---|---|---|---|
# | 1. `norm` | core | 10 | 30 |
# | 2. `gemv` | core | 25 | 75 |
# | 3. `split` | core | 20 | 60 |
# | 4. `deep` | depth | 30 | 100 |
# | 5. `step`, with a written answer | core | 10 + 5 | 50 |
#
# Each task is one cell. Keep its `# task:` line: grading takes that cell and nothing else, so
# helpers of yours belong inside it. A cell imports `triton`, `triton.language` and `math` and holds
# kernels, functions and constants; it has no classes and no NumPy. The behaviour asked for differs
# from quire's on purpose. The sentences that say how are the ones the hidden tests judge.
#
# ### How a kernel is run here
#
# `labkit.check` and grading run your kernels in Triton's interpreter, in a process of their own. An
# operation on a tile takes some tens of microseconds there, however small the tile is. So the cases
# are small, and a kernel of very many tiny programs may take too long. All public checks of a task
# have 2 seconds together, and a call in grading has 10.
#
# A launch has at most 4,096 programs here. One program for each row of a matrix is never more, and
# no case needs more for its tokens and heads either. Where a kernel is run and not only compiled, a
# matrix has at most 4,096 rows and 1,024 columns (in task 1, 64 rows and 4,096 columns). There are
# at most 16 splits, and at most 64 tokens, sequences and heads.
#
# What a kernel or a function of yours prints is not shown. To look into a kernel, store the tile in
# question into an output: the check that fails says the first number that differs, and shows a
# small output whole.
#
# The interpreter forgives what a GPU does not, and labkit puts that back:
#
# - A lane that a mask leaves out and that has no `other` reads poison: NaN or infinity, or
#   1,515,870,810 (the bytes 5A) among whole numbers.
# - An output and a workspace are full of poison before the launch.
# - An address that lies in no tensor ends the run, and so does a write to an input. The message
#   says which row and column it was.
# - The programs of a launch run in a random order. A program may not read or write what another
#   program of the same launch has written, and may not write what another one has read. The next
#   launch sees everything.
# - Atomic operations are refused, since their order is not fixed.
# - `tl.dot` of float32 rounds to TF32, as it does on a GPU, unless you ask for `"ieee"`.
# - bfloat16 is refused: the interpreter computes with its bits as if they were whole numbers.
#
# The interpreter takes Python that Triton's compiler does not. Every kernel has to compile for a
# Hopper, too, which grading tries without one. A cell at the end shows you what your kernels
# compile to.
#
# ### What a task asks for
#
# A task names the kernels and a function that returns their *launches*, a list in the order in
# which they run. A launch is a dict with all five of these keys:
#
# | key | meaning |
# |---|---|
# | `kernel` | the name of the kernel, a string |
# | `grid` | a tuple of one to three numbers of programs, such as `(rows,)` |
# | `constants` | the value of each `tl.constexpr` parameter, by its name |
# | `num_warps`, `num_stages` | as Triton takes them; they count only where a kernel is compiled |
#
# The other parameters of a kernel get their tensors and numbers **by their names**, from the table
# of the task. A kernel takes those that it needs, in any order. What the function that returns the
# launches is called with, it may also hand on as a constant. Tensors are contiguous, row by row,
# where the task does not say otherwise. A cell that doubles a vector would be:
#
# ```python
# @triton.jit
# def twice(x, y, size, BLOCK: tl.constexpr):
#     i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
#     tl.store(y + i, 2 * tl.load(x + i, mask=i < size, other=0.0), mask=i < size)
#
#
# def twice_launch(size):
#     grid = (triton.cdiv(size, 1024),)
#     return [{"kernel": "twice", "grid": grid, "constants": {"BLOCK": 1024}, "num_warps": 4,
#              "num_stages": 1}]
# ```

# %%
import importlib.util

if importlib.util.find_spec("labkit") is None:
    # In Colab; torch is there already and stays as it is.
    get_ipython().run_line_magic("pip", "install -q 'quire[labs] @ git+{{repository}}'")

import labkit
from labkit.gpu.absent import stand_in

stand_in()  # where there is no Triton, on macOS: cells run all the same
LAB = "{{lab}}"  # which lab this is, and which variant

# %% [markdown]
# ## Task 1: a fused row kernel (core, 10 points)
#
# A layer adds what it computed to the residual stream, and the next layer normalises the sum. One
# kernel reads and writes the stream once, where two would do so twice.
#
# **Specification.** `add_norm` adds `x` to `residual` and writes the norm of the sum, times a
# weight, to `out`.
# ### BEGIN VARIANT words sinks
# `add_norm_launch(rows, size, stride, eps)` returns its launches.
# ### END VARIANT
# ### BEGIN VARIANT rope
# `add_norm_launch(rows, size, stride, eps, group)` returns its launches.
# ### END VARIANT
#
# | parameter | type | shape |
# |---|---|---|
# | `x` | float16 | [rows, size], rows `stride` apart |
# | `residual` | float16, also written | [rows, size], rows `stride` apart |
# | `weight` | float16 | [size] |
# | `out` | float16, an output | [rows, size], rows `stride` apart |
# | `rows`, `size`, `stride` | int | |
# ### BEGIN VARIANT rope
# | `group` | int | |
# ### END VARIANT
#
# - The sum is computed in float32. `residual` gets the sum, rounded to float16.
# - The norm and its product with the weight are computed in float32. The product is rounded once,
#   to float16, when it is written.
# - `size` is any number from 1 to 4,096.
# - `eps` may be 0, but only where no mean is 0.
# - The rows of `x`, `residual` and `out` lie `stride` elements apart, which may be more than
#   `size`. Between the rows there is nothing to read and nothing to write. The offset of a row may
#   pass 2³¹.
#
# What the norm is:
#
# ### BEGIN VARIANT words
# - The norm is that of the *rounded* sum `s`: `s / sqrt(mean(s²) + eps)`.
# - It is multiplied by `1 + weight`, since the file stores the weight less 1.
#
# With `eps` 0 the row `x` = `3 4` and the residual `0 0` have the sum `3 4` and the mean square
# 12.5. The weight `0 1` makes it `0.8485 2.263`: 3 / 3.5355, and twice 4 / 3.5355.
# ### END VARIANT
# ### BEGIN VARIANT sinks
# - The norm is that of the sum `s` *before* it is rounded: `s / (sqrt(mean(s²)) + eps)`. The margin
#   `eps` stands outside the root.
# - It is multiplied by `weight`.
#
# With `eps` 0.5 the row `x` = `3 4` and the residual `0 0` have the sum `3 4` and the mean square
# 12.5. The weight `1 2` makes it `0.7434 1.982`: 3 / 4.0355, and twice 4 / 4.0355.
# ### END VARIANT
# ### BEGIN VARIANT rope
# - The columns of a row are cut into groups of `group` columns, and `size` is a multiple of
#   `group`. Each group has a mean of its own: a number `s` of the *unrounded* sum becomes `s /
#   sqrt(mean(s² of its group) + eps)`. `group` need not be a power of two. A row has at most 64
#   groups.
# - It is multiplied by `weight`.
#
# With `eps` 0 and `group` 2 the row `x` = `3 4 0 5` and a residual of zeros have the groups `3 4`
# and `0 5`, both with the mean square 12.5. The weight `1 2 1 1` makes it `0.8485 2.263 0 1.414`.
# ### END VARIANT
#
# *Sections of the chapter:* *A program is a tile*, *What the interpreter hides*, *Fusing is counted
# in bytes*.
#
# *Deliverable:* `add_norm` and `add_norm_launch`; their check passes, and the cell *What your
# kernels compile to* at the end says that `add_norm` compiles, which the check does not try.


# %% task="norm"
# task: norm
import triton
import triton.language as tl


@triton.jit
def add_norm(
    x, residual, weight, out, size, stride,
    ### BEGIN VARIANT rope
    group,
    ### END VARIANT
    EPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add, and write the norm of the sum."""
    ### BEGIN SOLUTION
    column = tl.arange(0, BLOCK)
    ### BEGIN VARIANT words sinks
    width = size
    ### END VARIANT
    ### BEGIN VARIANT rope
    width = group
    ### END VARIANT
    inside = column < width
    column += tl.program_id(1) * width
    place = tl.program_id(0).to(tl.int64) * stride + column
    total = tl.load(x + place, inside, other=0.0).to(tl.float32)
    total += tl.load(residual + place, inside, other=0.0).to(tl.float32)
    rounded = total.to(tl.float16)
    tl.store(residual + place, rounded, inside)
    factor = tl.load(weight + column, inside, other=0.0).to(tl.float32)
    ### BEGIN VARIANT words
    total = rounded.to(tl.float32)
    factor = (1 + factor) * tl.rsqrt(tl.sum(total * total) / width + EPS)
    ### END VARIANT
    ### BEGIN VARIANT sinks
    factor = factor / (tl.sqrt(tl.sum(total * total) / width) + EPS)
    ### END VARIANT
    ### BEGIN VARIANT rope
    factor = factor * tl.rsqrt(tl.sum(total * total) / width + EPS)
    ### END VARIANT
    tl.store(out + place, (total * factor).to(tl.float16), inside)
    ### END SOLUTION


def add_norm_launch(
    rows: int, size: int, stride: int, eps: float,
    ### BEGIN VARIANT rope
    group: int,
    ### END VARIANT
) -> list[dict]:  # fmt: skip
    """Return the launch of `add_norm`."""
    ### BEGIN SOLUTION
    ### BEGIN VARIANT words sinks
    width = size
    ### END VARIANT
    ### BEGIN VARIANT rope
    width = group
    ### END VARIANT
    constants = {"EPS": eps, "BLOCK": triton.next_power_of_2(width)}
    grid = (rows, size // width)
    return [
        {
            "kernel": "add_norm", "grid": grid, "constants": constants, "num_warps": 4,
            "num_stages": 1,
        }
    ]  # fmt: skip
    ### END SOLUTION


# %% check="norm"
labkit.check("norm")

# %% [markdown]
# ## Task 2: a product with four-bit weights (core, 25 points)
#
# With one token a product reads each weight once, and its time is that of the bytes. Four bits a
# weight are a quarter of the bytes, if the kernel can unpack them as fast as they come. A packing
# is a decision of the producer, and you read the one that you are given.
#
# **Specification.** `gemv` multiplies the vector `x` by a matrix of `n` rows and `k` columns that
# is stored in codes of 4 bits. `gemv_launch(n, k, group, words_stride)` returns its launches.
#
# | parameter | type | shape |
# |---|---|---|
# | `x` | float16 | [k] |
# | `words` | int32 | [n, groups · group / 8], rows `words_stride` apart |
# | `scales` | float16 | [n, groups] |
# ### BEGIN VARIANT words sinks
# | `zeros` | int32 | [n, ⌈groups / 8⌉] |
# ### END VARIANT
# ### BEGIN VARIANT rope
# | `offsets` | float16 | [n, groups] |
# ### END VARIANT
# | `y` | float16, an output | [n] |
# | `n`, `k`, `words_stride` | int | |
#
# - `y[i]` is the sum over the columns of `x` times the weight of row `i`. Weights, products and
#   their sum are float32; only the sum is rounded, once, when it is written.
# - The columns of a row are cut into groups of `group` columns, which is 32, 64 or 128. `groups` is
#   `⌈k / group⌉`. The words of a group lie together, `group / 8` of them.
# - The last group of a row may have fewer columns than `group`. It has as many words as the others.
#   The codes of the columns that are not there are any bits, and `x` has no numbers for them.
# - `n` and `k` are any numbers from 1 up.
# - The rows of `words` lie `words_stride` words apart, which may be more than they need. Between
#   them there is nothing to read. The offset of a row may pass 2³¹; those in the other tensors do
#   not.
# - Each word is read once.
# - Compiled for a Hopper, the kernel reads 16 bytes with one instruction: its PTX has
#   `ld.global.v4.b32`, or `cp.async.cg` where Triton copies ahead. This is tried with `n` and `k`
#   4,096, `group` 128 and `words_stride` 512. A program has `32 * num_warps` threads. A thread
#   loads 16 bytes only if the tile of words has at least four words for each thread.
#
# Where a code lies. Words, slots and columns of a group are counted from 0:
#
# ### BEGIN VARIANT words
# - A word has 8 slots of 4 bits. Slot 0 is the *highest* 4 bits of the word, slot 7 the lowest.
# - The code of column `c` of a group lies in word `c % w`, slot `c // w`, where `w` is `group / 8`.
#   So a word holds every `w`-th column.
#
# With `group` 32 a group has 4 words. The word 0 of a group, in hexadecimal `12345678`, holds the
# code 1 for column 0, 2 for column 4, 3 for column 8, and 8 for column 28.
# ### END VARIANT
# ### BEGIN VARIANT sinks
# - A word has 8 slots of 4 bits. Slot 0 is the *lowest* 4 bits of the word, slot 7 the highest.
# - The codes of the columns `8 j` to `8 j + 7` of a group lie in word `j`: first those of the four
#   even columns, in the slots 0 to 3, then those of the four odd columns, in the slots 4 to 7.
#
# The word 0 of a group, in hexadecimal `12345678`, holds the code 8 for column 0, 7 for column 2, 6
# for column 4, 5 for column 6, 4 for column 1, and 1 for column 7.
# ### END VARIANT
# ### BEGIN VARIANT rope
# - A word has 8 slots of 4 bits. Slot 0 is the *highest* 4 bits of the word, slot 7 the lowest.
# - The codes of the columns `8 j` to `8 j + 7` of a group lie in word `j`, in the slots 0 to 7.
#
# The word 0 of a group, in hexadecimal `12345678`, holds the code 1 for column 0, 2 for column 1,
# and 8 for column 7.
# ### END VARIANT
#
# What a code stands for:
#
# ### BEGIN VARIANT words
# - The weight is `(code - zero) * scale`, with the scale and the zero of its row and group.
# - The zero of group `g` is stored in the 4 bits from bit `4 * (g % 8)` up of word `g // 8` of its
#   row of `zeros`. Stored is `zero - 1`, and 15 for the zero 0. Bits of no group are any bits.
#
# If word 0 of `zeros` is `FFFFFF70`, group 0 has the zero 1, group 1 the zero 8, and group 2 the
# zero 0.
# ### END VARIANT
# ### BEGIN VARIANT sinks
# - The weight is `(code - zero) * scale`, with the scale and the zero of its row and group.
# - The zero of group `g` is stored in the 4 bits from bit `4 * (g % 8)` up of word `g // 8` of its
#   row of `zeros`. Stored is `15 - zero`. Bits of no group are any bits.
#
# If word 0 of `zeros` is `FFFFFF70`, group 0 has the zero 15, group 1 the zero 8, and group 2 the
# zero 0.
# ### END VARIANT
# ### BEGIN VARIANT rope
# - The lower 3 bits of a code are a magnitude, and the highest is a sign: the codes 0 to 7 stand
#   for the numbers 0 to 7, and the codes 9 to 15 for -1 to -7. The code 8, minus zero, stands for
#   -8.
# - The weight is `number * scale + offset`, with the scale and the offset of its row and group.
#
# With the scale 0.5 and the offset 1 the codes `3 11 8` are the weights `2.5 -0.5 -3`.
# ### END VARIANT
#
# *Sections of the chapter:* *A product of one row is bytes*, *Four bits: packing is part of the
# kernel*.
#
# *Deliverable:* `gemv` and `gemv_launch`; their check passes, and the cell *What your kernels
# compile to* at the end shows `ld.global.v4.b32` or `cp.async.cg` for `gemv`, which the check does
# not try.


# %% task="gemv"
# task: gemv
import triton
import triton.language as tl


@triton.jit
def gemv(
    x, words, scales,
    ### BEGIN VARIANT words sinks
    zeros,
    ### END VARIANT
    ### BEGIN VARIANT rope
    offsets,
    ### END VARIANT
    y, n, k, words_stride, GROUP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One program `ROWS` rows of the matrix."""
    ### BEGIN SOLUTION
    WORDS: tl.constexpr = GROUP // 8
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    word = tl.arange(0, WORDS)
    needed = row < n
    groups = (k + GROUP - 1) // GROUP
    at = words + row.to(tl.int64)[:, None] * words_stride + word[None, :]
    total = tl.zeros((ROWS,), tl.float32)
    for group in range(groups):
        codes = tl.load(at + group * WORDS, needed[:, None], other=0)
        scale = tl.load(scales + row * groups + group, needed, other=0.0).to(tl.float32)
        ### BEGIN VARIANT words sinks
        zero = tl.load(zeros + row * ((groups + 7) // 8) + group // 8, needed, other=0)
        zero = zero >> (4 * (group % 8))
        ### END VARIANT
        ### BEGIN VARIANT words
        zero = (zero + 1) & 15
        ### END VARIANT
        ### BEGIN VARIANT sinks
        zero = 15 - (zero & 15)
        ### END VARIANT
        ### BEGIN VARIANT rope
        offset = tl.load(offsets + row * groups + group, needed, other=0.0).to(tl.float32)
        ### END VARIANT
        for slot in tl.static_range(8):
            ### BEGIN VARIANT words
            column = group * GROUP + slot * WORDS + word
            code = (codes >> (28 - 4 * slot)) & 15
            weight = (code - zero[:, None]).to(tl.float32) * scale[:, None]
            ### END VARIANT
            ### BEGIN VARIANT sinks
            column = group * GROUP + word * 8 + slot % 4 * 2 + slot // 4
            code = (codes >> (4 * slot)) & 15
            weight = (code - zero[:, None]).to(tl.float32) * scale[:, None]
            ### END VARIANT
            ### BEGIN VARIANT rope
            column = group * GROUP + word * 8 + slot
            code = (codes >> (28 - 4 * slot)) & 15
            number = tl.where(code == 8, -8, tl.where(code > 8, 8 - code, code))
            weight = number.to(tl.float32) * scale[:, None] + offset[:, None]
            ### END VARIANT
            value = tl.load(x + column, column < k, other=0.0).to(tl.float32)
            total += tl.sum(weight * value[None, :], 1)
    tl.store(y + row, total.to(tl.float16), needed)
    ### END SOLUTION


def gemv_launch(n: int, k: int, group: int, words_stride: int) -> list[dict]:
    """Return the launch of `gemv`."""
    ### BEGIN SOLUTION
    constants = {"GROUP": group, "ROWS": 16}
    return [
        {
            "kernel": "gemv", "grid": (triton.cdiv(n, 16),), "constants": constants,
            "num_warps": 2, "num_stages": 2,
        }
    ]  # fmt: skip
    ### END SOLUTION


# %% check="gemv"
labkit.check("gemv")

# %% [markdown]
# ## Task 3: programs that share the columns (core, 20 points)
#
# A matrix of few rows gives work to few programs, and most of the GPU waits. So several programs
# share the columns of the same rows. Each leaves a sum, and a second launch adds the sums.
#
# **Specification.** `partial` writes the sum of each split to a workspace, and `combine` adds them
# to `y`, the product of `x` and the transpose of `weight`. `product_launch(rows, n, k, splits)`
# returns the launches, first `partial`, then `combine`.
#
# | parameter | type | shape |
# |---|---|---|
# | `x` | float16 | [rows, k] |
# | `weight` | float16 | [n, k] |
# | `partials` | float32, a workspace | [splits, rows, n] |
# | `y` | float16, an output | [rows, n] |
# | `rows`, `n`, `k`, `splits` | int | |
#
# - The columns are cut into blocks of 64; the last one may have fewer. Block `b` belongs to split
#   `b % splits`. `partials[s]` gets the sum over the blocks of split `s`, in float32.
# - A split without a block has the sum 0, and it is written.
# - The workspace holds whatever the last call left, or poison before the first. Nobody sets it to 0
#   for you.
# - `combine` adds the sums of the splits one after another, split 0 first, in float32. It loads the
#   sums of one split at a time: `tl.sum` over a tile of splits promises no order on a GPU, even if
#   the interpreter's is this one. `y` gets the sums, rounded once to float16.
# - `rows` is 1 to 16. `n`, `k` and `splits` are any numbers from 1 up, and no tensor has 2³¹
#   elements.
# - Each number of `weight` is read once, and no program of `partial` reads the blocks of two
#   splits.
# - Compiled for a Hopper, `partial` multiplies with `wgmma`, the instruction of its matrix units.
#   Triton chooses it where the left operand of `tl.dot` has at least 64 rows, the right one at
#   least 16 columns, and `num_warps` is 4 or more. Else it takes the older `mma.sync`, or a loop.
#   This is tried with 16 rows, `n` and `k` 4,096 and 4 splits.
#
# With `k` 200 there are blocks of 64, 64, 64 and 8 columns. With 3 splits they belong to the
# splits:
#
# | columns | block | split |
# |---|---|---|
# | 0 to 63 | 0 | 0 |
# | 64 to 127 | 1 | 1 |
# | 128 to 191 | 2 | 2 |
# | 192 to 199 | 3 | 0 |
#
# With 5 splits the last one has no block, and its part of the workspace is 0. The order of the sums
# shows in float32: the sums `16777216 1 1 -16777216` give 0 in this order and 2 in the opposite
# one.
#
# *Sections of the chapter:* *Tiles, and their order*, *Too few programs*; *What the compiler made*,
# on its second page.
#
# *Deliverable:* `partial`, `combine` and `product_launch`; their check passes, and the cell *What
# your kernels compile to* at the end shows `wgmma` for `partial`, which the check does not try.


# %% task="split"
# task: split
import triton
import triton.language as tl


@triton.jit
def partial(
    x, weight, partials, rows, n, k, splits, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    """One program `OUTPUTS` rows of the weight and one split of the columns."""
    ### BEGIN SOLUTION
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)[:, None]
    split = tl.program_id(1)
    row = tl.arange(0, ROWS)[None, :]
    total = tl.zeros((OUTPUTS, ROWS), tl.float32)
    for begin in range(split * DEPTH, k, splits * DEPTH):
        across = begin + tl.arange(0, DEPTH)[None, :]
        down = begin + tl.arange(0, DEPTH)[:, None]
        left = tl.load(weight + output * k + across, (output < n) & (across < k), other=0.0)
        right = tl.load(x + row * k + down, (row < rows) & (down < k), other=0.0)
        total = tl.dot(left, right, total)
    place = partials + (split * rows + row) * n + output
    tl.store(place, total, (row < rows) & (output < n))
    ### END SOLUTION


@triton.jit
def combine(partials, y, rows, n, splits, BLOCK: tl.constexpr):
    """One program `BLOCK` numbers of the output."""
    ### BEGIN SOLUTION
    size = rows * n
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    total = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        total += tl.load(partials + split * size + place, inside, other=0.0)
    tl.store(y + place, total.to(tl.float16), inside)
    ### END SOLUTION


def product_launch(rows: int, n: int, k: int, splits: int) -> list[dict]:
    """Return the launches of `partial` and `combine`."""
    ### BEGIN SOLUTION
    tile = {"ROWS": 16, "OUTPUTS": 64, "DEPTH": 64}
    return [
        {
            "kernel": "partial", "grid": (triton.cdiv(n, 64), splits), "constants": tile,
            "num_warps": 4, "num_stages": 3,
        },
        {
            "kernel": "combine", "grid": (triton.cdiv(rows * n, 256),),
            "constants": {"BLOCK": 256}, "num_warps": 4, "num_stages": 1,
        },
    ]  # fmt: skip
    ### END SOLUTION


# %% check="split"
labkit.check("split")

# %% [markdown]
# ### BEGIN VARIANT words
# ## Task 4: three bits over words (depth, 30 points)
#
# 32 is no multiple of 3. Codes of 3 bits that leave no bit unused lie across the ends of words.
# Some weights are too large for any grid, so each row names a few columns whose weights it stores
# in 16 bits.
#
# **Specification.** `deep` multiplies the vector `x` by a matrix of `n` rows and `k` columns in
# codes of 3 bits with exceptions. `deep_launch(n, k, group, words_stride, exceptions)` returns its
# launches.
#
# | parameter | type | shape |
# |---|---|---|
# | `x` | float16 | [k] |
# | `words` | int32 | [n, groups · 3 · group / 32], rows `words_stride` apart |
# | `scales` | float16 | [n, groups] |
# | `zeros` | float16 | [n, groups] |
# | `columns` | int32 | [n, exceptions] |
# | `values` | float16 | [n, exceptions] |
# | `y` | float16, an output | [n] |
# | `n`, `k`, `words_stride`, `exceptions` | int | |
#
# The numbers:
#
# - A group has `3 * group / 32` words. They are one stream of bits: bit `b` of the stream is bit
#   `b % 32` of the group's word `b // 32`, with the lowest bit of a word first. The code of column
#   `c` of the group has the bits `3 c`, `3 c + 1` and `3 c + 2`, its lowest bit first.
# - The weight is `(code - zero) * scale`, with the scale and the zero of its row and group. A zero
#   is a float16 and need not be whole.
# - `columns` lists the columns whose weight is the number of the same place in `values`. Such a
#   weight counts in place of that of the code, which may be anything.
# - `y[i]` is the sum over the columns of `x` times the weight of row `i`. Weights, products and
#   their sum are float32; only the sum is rounded, once.
#
# What is left out:
#
# - A place of `columns` that holds -1 names no column, and its place in `values` may hold anything,
#   NaN too. Such places may stand anywhere in a row's list. No column stands in a list twice.
# - The codes of the columns from `k` on are any bits, and `x` has no numbers for them.
#
# At the edges:
#
# - A code whose bits begin in bit 30 or 31 of a word ends in the next word of its group. The last
#   code of a group ends in the last bit of its last word, so the words of the next group, or what
#   lies behind a row's last word, is never a part of it.
# - A row whose list holds -1 alone has no exceptions, and a row may have them all in one group.
#
# Sizes:
#
# - `group` is 32, 64 or 128. `n`, `k` and `exceptions` are any numbers from 1 up; `exceptions` need
#   not be a power of two.
# - A scale lies between 0 and 8. So it is as good to subtract the weight of a code again as to
#   leave it out.
# - The rows of `words` lie `words_stride` words apart, which may be more than they need. The offset
#   of a row may pass 2³¹, so it needs offsets of 64 bits.
#
# In a group of 32 columns with the words `C0000001 00000001 00000000` column 0 has the code 1. The
# bits of column 10 are 30 to 32: bits 30 and 31 are 1, and bit 32, the lowest of the second word,
# is 1, so it has the code 7. The codes of all other columns are 0.
#
# *Sections of the chapter:* *Four bits: packing is part of the kernel*.
#
# *Deliverable:* `deep` and `deep_launch`; their check passes, and the cell *What your kernels
# compile to* at the end says that `deep` compiles, which the check does not try.
# ### END VARIANT
# ### BEGIN VARIANT sinks
# ## Task 4: decode attention with sinks (depth, 30 points)
#
# One query meets the whole cache of its sequence, page by page. A long sequence would keep one
# program busy and leave the others idle, so several programs share its pages, and a second launch
# joins what they found. In this model each head has a *sink*: a score that takes part in the
# softmax and has no value.
#
# **Specification.** `deep` reads pages and leaves what is needed of them in a workspace; a second
# kernel, with a name of your choice, joins that and writes the output. `deep_launch(seqs, heads,
# kv_heads, size, page, table, splits, scale)` returns the launches of both.
#
# | parameter | type | shape |
# |---|---|---|
# | `query` | float16 | [seqs, heads, size] |
# | `key_cache`, `value_cache` | float16 | [blocks, page, kv_heads, size] |
# | `block_table` | int32 | [seqs, table] |
# | `lengths` | int32 | [seqs] |
# | `sinks` | float32 | [heads] |
# | `workspace` | float32, a workspace | [splits, seqs · heads, size + 2] |
# | `out` | float16, an output | [seqs, heads, size] |
# | `seqs`, `heads`, `kv_heads`, `size`, `page`, `table`, `splits` | int | |
#
# The numbers:
#
# - The sequence `s` has `lengths[s]` tokens. Token `t` lies in the block `block_table[s, t //
#   page]`, at its place `t % page`. Head `h` reads the KV head `h // (heads / kv_heads)`.
# - The score of a token is the product of query and key times `scale`. The weights of the tokens
#   are the softmax over their scores *and the sink of the head*. The output is the sum of the
#   values times the weights; the sink's own weight has no value. `scale` does not multiply a sink.
# - Scores, weights, sums and the workspace are float32; the output is rounded once. Scores may pass
#   60,000, and all scores of a sequence may be as far below 0. The softmax must neither overflow
#   nor lose all of its weights.
#
# What is left out:
#
# - Places of a block behind the sequence's last token hold another sequence's numbers, or NaN.
#   Entries of the table behind its last page name no block.
# - The pages of a sequence, `⌈length / page⌉`, are shared: no split has more than `share`, which is
#   `⌈pages / splits⌉`. Which pages a split has is yours. Runs will do: split `i` has the pages from
#   `i * share` to `(i + 1) * share - 1`, as far as there are. No program of `deep` reads the pages
#   of two splits.
# - The workspace holds whatever the last call left, or poison before the first. How it is used is
#   yours.
#
# At the edges:
#
# - A split without a page adds nothing. A sequence of length 0 has the output 0.
# - A sink of -∞ is no sink: it takes no weight. With it a sequence of length 0 has the output 0,
#   too.
#
# Sizes:
#
# - `size` is 16, 32 or 64, `page` is 4, 8 or 16. `heads` is a multiple of `kv_heads`; neither need
#   be a power of two. The other numbers are any from 1 up.
# - The caches may be larger than 2³¹ elements, so they need offsets of 64 bits.
#
# A head with the sink 0 and two tokens of the scores 0 and 0 gives each of them the weight 1/3, and
# a third of the weight is the sink's. With the values 3 and 6 the output is 3.
#
# *Sections of the chapter:* *A softmax that does not wait*, *Decode attention over blocks*.
#
# *Deliverable:* `deep`, a kernel that joins, and `deep_launch`; their check passes, and the cell
# *What your kernels compile to* at the end says that both kernels compile, which the check does not
# try.
# ### END VARIANT
# ### BEGIN VARIANT rope
# ## Task 4: norm, rotation and the write into the cache (depth, 30 points)
#
# Between the projection and the attention four small things happen to queries and keys, and each
# alone would read and write all of them. One kernel does them in one pass.
#
# **Specification.** `deep` norms and rotates queries and keys, and writes the queries to
# `query` and keys and values into the cache.
# `deep_launch(tokens, heads, kv_heads, size, rotary, eps)` returns its launches.
#
# | parameter | type | shape |
# |---|---|---|
# | `qkv` | float16 | [tokens, heads + 2 · kv_heads, size] |
# | `query_norm`, `key_norm` | float16 | [size] |
# | `table` | float32 | [number of positions, rotary] |
# | `positions` | int64 | [tokens] |
# | `slots` | int64 | [tokens] |
# | `query` | float16, an output | [tokens, heads, size] |
# | `key_cache`, `value_cache` | float16, written | [number of slots, kv_heads, size] |
# | `tokens`, `heads`, `kv_heads`, `size`, `rotary` | int | |
#
# The numbers:
#
# - A token of `qkv` has its query heads first, then its key heads, then its value heads.
# - Each query and key head is normed by itself: `h / sqrt(mean(h²) + eps)`, times `query_norm` or
#   `key_norm`. Values are copied as they are.
# - Then the first `rotary` numbers of a query or key head are turned, in pairs of neighbours: of
#   the numbers `a` and `b` at `2 i` and `2 i + 1` they become `a cos - b sin` and `b cos + a sin`.
#   For position `p`, `table[p, i]` is the cosine of pair `i`, and `table[p, rotary / 2 + i]` its
#   sine.
# - All of it is computed in float32 and rounded once, when it is written.
#
# What is left out:
#
# - The numbers of a head from `rotary` on are normed and not turned.
# - Key and value of a token whose slot is -1 are written nowhere. Its query is written as any
#   other.
# - Slots that no token names keep what they hold.
#
# At the edges:
#
# - `rotary` is an even number from 2 to `size`, a power of two or not.
# - A position may be any row of `table`, the last one too, and tokens may share one. No two tokens
#   of a launch have one slot, save -1.
#
# Sizes:
#
# - `size` is 16, 32 or 64. `tokens`, `heads` and `kv_heads` are any numbers from 1 up.
# - The caches may be larger than 2³¹ elements, so they need offsets of 64 bits. The first tensor,
#   `qkv`, has fewer.
#
# With `eps` 0 the head `3 4 …` of 16 numbers, all others 0, has the mean square 25 / 16 and becomes
# `2.4 3.2 0 …`. With the cosine 0 and the sine 1 for pair 0 it is turned into `-3.2 2.4 0 …`.
#
# *Sections of the chapter:* *Fusing is counted in bytes*.
#
# *Deliverable:* `deep` and `deep_launch`; their check passes, and the cell *What your kernels
# compile to* at the end says that `deep` compiles, which the check does not try.
# ### END VARIANT


# %% task="deep"
# task: deep
import triton
import triton.language as tl

### BEGIN VARIANT words


@triton.jit
def deep(
    x, words, scales, zeros, columns, values, y, n, k, words_stride, exceptions,
    GROUP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One program `ROWS` rows of the matrix."""
    ### BEGIN SOLUTION
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    needed = row < n
    groups = (k + GROUP - 1) // GROUP
    words_at = words + row.to(tl.int64) * words_stride
    total = tl.zeros((ROWS,), tl.float32)
    for begin in range(0, k, 32):
        column = begin + tl.arange(0, 32)[None, :]
        there = needed[:, None] & (column < k)
        weight = coded(
            words_at[:, None], scales, zeros, row[:, None] * groups, column, there, GROUP
        )
        value = tl.load(x + column, column < k, other=0.0).to(tl.float32)
        total += tl.sum(weight * value, 1)
    for i in range(exceptions):
        column = tl.load(columns + row * exceptions + i, needed, other=-1)
        there = column >= 0
        weight = tl.load(values + row * exceptions + i, there, other=0.0).to(tl.float32)
        weight -= coded(words_at, scales, zeros, row * groups, column, there, GROUP)
        total += weight * tl.load(x + column, there, other=0.0).to(tl.float32)
    tl.store(y + row, total.to(tl.float16), needed)


@triton.jit
def coded(words, scales, zeros, grids, column, there, GROUP: tl.constexpr):
    """The weights that the codes of columns stand for; 0 where they are not there."""
    bit = 3 * (column % GROUP)
    place = words + column // GROUP * (3 * GROUP // 32) + bit // 32
    shift = bit % 32
    low = tl.load(place, there, other=0).to(tl.uint32, bitcast=True) >> shift.to(tl.uint32)
    high = tl.load(place + 1, there & (shift > 29), other=0) << (32 - shift) % 32
    code = (low.to(tl.int32, bitcast=True) | high) & 7
    grid = grids + column // GROUP
    zero = tl.load(zeros + grid, there, other=0.0).to(tl.float32)
    scale = tl.load(scales + grid, there, other=0.0).to(tl.float32)
    return (code.to(tl.float32) - zero) * scale
    ### END SOLUTION


def deep_launch(
    n: int, k: int, group: int, words_stride: int, exceptions: int
) -> list[dict]:  # fmt: skip
    """Return the launch of `deep`."""
    ### BEGIN SOLUTION
    return [
        {
            "kernel": "deep", "grid": (triton.cdiv(n, 16),),
            "constants": {"GROUP": group, "ROWS": 16}, "num_warps": 4, "num_stages": 1,
        }
    ]  # fmt: skip
    ### END SOLUTION


### END VARIANT
### BEGIN VARIANT sinks


@triton.jit
def deep(
    query, key_cache, value_cache, block_table, lengths, workspace, heads, kv_heads, table, splits,
    SCALE: tl.constexpr, SIZE: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    """One program a sequence, a head and a split."""
    ### BEGIN SOLUTION
    seq, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + seq)
    pages = (length + PAGE - 1) // PAGE
    share = (pages + splits - 1) // splits
    number, slot = tl.arange(0, SIZE), tl.arange(0, PAGE)
    row = seq * heads + head
    asked = tl.load(query + row * SIZE + number).to(tl.float32) * SCALE
    total = tl.zeros((SIZE,), tl.float32)
    most, weights = float("-inf"), 0.0
    for page in range(split * share, tl.minimum((split + 1) * share, pages)):
        block = tl.load(block_table + seq * table + page).to(tl.int64)
        inside = page * PAGE + slot < length
        place = (block * PAGE + slot) * kv_heads + head // (heads // kv_heads)
        place = place[:, None] * SIZE + number[None, :]
        key = tl.load(key_cache + place, inside[:, None], other=0.0).to(tl.float32)
        value = tl.load(value_cache + place, inside[:, None], other=0.0).to(tl.float32)
        score = tl.where(inside, tl.sum(key * asked[None, :], 1), float("-inf"))
        new = tl.maximum(most, tl.max(score, 0))
        weight, shrink = tl.exp(score - new), tl.exp(most - new)
        total = total * shrink + tl.sum(value * weight[:, None], 0)
        weights = weights * shrink + tl.sum(weight, 0)
        most = new
    left = workspace + (split * tl.num_programs(0) * heads + row) * (SIZE + 2)
    tl.store(left + number, total)
    tl.store(left + SIZE, most)
    tl.store(left + SIZE + 1, weights)


@triton.jit
def merge(sinks, workspace, out, heads, splits, SIZE: tl.constexpr):
    """One program a sequence and a head."""
    row = tl.program_id(0) * heads + tl.program_id(1)
    number = tl.arange(0, SIZE)
    most = tl.load(sinks + tl.program_id(1))
    weights = tl.where(most == float("-inf"), 0.0, 1.0)
    total = tl.zeros((SIZE,), tl.float32)
    for split in range(splits):
        left = workspace + (split * tl.num_programs(0) * heads + row) * (SIZE + 2)
        other = tl.load(left + SIZE)
        if other > float("-inf"):
            new = tl.maximum(most, other)
            shrink, factor = tl.exp(most - new), tl.exp(other - new)
            total = total * shrink + tl.load(left + number) * factor
            weights = weights * shrink + tl.load(left + SIZE + 1) * factor
            most = new
    total = total / tl.where(weights == 0, 1.0, weights)
    tl.store(out + row * SIZE + number, total.to(tl.float16))
    ### END SOLUTION


def deep_launch(
    seqs: int, heads: int, kv_heads: int, size: int, page: int, table: int, splits: int,
    scale: float,
) -> list[dict]:  # fmt: skip
    """Return the launches of `deep` and of the kernel that joins."""
    ### BEGIN SOLUTION
    return [
        {
            "kernel": "deep", "grid": (seqs, heads, splits),
            "constants": {"SCALE": scale, "SIZE": size, "PAGE": page},
            "num_warps": 4, "num_stages": 2,
        },
        {
            "kernel": "merge", "grid": (seqs, heads), "constants": {"SIZE": size},
            "num_warps": 1, "num_stages": 1,
        },
    ]  # fmt: skip
    ### END SOLUTION


### END VARIANT
### BEGIN VARIANT rope


@triton.jit
def deep(
    qkv, query_norm, key_norm, table, positions, slots, query, key_cache, value_cache, heads,
    kv_heads, rotary, EPS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """One program a token and one of its heads."""
    ### BEGIN SOLUTION
    token, head = tl.program_id(0), tl.program_id(1)
    number = tl.arange(0, SIZE)
    at = qkv + (token * (heads + 2 * kv_heads) + head) * SIZE
    values = tl.load(at + number)
    slot = tl.load(slots + token)
    if head >= heads + kv_heads:
        place = (slot * kv_heads + head - heads - kv_heads) * SIZE + number
        tl.store(value_cache + place, values, (number < SIZE) & (slot >= 0))
    else:
        own = values.to(tl.float32)
        root = tl.rsqrt(tl.sum(own * own) / SIZE + EPS)
        factor = tl.load(tl.where(head < heads, query_norm, key_norm) + number)
        beside = tl.load(tl.where(head < heads, query_norm, key_norm) + (number ^ 1))
        own *= root * factor.to(tl.float32)
        other = tl.load(at + (number ^ 1)).to(tl.float32) * root * beside.to(tl.float32)
        turned = number < rotary
        angles = table + tl.load(positions + token) * rotary + number // 2
        cos = tl.load(angles, turned, other=1.0)
        sin = tl.load(angles + rotary // 2, turned, other=0.0)
        result = own * cos + other * tl.where(number % 2 == 0, -sin, sin)
        if head < heads:
            tl.store(query + (token * heads + head) * SIZE + number, result.to(tl.float16))
        else:
            place = (slot * kv_heads + head - heads) * SIZE + number
            tl.store(key_cache + place, result.to(tl.float16), (number < SIZE) & (slot >= 0))
    ### END SOLUTION


def deep_launch(
    tokens: int, heads: int, kv_heads: int, size: int, rotary: int, eps: float
) -> list[dict]:  # fmt: skip
    """Return the launch of `deep`."""
    ### BEGIN SOLUTION
    return [
        {
            "kernel": "deep", "grid": (tokens, heads + 2 * kv_heads),
            "constants": {"EPS": eps, "SIZE": size}, "num_warps": 1, "num_stages": 1,
        }
    ]  # fmt: skip
    ### END SOLUTION


### END VARIANT

# %% check="deep"
labkit.check("deep")

# %% [markdown]
# ## Task 5: one step of quire on your kernels (core, 10 + 5 points)
#
# Before a kernel is fast it moves the right number of bytes. A decode step is a list of launches,
# and its time on a GPU is bounded by what they move.
#
# **Specification.** `ledger` adds up the records of a step's launches.
# `ledger(launches, processors, bandwidth, overhead)` returns a dict with the keys below.
#
# A record is a dict:
#
# | key | meaning |
# |---|---|
# | `kernel` | the name of the kernel |
# | `programs` | how many programs the launch has |
# | `read`, `written` | dicts: the bytes read of each tensor, and written to it |
#
# - `read` and `written` are the bytes of all launches, over all tensors.
# - `by_kernel` is a dict: for each kernel the bytes that its launches read and wrote.
# - `idle` names the kernels with a launch of fewer than `processors` programs, each once, in the
#   order of their first such launch.
# - `seconds` is the time of all launches. A launch takes its bytes over `bandwidth`, read and
#   written, and at least `overhead` seconds. Launches do not overlap.
# - `bound` is `"bytes"` where more than half of `seconds` is of launches whose bytes take longer
#   than `overhead`, else `"launches"`. Bytes that take exactly `overhead` do not take longer, and
#   exactly half is not more than half. A step without launches has 0 seconds and the bound
#   `"launches"`.
#
# With `bandwidth` 1000 and `overhead` 2 two launches of 1000 and 5000 bytes take 2 and 5 seconds. 5
# of the 7 are of a launch that is bound by its bytes, so the step is bound by `"bytes"`.
#
# Your own kernels of tasks 1 to 3 run here, so a fault of theirs shows here, too: the check adds up
# small launches of each, grading takes parts of a step of quire-mini-draft with them, and a cell
# below all of one.
#
# *Sections of the chapter:* *Roofline first*, *A product of one row is bytes*, *Too few programs*.
#
# *Deliverable:* `ledger`, and the counts below with their written answer.


# %% task="step"
# task: step


def ledger(
    launches: list[dict], processors: int, bandwidth: float, overhead: float
) -> dict:  # fmt: skip
    """Return what a step's launches move, which leave processors idle, and what bounds them."""
    ### BEGIN SOLUTION
    found = {"read": 0, "written": 0, "by_kernel": {}, "idle": [], "seconds": 0.0}
    moving = 0.0
    for one in launches:
        read, written = sum(one["read"].values()), sum(one["written"].values())
        found["read"] += read
        found["written"] += written
        name = one["kernel"]
        found["by_kernel"][name] = found["by_kernel"].get(name, 0) + read + written
        if one["programs"] < processors and name not in found["idle"]:
            found["idle"].append(name)
        taken = (read + written) / bandwidth
        found["seconds"] += max(taken, overhead)
        if taken > overhead:
            moving += taken
    found["bound"] = "bytes" if moving > found["seconds"] / 2 else "launches"
    return found
    ### END SOLUTION


# %% check="step"
labkit.check("step")

# %% [markdown]
# ### What your kernels compile to
#
# The cell compiles every kernel of yours for a Hopper, without one, and counts instructions of the
# PTX: loads of global memory by their width, copies to shared memory, and products of the matrix
# units. Where a kernel does not compile, it shows the compiler's words. Grading asks for
# `ld.global.v4.b32` or `cp.async.cg` in `gemv`, for `wgmma` in `partial`, and that all kernels
# compile.

# %%
import collections
import re

from labkit.gpu.interpreted import Buffer, loaded, output, ptx, run

kernels = loaded(globals())  # your cells as grading takes them, in the process that interprets them
F16, F32, I32, I64 = "fp16", "fp32", "i32", "i64"
ROW = {"rows": 8, "size": 4096, "stride": 4096}
### BEGIN VARIANT rope
ROW["group"] = 1024
### END VARIANT
SIZES = {"n": 4096, "k": 4096, "words_stride": 512}
KINDS = {"x": F16, "words": I32, "scales": F16, "y": F16}
### BEGIN VARIANT words sinks
KINDS["zeros"] = I32
### END VARIANT
### BEGIN VARIANT rope
KINDS["offsets"] = F16
### END VARIANT
SPLIT = {"rows": 16, "n": 4096, "k": 4096, "splits": 4}
### BEGIN VARIANT words
DEEP, MORE = {"n": 4096, "k": 4096, "words_stride": 384, "exceptions": 8}, {"group": 128}
TYPES = {"x": F16, "words": I32, "scales": F16, "zeros": F16, "columns": I32}
TYPES |= {"values": F16, "y": F16}
### END VARIANT
### BEGIN VARIANT sinks
DEEP, MORE = {"seqs": 8, "heads": 32, "kv_heads": 8, "size": 64, "page": 16}, {"scale": 0.125}
DEEP |= {"table": 64, "splits": 4}
TYPES = {"query": F16, "key_cache": F16, "value_cache": F16, "block_table": I32, "lengths": I32}
TYPES |= {"sinks": F32, "workspace": F32, "out": F16}
### END VARIANT
### BEGIN VARIANT rope
DEEP, MORE = {"tokens": 8, "heads": 32, "kv_heads": 8, "size": 64, "rotary": 48}, {"eps": 1e-6}
TYPES = {"qkv": F16, "query_norm": F16, "key_norm": F16, "table": F32, "positions": I64}
TYPES |= {"slots": I64, "query": F16, "key_cache": F16, "value_cache": F16}
### END VARIANT
PLANS = {
    "add_norm_launch": (
        ROW, {"eps": 1e-6}, {"x": F16, "residual": F16, "weight": F16, "out": F16}
    ),
    "gemv_launch": (SIZES, {"group": 128}, KINDS),
    "product_launch": (SPLIT, {}, {"x": F16, "weight": F16, "partials": F32, "y": F16}),
    "deep_launch": (DEEP, MORE, TYPES),
}  # fmt: skip
COUNTED = r"ld\.global[.\w]*|cp\.async\.c[ag]\S+|wgmma\.mma_async"
for plan, (numbers, more, kinds) in PLANS.items():
    try:
        names = kernels.call("launches_of", plan, {**numbers, **more})
    except AssertionError as wrong:
        said = str(wrong).splitlines()[-1]
        is_missing = "define no" in said or "NotImplementedError" in said
        print(f"{plan:16}", "not written yet" if is_missing else said)
        continue
    for launch, name in enumerate(names):
        try:
            text = ptx(kernels, plan, {**numbers, **more}, kinds, numbers, launch)
        except AssertionError as wrong:
            print(f"{name:16} {str(wrong).splitlines()[-1]}")
            continue
        found = collections.Counter(re.findall(COUNTED, text))
        print(f"{name:16} compiles: {dict(found)}")

# %% [markdown]
# ### In the engine
#
# The cell below takes a step of quire-mini-draft. Its linear layers are rounded to the format of
# task 2, and its weights, norms and head are handed to your kernels for one decode step: `gemv` for
# every linear layer, `add_norm` for every norm, and `partial` and `combine` for the head. The
# interpreter takes about a quarter of a minute for it. The cell asserts that the token is the one
# of the same weights, written out and multiplied by torch.

# %%
import warnings

import numpy as np
import torch

warnings.filterwarnings("ignore", message="IProgress not found")  # no progress bars here

import quire.layers.norm as norms
from quire import LLM, Components, SamplingParams
from quire.layers.embedding import Vocabulary
from quire.quantization.unquantized import Unquantized

GROUP, SPLITS = 64, 4
torch.set_num_threads(1)  # small products: threads would wait for one another
records = []  # of the launches of the step
held = collections.Counter()  # bytes of the tensors that `gemv` was given, by their names
step = {"on_kernels": False, "number": 0, "weights": 0}


def half(tensor):
    """Numbers rounded to float16, as an array."""
    return tensor.to(torch.float16).double().numpy()


def launched(plan, sizes, buffers, scalars):
    """Run your launches, note what they moved, and return their outputs."""
    ran = run(kernels, plan, sizes, buffers, scalars)
    records.extend(ran.launches)
    return ran.data


def packed(fields, low):
    """Words whose bits from `low[i]` up hold `fields[..., i]`."""
    words = (fields.astype(np.int64) << np.array(low)).sum(-1)
    return np.where(words >= 1 << 31, words - (1 << 32), words)


class Four(Unquantized):
    """Weights in the format of task 2, and the numbers that they stand for."""

    def __init__(self, names):
        self.words = self.scales = self.grids = self.numbers = None

    def finish_load(self, layer):
        weights = layer.weight.double().numpy()
        parts = weights.reshape(len(weights), -1, GROUP)  # GROUP divides the columns of this model
        low, high = np.minimum(parts.min(2), 0), np.maximum(parts.max(2), 0)
        self.scales = np.maximum((high - low) / 15, 2.0**-14).astype(np.float16).astype(float)
        scale = self.scales[:, :, None]
        ### BEGIN VARIANT words sinks
        zeros = np.clip(np.round(-low / self.scales), 0, 15)
        codes = np.clip(np.round(parts / scale) + zeros[:, :, None], 0, 15)
        numbers = (codes - zeros[:, :, None]) * scale
        ### END VARIANT
        ### BEGIN VARIANT words
        order = codes.reshape(*self.scales.shape, 8, GROUP // 8).swapaxes(2, 3)
        self.words = packed(order, range(28, -1, -4)).reshape(len(weights), -1)
        stored = (zeros - 1) % 16
        ### END VARIANT
        ### BEGIN VARIANT sinks
        order = codes.reshape(*self.scales.shape, GROUP // 8, 4, 2).swapaxes(3, 4)
        order = order.reshape(*self.scales.shape, GROUP // 8, 8)
        self.words = packed(order, range(0, 32, 4)).reshape(len(weights), -1)
        stored = 15 - zeros
        ### END VARIANT
        ### BEGIN VARIANT words sinks
        stored = np.pad(stored, ((0, 0), (0, -stored.shape[1] % 8)))
        self.grids = packed(stored.reshape(len(weights), -1, 8), range(0, 32, 4))
        ### END VARIANT
        ### BEGIN VARIANT rope
        self.grids = (low + 8 * self.scales).astype(np.float16).astype(float)
        values = np.clip(np.round((parts - self.grids[:, :, None]) / scale), -8, 7)
        numbers = values * scale + self.grids[:, :, None]
        codes = np.where(values == -8, 8, np.where(values < 0, 8 - values, values))
        order = codes.reshape(*self.scales.shape, GROUP // 8, 8)
        self.words = packed(order, range(28, -1, -4)).reshape(len(weights), -1)
        ### END VARIANT
        self.numbers = torch.from_numpy(numbers.reshape(weights.shape))

    def apply(self, layer, x):
        if len(x) > 1 or not step["on_kernels"]:
            return (x.half().double() @ self.numbers.T).half().to(x.dtype)
        n, k = self.numbers.shape
        scalars = {"n": n, "k": k, "words_stride": self.words.shape[1]}
        buffers = {
            "x": Buffer("fp16", half(x)), "words": Buffer("i32", self.words),
            "scales": Buffer("fp16", self.scales),
            ### BEGIN VARIANT words sinks
            "zeros": Buffer("i32", self.grids),
            ### END VARIANT
            ### BEGIN VARIANT rope
            "offsets": Buffer("fp16", self.grids),
            ### END VARIANT
            "y": output("fp16", n),
        }  # fmt: skip
        made = launched("gemv_launch", {**scalars, "group": GROUP}, buffers, scalars)
        held.update({
            name: one.data.size * (2 if one.kind == "fp16" else 4)
            for name, one in buffers.items() if name != "y"
        })  # fmt: skip
        step["weights"] += n * k
        return torch.from_numpy(made["y"]).to(x.dtype)


def add_rms_norm(x, residual, weight, eps):
    """The norm of a row by your kernel; of many rows, in the prompt, by quire's rule in float16."""
    if len(x) > 1 or not step["on_kernels"]:
        return quires_norm(x.half().to(x.dtype), residual.half().to(x.dtype), weight, eps)
    size = x.shape[1]
    scalars = {"rows": 1, "size": size, "stride": size}
    ### BEGIN VARIANT words
    weight = weight - 1
    ### END VARIANT
    ### BEGIN VARIANT rope
    scalars["group"] = size
    ### END VARIANT
    buffers = {
        "x": Buffer("fp16", half(x)), "weight": Buffer("fp16", half(weight)),
        "residual": Buffer("fp16", half(residual), writable=True), "out": output("fp16", 1, size),
    }  # fmt: skip
    made = launched("add_norm_launch", {**scalars, "eps": eps}, buffers, scalars)
    return torch.from_numpy(made["out"]), torch.from_numpy(made["residual"])


def logits(vocabulary, hidden):
    """The head's product: the first call is that of the prompt's end, the next the step's."""
    step["number"] += 1
    table = vocabulary.embedding.half()
    if step["number"] == 1 or not step["on_kernels"]:
        return (hidden.half().double() @ table.double().T).half().to(hidden.dtype)
    rows, (n, k) = len(hidden), table.shape
    scalars = {"rows": rows, "n": n, "k": k, "splits": SPLITS}
    buffers = {
        "x": Buffer("fp16", half(hidden).reshape(1, -1)),
        "weight": Buffer("fp16", half(table).reshape(1, -1)),
        "partials": Buffer("fp32", None, (1, SPLITS * rows * n), writable=True),
        "y": output("fp16", rows * n),
    }
    made = launched("product_launch", scalars, buffers, scalars)
    return torch.from_numpy(made["y"].reshape(rows, n))


def two_tokens(on_kernels):
    """The token behind a prompt, and that of one decode step."""
    step.update(on_kernels=on_kernels, number=0)
    params = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)
    (answer,) = llm.generate(["def add(a, b):\n    return"], params, use_tqdm=False)
    return answer.outputs[0].token_ids


llm = LLM(
    "quire-mini-draft", device="cpu", dtype="float32", max_model_len=64, max_num_seqs=1,
    enable_prefix_caching=False, components=Components(quant_method=Four),
)  # fmt: skip
quires_norm, quires_logits = norms.add_rms_norm, Vocabulary.logits
norms.add_rms_norm, Vocabulary.logits = add_rms_norm, logits
try:
    assert two_tokens(True) == two_tokens(False)
finally:
    norms.add_rms_norm, Vocabulary.logits = quires_norm, quires_logits
print("the token of the step on your kernels is that of torch")

# %% [markdown]
# ### Measure
#
# The first table is what your kernels did in this step, counted by the interpreter. `loads` is how
# often their programs called `tl.load`, all programs together. `of x` are the bytes of `x` among
# those read. The line below is your `ledger`, with 132 processors and the bandwidth that the book
# measured on an H200. The 2 µs of a launch are an assumption.
#
# The second table takes the bytes of `gemv` apart: what each tensor has, all linear layers
# together, and what your programs read of it.
#
# The third table is one layer of an 8B model (width 4,096, FFN 14,336, 32 query and 8 KV heads)
# with one token, in your format with groups of 128 and with weights of 16 bits. Nothing runs for
# it: your `gemv_launch` says how many programs there would be, and each tensor counts once.

# %%
from quire.analysis.hardware import load_hardware

BANDWIDTH = load_hardware()["h200-sxm"].measured().bandwidth_bytes_per_s
PROCESSORS, OVERHEAD = 132, 2e-6

print(f"{'kernel':9} launches  programs  loads      read     of x  written")
for kernel in dict.fromkeys(one["kernel"] for one in records):
    mine = [one for one in records if one["kernel"] == kernel]
    read, written = (sum(sum(one[key].values()) for one in mine) for key in ("read", "written"))
    programs = sorted({one["programs"] for one in mine})
    x = sum(one["read"].get("x", 0) for one in mine)
    said = f"{programs[0]}-{programs[-1]}" if len(programs) > 1 else f"{programs[0]}"
    print(f"{kernel:9} {len(mine):8} {said:>9} {sum(one['loads'] for one in mine):6}"
          f" {read:9,} {x:8,} {written:8,}")  # fmt: skip
found = ledger(records, PROCESSORS, BANDWIDTH, OVERHEAD)
print(f"idle: {', '.join(found['idle'])}; {1e6 * found['seconds']:.0f} µs, bound by"
      f" {found['bound']}")  # fmt: skip

print(f"\n{'of gemv':9} bytes it has  bytes read   ({step['weights']:,} weights)")
for name, size in held.items():
    read = sum(one["read"][name] for one in records if one["kernel"] == "gemv")
    print(f"{name:9} {size:12,} {read:11,}")

LAYER = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)]
print(f"\n{'8B layer':9}     bytes  bits a weight     µs  bound by   idle")
for name in ("16 bits", "4 bits"):
    made = []
    for n, k in LAYER:
        grid = gemv_launch(n=n, k=k, group=128, words_stride=k // 8)[0]["grid"]
        groups = k // 128
        parts = {"weight": 2 * n * k}
        if name == "4 bits":
            ### BEGIN VARIANT words sinks
            parts = {"words": n * k // 2, "scales": 2 * n * groups, "zeros": n * groups // 2}
            ### END VARIANT
            ### BEGIN VARIANT rope
            parts = {"words": n * k // 2, "scales": 2 * n * groups, "offsets": 2 * n * groups}
            ### END VARIANT
        made.append({"kernel": f"{n} x {k}", "programs": int(np.prod(grid)),
                     "read": {**parts, "x": 2 * k}, "written": {"y": 2 * n}})  # fmt: skip
    found = ledger(made, PROCESSORS, BANDWIDTH, OVERHEAD)
    size = found["read"] + found["written"]
    bits = 8 * size / sum(n * k for n, k in LAYER)
    print(f"{name:9} {size:9,} {bits:14.2f} {1e6 * found['seconds']:6.1f}  {found['bound']:9}"
          f"  {', '.join(found['idle']) or 'none'}")  # fmt: skip

# %% [markdown]
# Explain what you counted, in six to ten sentences with your numbers.
#
# 1. How many bytes does your `gemv` read in the step, and how many would weights of 16 bits be?
#    Where do the bytes beyond 4 bits a weight come from?
# 2. How often is a byte of `x` read, and why need that cost a GPU's memory nothing?
# 3. What does the workspace of the head cost in bytes, written and read again, and what does it
#    buy? Say for which shape you would not split.
# 4. Which kernels leave processors idle, and what bounds the step of the small model and the layer
#    of the 8B model? Which of the two gets faster by 4 bits?
# 5. Name one thing that decides a kernel's speed and that no count of bytes shows, and where you
#    would look for it.

# %% [markdown] written="explain"
# <!-- written: explain -->
# ### BEGIN SOLUTION
# My `gemv` reads 317,952 bytes in the step; its 442,368 weights would be 884,736 bytes with 16
# bits. The codes alone are 221,184 bytes. The scales add 13,824, the zeros 27,648, because I load
# the word of zeros anew for each group although it holds eight of them, and `x` 55,296. The vectors
# of `x` have 3,328 bytes, so a byte is read 17 times, once by each program of a launch; but only
# the first program has to fetch it from memory, the others find it in a cache. In the head 65,536
# bytes go into the workspace and come back, 131,072 for a weight of 1,048,576, so an eighth more;
# for that there are 256 programs and not 64, which would leave half of 132 processors without work.
# A weight of 28,672 rows has 448 tiles of 64 rows, so I would not split it. `gemv` has 8 to 56
# programs, `add_norm` 1 and `combine` 16, all fewer than 132. That hardly matters here, since the
# step is bound by launches: 15 of them at 2 µs are 30 µs, and all the bytes take 0.4 µs. A layer of
# the 8B model is bound by its bytes, and there 4 bits turn 102.2 µs into 26.6; the small model
# gains nothing. The counts do not show what it takes to unpack a weight: several integer
# instructions each, which can take longer than the bytes. I would look into the PTX for shifts and
# conversions, and then measure the kernel on the GPU.
# ### END SOLUTION
