# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Lab: a format nobody ships
#
# You write a way to store the weights of a model in few bits: how codes lie in words, how a grid is
# chosen, how the errors of the rounding pay for one another, and what the file holds. Then quire
# runs a model from your format. Chapter: *Quantization*. 100 points, 70 core and 30 depth, all on a
# CPU. The minutes below are estimates. They add up to five hours, which is two evenings.
#
# | task | tier | points | minutes |
# |---|---|---|---|
# | 1. `pack` | core | 20 | 60 |
# | 2. `scales` | core | 15 | 45 |
# | 3. `gptq` | core | 20 | 60 |
# | 4. `finer` | depth | 30 | 75 |
# | 5. `engine`, with a written answer | core | 10 + 5 | 60 |
#
# Each task is one cell. Keep its `# task:` line: grading takes that cell and nothing else, so
# helpers of yours belong inside it, and it may import the standard library and NumPy. The behaviour
# asked for differs from quire's on purpose; the sentences that say how are the ones the hidden
# tests judge.
#
# A weight matrix has a row for each output and a column for each input. A row's columns are cut
# into *groups* of `group` columns; the last group of a row may have fewer. Each group of each row
# has a *grid*: a `scale` and a `zero`. A *code* is a whole number from 0 to `2 ** bits - 1`, and it
# stands for the weight `(code - zero) * scale`. A *shard* is what a checkpoint stores of one
# matrix, for example the query projection; a layer of quire may be made of several shards.
#
# Matrices are NumPy arrays. You are given weights and scales of float64, and codes, zeros and words
# of int64. What you return may have any integer dtype for codes, zeros and words, and any
# floating-point dtype for scales and weights: the numbers are judged. No function of tasks 1 to 4
# changes its arguments. `bits` is 1 to 8. The caller promises at least one row and one column, at
# least one shard, finite numbers, and scales that fit into float16. Loops over columns and groups
# are fast enough; a loop over rows *and* columns is slow on the layers of task 5, save where task 4
# asks for a stream of bits.

# %%
import importlib.util

if importlib.util.find_spec("labkit") is None:
    # In Colab; torch is there already and stays as it is.
    get_ipython().run_line_magic("pip", "install -q 'quire[labs] @ git+{{repository}}'")

import labkit

LAB = "{{lab}}"  # which lab this is, and which variant

# %% [markdown]
# ## Task 1: words of 32 bits, and shards that become one layer (core, 20 points)
#
# A tensor file has no 4-bit numbers, so codes share words of 32 bits. Every producer has an order
# of its own, and a reader that assumes another one gets weights that look like weights and are
# wrong.
#
# **Specification.** `pack` puts the codes of a matrix into words, and `unpack` takes them out.
# `fuse` reads the shards of a layer and returns `{"codes": …, "scales": …, "zeros": …}` of the
# matrix that has their rows one below the other: codes of the shape [rows, columns], scales and
# zeros of the shape [rows, groups].
#
# With `bits` 8 a word holds 4 codes. The row `1 2 3 4 5 6 7 8` with `group` 6 has two groups, of 6
# and of 2 codes. They become three words, here in hexadecimal with the highest bits first:
#
# | word | codes | because |
# |---|---|---|
# ### BEGIN VARIANT dense
# | `01030500` | 1, 3, 5 | the group has 2 words, and its codes take turns |
# | `02040600` | 2, 4, 6 | |
# | `07080000` | 7, 8 | the second group begins in a new word |
# ### END VARIANT
# ### BEGIN VARIANT doubled
# | `04030201` | 1, 2, 3, 4 | lowest bits first |
# | `05060000` | 5, 6 | word 1 of the group: highest slot first |
# | `00000807` | 7, 8 | the second group begins in a new word, its word 0 |
# ### END VARIANT
# ### BEGIN VARIANT sorted
# | `02050301` | 1, 3, 5, 2 | the even columns, then the odd |
# | `00000604` | 4, 6 | |
# | `00000807` | 7, 8 | the second group begins in a new word |
# ### END VARIANT
#
# The words:
#
# - A word has 32 bits and `32 // bits` *slots* for codes. Rows do not share words.
# - A group begins in a new word and has as many words as its own codes need, so the last group of a
#   row may have fewer words than the others.
# - Where a code lies in its group's words is the rule of your variant, below.
# - A word is an int32 in the file: a word from 2³¹ on is stored as the number that is 2³² less.
# - Bits that hold no code are 0 when they are written, and may be anything when they are read.
#
# The place of a code; columns and words of a group are counted from 0:
#
# ### BEGIN VARIANT dense
# - In a group of `n` words, column `c` lies in word `c % n`, in slot `c // n`.
# - Slots are counted from the highest bits: slot 0 is the highest `bits` bits of the word, slot 1
#   those below, and so on. Bits that are left over are the lowest.
# ### END VARIANT
# ### BEGIN VARIANT doubled
# - Column `c` lies in word `c // slots`, where `slots` is `32 // bits`. In the words 0, 2, 4, … of
#   a group columns fill the slots from slot 0 up, in the words 1, 3, 5, … from slot `slots - 1`
#   down.
# - Slots are counted from the lowest bits: slot 0 is the lowest `bits` bits of the word, slot 1
#   those above, and so on. Bits that are left over are the highest.
# ### END VARIANT
# ### BEGIN VARIANT sorted
# - The columns 0, 2, 4, … of a group come first, then its columns 1, 3, 5, …. In this order they
#   fill the slots of word 0 from slot 0 up, then those of word 1, and so on.
# - Slots are counted from the lowest bits: slot 0 is the lowest `bits` bits of the word, slot 1
#   those above, and so on. Bits that are left over are the highest.
# ### END VARIANT
#
# A shard is a dict:
#
# | key | meaning |
# |---|---|
# | `rows`, `columns`, `bits`, `group` | of its matrix |
# | `block` | how many rows share one row of `scales` and `zeros` |
# | `words` | the words of its codes, one row of words a row |
# | `scales` | the scales, of the shape [blocks, groups] |
# | `zeros` | the words of its zeros, one row of words a block; or `None` |
#
# - The rows of a shard are cut into blocks of `block` rows, from its first row on; its last block
#   may have fewer. Each row of the layer has the scales and zeros of its own block in its own
#   shard.
# - The zeros of a shard are stored changed, and packed: for a zero `z` the number
# ### BEGIN VARIANT dense
#   `z - 1` is stored, and for the zero 0 the number `2 ** bits - 1`.
# ### END VARIANT
# ### BEGIN VARIANT doubled
#   `z - 2 ** (bits - 1)` is stored, and `2 ** bits` more where that is below 0.
# ### END VARIANT
# ### BEGIN VARIANT sorted
#   `2 ** bits - 1 - z` is stored.
# ### END VARIANT
#   The changed zeros of a block are packed as a row of codes with a column for each group, all of
#   them in one group, with the shard's `bits`.
# - Where `zeros` is `None` every zero is `2 ** (bits - 1)`. One shard of a layer may have zeros and
#   another none, and their `rows` and `block` may differ.
#
# What is refused, with `ValueError`:
#
# - `pack`: a code below 0 or above `2 ** bits - 1`.
# - `unpack`: `words` with another number of words in a row than `columns` and `group` ask for.
# - `fuse`: shards that differ in `bits`, `columns` or `group`, and a shard in which the shape of
#   `words`, `scales` or `zeros` is not that which its own numbers ask for.
#
# *Sections of the chapter:* *A format is a grid*, *What users have*.
#
# *Deliverable:* `pack`, `unpack` and `fuse`; their check passes.


# %% task="pack"
# task: pack
import numpy as np


def pack(codes: np.ndarray, bits: int, group: int) -> np.ndarray:
    """Return the words of codes [rows, columns], of the shape [rows, words]."""
    ### BEGIN SOLUTION
    if codes.min() < 0 or codes.max() >= 1 << bits:
        raise ValueError(f"codes from {codes.min()} to {codes.max()} do not fit {bits} bits")
    word, low = _places(codes.shape[1], bits, group)
    words = np.zeros((len(codes), word.max() + 1), np.int64)
    for column, place in enumerate(word):
        words[:, place] |= codes[:, column] << low[column]
    return words - (words >> 31 << 32)


def _places(columns, bits, group):
    """The word of each column in its row, and the lowest of its bits there."""
    slots, begin = 32 // bits, np.arange(columns) // group * group
    column, count = np.arange(columns) - begin, np.minimum(group, columns - begin)
    ### BEGIN VARIANT dense
    needed = -(-count // slots)
    place, low = column % needed, 32 - bits * (column // needed + 1)
    ### END VARIANT
    ### BEGIN VARIANT doubled
    place, slot = column // slots, column % slots
    low = bits * np.where(place % 2 == 0, slot, slots - 1 - slot)
    ### END VARIANT
    ### BEGIN VARIANT sorted
    turn = column // 2 + column % 2 * ((count + 1) // 2)
    place, low = turn // slots, bits * (turn % slots)
    ### END VARIANT
    return begin // group * -(-group // slots) + place, low
    ### END SOLUTION


def unpack(words: np.ndarray, bits: int, columns: int, group: int) -> np.ndarray:
    """Return the codes [rows, columns] that lie in words [rows, words]."""
    ### BEGIN SOLUTION
    word, low = _places(columns, bits, group)
    if words.shape[1] != word.max() + 1:
        raise ValueError(f"{words.shape[1]} words a row, {columns} columns need {word.max() + 1}")
    return words[:, word] >> low & (1 << bits) - 1
    ### END SOLUTION


def fuse(shards: list[dict]) -> dict:
    """Return codes, scales and zeros of the matrix that the shards make."""
    ### BEGIN SOLUTION
    kinds, parts = {(one["bits"], one["columns"], one["group"]) for one in shards}, []
    if len(kinds) > 1:
        raise ValueError(f"(bits, columns, group) of the shards differ: {kinds}")
    for shard in shards:
        bits, columns, group = shard["bits"], shard["columns"], shard["group"]
        groups, blocks = -(-columns // group), -(-shard["rows"] // shard["block"])
        if shard["zeros"] is None:
            zeros = np.full((blocks, groups), 1 << (bits - 1))
        else:
            zeros = unpack(shard["zeros"], bits, groups, groups)
            ### BEGIN VARIANT dense
            zeros = (zeros + 1) % (1 << bits)
            ### END VARIANT
            ### BEGIN VARIANT doubled
            zeros = (zeros + (1 << (bits - 1))) % (1 << bits)
            ### END VARIANT
            ### BEGIN VARIANT sorted
            zeros = (1 << bits) - 1 - zeros
            ### END VARIANT
        shapes = len(shard["words"]), shard["scales"].shape, len(zeros)
        if shapes != (shard["rows"], (blocks, groups), blocks):
            raise ValueError(f"rows of words, shape of scales, rows of zeros: {shapes}")
        codes = unpack(shard["words"], bits, columns, group)
        block_of = np.arange(shard["rows"]) // shard["block"]
        parts.append((codes, shard["scales"][block_of], zeros[block_of]))
    codes, scales, zeros = map(np.concatenate, zip(*parts, strict=True))
    return {"codes": codes, "scales": scales, "zeros": zeros}
    ### END SOLUTION


# %% check="pack"
labkit.check("pack")

# %% [markdown]
# ## Task 2: the grid of a group (core, 15 points)
#
# A grid that reaches from the least to the largest weight of a group clips nothing, and its steps
# are as wide as the largest weight makes them. A grid that gives up the ends has finer steps for
# all others. Which one costs less depends on the weights, and on how much each column matters.
#
# **Specification.** `nearest` returns the codes of weights on a given grid. `search` tries the
# grids of a ladder and returns for each row the `scales` and `zeros` of the one that costs least.
# Both get one group: `weights` of the shape [rows, columns], and one scale and one zero a row.
#
# ### BEGIN VARIANT dense doubled
# The row `-1 0.625 2` with the importances `1 8 1`, `bits` 2 and the ladder `[1, 0.75, 0.5]`:
# ### END VARIANT
# ### BEGIN VARIANT sorted
# The row `-2 -0.625 1` with the importances `1 8 1`, `bits` 2 and the ladder `[1, 0.75, 0.5]`:
# ### END VARIANT
#
# | of the ladder | scale | zero | codes | stand for | cost |
# |---|---|---|---|---|---|
# ### BEGIN VARIANT dense
# | 1 | 1 | 1 | 0 2 3 | -1 1 2 | 1.125 |
# | 0.75 | 0.75 | 1 | 0 2 3 | -0.75 0.75 1.5 | 0.4375 |
# | 0.5 | 0.5 | 2 | 0 3 3 | -1 0.5 0.5 | 2.375 |
# ### END VARIANT
# ### BEGIN VARIANT doubled
# | 1 | 1 | 1 | 0 2 3 | -1 1 2 | 1.125 |
# | 0.75 | 0.75 | 1 | 0 2 3 | -0.75 0.75 1.5 | 0.4375 |
# | 0.5 | 0.5 | 1 | 0 2 3 | -0.5 0.5 1 | 1.375 |
# ### END VARIANT
# ### BEGIN VARIANT sorted
# | 1 | 1 | 2 | 0 1 3 | -2 -1 1 | 1.125 |
# | 0.75 | 0.75 | 2 | 0 1 3 | -1.5 -0.75 0.75 | 0.4375 |
# | 0.5 | 0.5 | 1 | 0 0 3 | -0.5 -0.5 1 | 2.375 |
# ### END VARIANT
#
# So the scale is 0.75, although it clips.
#
# `nearest`:
#
# - The code of a weight is `weight / scale`, rounded to a whole number, plus the zero. A code that
#   would lie outside is the nearest that there is, so 0 or `2 ** bits - 1`.
# ### BEGIN VARIANT dense
# - Halves are rounded up, to the larger number: 0.5 to 1 and -0.5 to 0. So is every half in this
#   lab, those of task 5 included.
# ### END VARIANT
# ### BEGIN VARIANT doubled
# - Halves are rounded away from 0: 0.5 to 1 and -0.5 to -1. So is every half in this lab, those of
#   task 5 included.
# ### END VARIANT
# ### BEGIN VARIANT sorted
# - Halves are rounded down, to the smaller number: 0.5 to 0 and -0.5 to -1. So is every half in
#   this lab, those of task 5 included.
# ### END VARIANT
#
# `search`, with `top` for `2 ** bits - 1`:
#
# - A row's range reaches from its least to its largest weight, and to 0 where that lies outside. So
#   `low` is 0 or below, `high` is 0 or above. Columns without importance count here, too.
# - For each number `r` of `ladder` there is one grid. Its scale is `r * (high - low) / top`.
# - A scale is rounded to float16 before anything is divided by it, since that is how it is stored,
#   and it is at least 2⁻¹⁴. In a row of zeros it is 2⁻¹⁴.
# ### BEGIN VARIANT dense
# - The upper end gives way: the zero is `-low / scale`, rounded, so that code 0 stays at `low`.
# ### END VARIANT
# ### BEGIN VARIANT doubled
# - Both ends give way: the zero is `-r * low / scale`, rounded.
# ### END VARIANT
# ### BEGIN VARIANT sorted
# - The lower end gives way: the zero is `top` less `high / scale`, the quotient rounded, so that
#   code `top` stays at `high`.
# ### END VARIANT
# - A zero is a code, too: one that would lie outside is 0 or `top`.
# - The cost of a grid is the sum over the columns of the column's importance times the square of
#   the difference between the weight and what its nearest code stands for.
# - The grid of the least cost is taken, each row's by itself, among equals that of
# ### BEGIN VARIANT dense
#   the largest number of the ladder.
# ### END VARIANT
# ### BEGIN VARIANT doubled
#   the smallest number of the ladder.
# ### END VARIANT
# ### BEGIN VARIANT sorted
#   the number that the ladder lists first.
# ### END VARIANT
# - The ladder's numbers are in no order, and may be above 1. A ladder that is empty or has a number
#   that is not above 0 is refused with `ValueError`.
#
# If a test has a tie or a half, all of its numbers are exact in float64. In all other tests the two
# sides of a decision differ by more than the order of a sum can change.
#
# *Sections of the chapter:* *What rounding costs*, *A zero that is not in the middle*.
#
# *Deliverable:* `nearest` and `search`; their check passes.


# %% task="scales"
# task: scales
import numpy as np


def nearest(weights: np.ndarray, scales: np.ndarray, zeros: np.ndarray, bits: int) -> np.ndarray:
    """Return the codes [rows, columns] of weights [rows, columns]; scales and zeros are [rows]."""
    ### BEGIN SOLUTION
    codes = _rounded(weights / scales[:, None]) + zeros[:, None]
    return np.clip(codes, 0, (1 << bits) - 1).astype(np.int64)


def _rounded(numbers):
    ### BEGIN VARIANT dense
    return np.floor(numbers + 0.5)
    ### END VARIANT
    ### BEGIN VARIANT doubled
    return np.sign(numbers) * np.floor(np.abs(numbers) + 0.5)
    ### END VARIANT
    ### BEGIN VARIANT sorted
    return np.ceil(numbers - 0.5)
    ### END VARIANT
    ### END SOLUTION


def search(
    weights: np.ndarray, importance: np.ndarray, bits: int, ladder: list[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return scales and zeros [rows] of each row's best grid; importance is [columns]."""
    ### BEGIN SOLUTION
    if len(ladder) == 0 or min(ladder) <= 0:
        raise ValueError(f"ladder={ladder}: numbers above 0 are needed")
    top = (1 << bits) - 1
    low, high = np.minimum(weights.min(1), 0), np.maximum(weights.max(1), 0)
    found = []
    ### BEGIN VARIANT dense
    ladder = sorted(ladder, reverse=True)
    ### END VARIANT
    ### BEGIN VARIANT doubled
    ladder = sorted(ladder)
    ### END VARIANT
    for ratio in ladder:
        scale = (ratio * (high - low) / top).astype(np.float16).astype(np.float64)
        scale = np.maximum(scale, 2.0**-14)
        ### BEGIN VARIANT dense
        zero = _rounded(-low / scale)
        ### END VARIANT
        ### BEGIN VARIANT doubled
        zero = _rounded(-ratio * low / scale)
        ### END VARIANT
        ### BEGIN VARIANT sorted
        zero = top - _rounded(high / scale)
        ### END VARIANT
        zero = np.clip(zero, 0, top).astype(np.int64)
        numbers = (nearest(weights, scale, zero, bits) - zero[:, None]) * scale[:, None]
        cost = (importance * (weights - numbers) ** 2).sum(1)
        found.append((scale, zero, cost))
    scales, zeros, costs = (np.array(one) for one in zip(*found, strict=True))
    best, row = costs.argmin(0), np.arange(len(weights))
    return scales[best, row], zeros[best, row]
    ### END SOLUTION


# %% check="scales"
labkit.check("scales")

# %% [markdown]
# ## Task 3: errors that pay for one another (core, 20 points)
#
# What a layer gets wrong is a sum over its columns, and the errors of two columns whose inputs are
# alike can cancel. So columns are rounded one after another, and what one of them gets wrong is
# paid by those that are still to come.
#
# **Specification.** `gptq` returns `{"codes": …, "scales": …, "zeros": …}` of a weight matrix,
# given `hessian`, the sum of `x xᵀ` over inputs `x` of the layer. It visits the columns from left
# to right.
#
# The row `-2.75 12.25 7.4375` with `bits` 4, `group` 2, the ladder `[1]`, `damp` 0 and the hessian
# `[[21, 6, -4], [6, 20, 8], [-4, 8, 16]]`. By the rules below an error of 1 in column 0 adds
# 0.5 to column 1 and takes 0.5 from column 2, and an error of 1 in column 1 adds 0.5 to column 2:
#
# | column | weight by then | scale | zero | code | stands for | error | columns behind it |
# |---|---|---|---|---|---|---|---|
# | 0 | -2.75 | 1 | 3 | 0 | -3 | 0.25 | 12.375 7.3125 |
# | 1 | 12.375 | 1 | 3 | 15 | 12 | 0.375 | 7.5 |
# | 2 | 7.5 | 0.5 | 0 | 15 | 7.5 | 0 | |
#
# Column 2 begins a new group, whose grid is found from 7.5, not from 7.4375.
#
# The hessian:
#
# - A column whose place on the diagonal is 0 is *dead*: no input ever used it. Its row and column
#   of `hessian` are 0. All others are *live*, however small.
# - The damping is added to the diagonal of the live columns, once, before the loop:
# ### BEGIN VARIANT dense
#   to each of them `damp` times the mean of the live columns' places on the diagonal.
# ### END VARIANT
# ### BEGIN VARIANT doubled
#   to each of them `damp` times the largest number on the diagonal.
# ### END VARIANT
# ### BEGIN VARIANT sorted
#   to each of them `damp` times the median of the live columns' places on the diagonal, which for
#   an even number of them is the mean of the middle two.
# ### END VARIANT
#   With it the part of `hessian` that belongs to live columns has an inverse.
#
# The loop:
#
# - At the first column of a group its grid is found from the weights as they are by then, with your
#   `search`. The importance of a column is its place on the diagonal of `hessian` without damping,
#   so that of a dead column is 0. The group keeps this grid.
# - A column's code is the `nearest` of its weight as it is by then. Its error is that weight less
#   what the code stands for.
# - Then the live columns behind it move against the error. For column `k` let `P` be the inverse of
#   the damped hessian of the live columns from `k` on. The weight of each live column `j` behind
#   `k` becomes less by `error * P[k, j] / P[k, k]`, where `P` is indexed by columns. That is the
#   change by which the error of the layer's outputs grows least.
# - All live columns behind `k` move, those of its own group and those of later groups.
# - A dead column moves no other and is moved by none: it is rounded as it is. In the same way a
#   column that is related to no other is rounded as it is. Dead columns count in the range that
#   `search` sees.
#
# `P` may be computed anew for each column, which is slow on the layers of task 5. The chapter shows
# how one Cholesky factor has all of these rows.
#
# Your `search` and `nearest` of task 2 run here; in grading those of a reference do.
#
# *Section of the chapter:* *The next column pays*.
#
# *Deliverable:* `gptq`; its check passes.


# %% task="gptq"
# task: gptq
import numpy as np


def gptq(
    weights: np.ndarray,
    hessian: np.ndarray,
    bits: int,
    group: int,
    ladder: list[float],
    damp: float,
) -> dict:
    """Return codes [rows, columns], scales and zeros [rows, groups]."""
    ### BEGIN SOLUTION
    weights, codes = weights.copy(), np.zeros(weights.shape, np.int64)
    scales, zeros = [], []
    importance, push = np.diag(hessian).copy(), _pushes(hessian, damp)
    for k in range(weights.shape[1]):
        if k % group == 0:
            here = slice(k, k + group)
            scale, zero = search(weights[:, here], importance[here], bits, ladder)
            scales.append(scale)
            zeros.append(zero)
        codes[:, k] = nearest(weights[:, k : k + 1], scale, zero, bits)[:, 0]
        error = weights[:, k] - (codes[:, k] - zero) * scale
        weights[:, k + 1 :] -= np.outer(error, push[k, k + 1 :])
    return {"codes": codes, "scales": np.stack(scales, 1), "zeros": np.stack(zeros, 1)}


def _pushes(hessian, damp):
    """[k, j]: by how much column j becomes less for an error of 1 in column k."""
    push, live = np.zeros(hessian.shape), np.flatnonzero(np.diag(hessian))
    if len(live) > 0:
        damped = hessian[np.ix_(live, live)].copy()
        ### BEGIN VARIANT dense
        damped += damp * np.diag(damped).mean() * np.eye(len(live))
        ### END VARIANT
        ### BEGIN VARIANT doubled
        damped += damp * np.diag(damped).max() * np.eye(len(live))
        ### END VARIANT
        ### BEGIN VARIANT sorted
        damped += damp * np.median(np.diag(damped)) * np.eye(len(live))
        ### END VARIANT
        factor = np.linalg.cholesky(np.linalg.inv(damped)).T
        push[np.ix_(live, live)] = factor / np.diag(factor)[:, None]
    return push
    ### END SOLUTION


# %% check="gptq"
labkit.check("gptq")

# %% [markdown]
# ## Task 4: the same weights, stored finer (depth, 30 points)
#
# ### BEGIN VARIANT dense
# Three bits are enough for most groups and too few for some. A word of 32 bits holds ten codes of 3
# bits and wastes two bits; a mixture of widths would waste more. So a row becomes one stream of
# bits, in which each group says how wide its codes are.
# ### END VARIANT
# ### BEGIN VARIANT doubled
# A scale of 16 bits for each group of 32 weights is half a bit a weight. Scales of neighbouring
# groups are alike, so they can be codes themselves: 8 bits each, and one power of two for a block
# of them. The weights have to be rounded on the scales that the reader will have.
# ### END VARIANT
# ### BEGIN VARIANT sorted
# The columns that are rounded last pay for all others, so the important ones should come first.
# If the groups follow that order, the file has to say which column is in which group. If they do
# not, the file looks like any other, and whoever reads it must not look for an order.
# ### END VARIANT
#
# **Specification.** `write` returns what the file holds, as a dict. `read` returns the weights
# [rows, columns] that it stands for, and whoever reads it multiplies by these very numbers.
#
# ### BEGIN VARIANT dense
# With `group` 4 the row of a matrix of six columns, whose first group has 3 bits and whose second
# has 4:
#
# | number | in bits | of the stream | why |
# |---|---|---|---|
# | 0 | 1 | 0 | the first group has 3 bits |
# | 2 | 3 | 1 … 3 | its zero |
# | 5, 0, 7, 1 | 3 each | 4 … 15 | its codes |
# | 1 | 1 | 16 | the second group has 4 bits |
# | 9 | 4 | 17 … 20 | its zero |
# | 15, 3 | 4 each | 21 … 28 | its codes |
#
# The row has one word, `07F33C54` in hexadecimal. With one column more, its code's bits 29 … 32
# would lie in two words.
#
# What is chosen:
#
# - `search` finds a grid with 3 bits for each group of each row. A group of a row has 4 bits if its
#   cost on that grid, counted as in task 2, is above `limit`, and then the grid that `search` finds
#   with 4 bits. Each row decides by itself.
#
# What is stored, in the dict's `words`, `starts` and `scales`:
#
# - A row is one stream of numbers, group after group. A group has first its `bits - 3`, in 1 bit;
#   then its zero, in `bits` bits; then its codes from left to right, in `bits` bits each.
# - The numbers follow one another without a gap, the lowest bit of a number first. So a number may
#   begin in one word and end in the next.
# - Bit `i` of a row's stream is bit `i % 32` of its word `i // 32`, where bit 0 is the lowest. The
#   words are int32, as in task 1.
# - `words` has one dimension: the words of row 0, behind them those of row 1, and so on, for each
#   row as many as its stream needs. Bits behind a row's last code are 0.
# - `starts` has the shape [rows]: the place in `words` of each row's first word, so it rises from
#   row to row. `scales` has the shape [rows, groups].
#
# What is read, with the number of `columns`:
#
# - Each group says itself how wide it is.
# - A row's words begin at its number in `starts`, and end before the next row's number there, those
#   of the last row at the end of `words`. What lies in them behind the row's last code may be
#   anything, and there may be any number of words of it.
#
# At the edges:
#
# - The last group of a row may have fewer columns: its grid and cost are of these alone.
# - A cost that equals `limit` is not above it.
# - `read` refuses with `ValueError` a row whose own words end before the last bit of its last code.
# ### END VARIANT
# ### BEGIN VARIANT doubled
# With `block` 3 a row of five groups:
#
# | group | scale | block's exponent | quotient | steps to choose from |
# |---|---|---|---|---|
# | 0 | 1.0 | -7 | 128 | 128 |
# | 1 | 0.30078125 | -7 | 38.5 | 38, 39 |
# | 2 | 0.00390625 | -7 | 0.5 | 1 |
# | 3 | 0.498046875 | -9 | 255 | 255 |
# | 4 | 0.25048828125 | -9 | 128.25 | 128, 129 |
#
# What is chosen:
#
# - The groups of a row are cut into blocks of `block` groups, from the first on; the last block of
#   a row may have fewer. A block never holds groups of two rows.
# - The block's exponent `e` is the smallest whole number for which none of the block's scales is
#   above `255 * 2 ** e`. It may be below 0.
# - A group's step is one of the two whole numbers around `scale / 2 ** e`, or that number itself
#   where it is whole. A step is at least 1 and at most 255: a number that is not, is not chosen.
# - Of the two steps the one is chosen whose scale `step * 2 ** e` costs less, counted as in task 2
#   with the group's zero and with codes that are nearest on that scale. Among equals it is the
#   larger step.
#
# What is stored, in the dict's `codes`, `zeros`, `exponents` and `steps`:
#
# - The codes are those nearest on the chosen scale `step * 2 ** e`, not on the scale that `write`
#   was given. The zeros stay as they are.
# - `codes` has the shape [rows, columns], `zeros` and `steps` have [rows, groups], and `exponents`
#   has [rows, blocks].
#
# What is read:
#
# - A code stands for `(code - zero) * step * 2 ** e`.
#
# At the edges:
#
# - The last group of a row may have fewer columns, and the last block fewer groups. The largest
#   scale of a block may be exactly `255 * 2 ** e`; then its step is 255.
# - `read` refuses with `ValueError` a step that is not 1 to 255, and an array `exponents` that does
#   not have a column for each block.
# ### END VARIANT
# ### BEGIN VARIANT sorted
# A matrix of five columns with `group` 2 and the diagonal `3 9 0 9 4` of `hessian`:
#
# | visited | column | its group, `static` | its group, not `static` |
# |---|---|---|---|
# | first | 1 | 0 | 0 |
# | second | 3 | 1 | 0 |
# | third | 4 | 2 | 1 |
# | fourth | 0 | 0 | 1 |
# | fifth | 2 | 1 | 2 |
#
# What is chosen:
#
# - The loop of task 3 visits the columns by their place on the diagonal of `hessian`, the largest
#   first, equal ones from left to right. So dead columns come last.
# - All rules of task 3 hold, where "behind" now means "visited later": `P` is the inverse of the
#   damped hessian of the live columns from `k` on in the order of the visits.
# - If `static` is true, the groups are those of the other tasks, each of `group` neighbours. The
#   grids of all groups are found before the loop, from the weights as they were given.
# - If `static` is false, the first `group` columns visited are group 0, the next are group 1, and
#   so on. A group's grid is found when the loop visits the first of its columns, from the weights
#   of all its columns as they are by then.
#
# What is stored, in the dict's `codes`, `scales` and `zeros`:
#
# - A code stands at its column's own place, whenever the column was visited. `scales` and `zeros`
#   have the shape [rows, groups].
# - If `static` is false, the dict has `g_idx` besides, an array of the shape [columns]: the group
#   of each column. If `static` is true it has no `g_idx`, and nothing in it tells the order.
#
# What is read:
#
# - With `g_idx` a column's group is what that says, and there may be groups without a column.
#   Without it the groups are of `group` neighbours. `zeros` has the shape of `scales`.
#
# At the edges:
#
# - The last group may have fewer columns: the last ones of the row if `static` is true, else those
#   visited last.
# - `read` refuses with `ValueError` a `g_idx` that has another length than a row of codes or names
#   a group that is not there, and, without `g_idx`, scales of another number of groups than the
#   columns have.
# ### END VARIANT
#
# ### BEGIN VARIANT dense doubled
# *Section of the chapter:* *What users have*.
# ### END VARIANT
# ### BEGIN VARIANT sorted
# *Section of the chapter:* *The next column pays*.
# ### END VARIANT
#
# *Deliverable:* `write` and `read`; their check passes.


# %% task="finer"
# task: finer
import numpy as np

### BEGIN VARIANT dense


def write(
    weights: np.ndarray, importance: np.ndarray, group: int, ladder: list[float], limit: float
) -> dict:
    """Return `words`, `starts` and `scales`; importance is [columns]."""
    ### BEGIN SOLUTION
    rows, columns = weights.shape
    streams, ends, scales = [0] * rows, [0] * rows, []
    for begin in range(0, columns, group):
        part, h = weights[:, begin : begin + group], importance[begin : begin + group]
        found = {}
        for bits in (3, 4):
            scale, zero = search(part, h, bits, ladder)
            codes = nearest(part, scale, zero, bits)
            numbers = (codes - zero[:, None]) * scale[:, None]
            found[bits] = scale, zero, codes, (h * (part - numbers) ** 2).sum(1)
        wide = found[3][3] > limit
        scales.append(np.where(wide, found[4][0], found[3][0]))
        for row in range(rows):
            bits = 4 if wide[row] else 3
            _, zero, codes, _ = found[bits]
            streams[row] |= (bits - 3) << ends[row]
            ends[row] += 1
            for number in [int(zero[row]), *codes[row].tolist()]:
                streams[row] |= number << ends[row]
                ends[row] += bits
    words, starts = [], []
    for stream, end in zip(streams, ends, strict=True):
        starts.append(len(words))
        words += [stream >> 32 * i & 0xFFFFFFFF for i in range(-(-end // 32))]
    words = np.array(words, np.int64)
    return {
        "words": np.where(words >= 1 << 31, words - (1 << 32), words),
        "starts": np.array(starts),
        "scales": np.stack(scales, 1),
    }
    ### END SOLUTION


def read(stored: dict, columns: int, group: int) -> np.ndarray:
    """Return the weights [rows, columns] that the file stands for."""
    ### BEGIN SOLUTION
    starts, weights = stored["starts"], np.zeros((len(stored["starts"]), columns))
    for row, words in enumerate(np.split(stored["words"], starts)[1:]):
        stream = sum((word & 0xFFFFFFFF) << 32 * i for i, word in enumerate(words.tolist()))
        at = 0
        for number, begin in enumerate(range(0, columns, group)):
            bits = 3 + (stream >> at & 1)
            count = min(group, columns - begin)
            zero, *codes = (stream >> at + 1 + bits * i & (1 << bits) - 1 for i in range(count + 1))
            at += 1 + bits * (count + 1)
            numbers = (np.array(codes) - zero) * stored["scales"][row, number]
            weights[row, begin : begin + count] = numbers
        if at > 32 * len(words):
            raise ValueError(f"row {row} needs {at} bits and has {len(words)} words")
    return weights
    ### END SOLUTION


### END VARIANT
### BEGIN VARIANT doubled


def write(
    weights: np.ndarray,
    importance: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray,
    bits: int,
    group: int,
    block: int,
) -> dict:
    """Return `codes`, `zeros`, `exponents`, `steps`; scales and zeros are [rows, groups]."""
    ### BEGIN SOLUTION
    rows, groups = scales.shape
    largest = [scales[:, begin : begin + block].max(1) for begin in range(0, groups, block)]
    part, exponents = np.frexp(np.stack(largest, 1))  # part * 2 ** exponent, part below 1
    exponents = exponents.astype(np.int64) - 8 + (part > 255 / 256)
    codes = np.zeros(weights.shape, np.int64)
    steps = np.zeros((rows, groups), np.int64)
    for g in range(groups):
        here = slice(g * group, (g + 1) * group)
        unit, zero = 2.0 ** exponents[:, g // block], zeros[:, g]
        below = np.floor(scales[:, g] / unit)
        above = np.ceil(scales[:, g] / unit)
        best = np.full(rows, np.inf)
        for step in (np.clip(above, 1, 255), np.clip(below, 1, 255)):
            found = nearest(weights[:, here], step * unit, zero, bits)
            numbers = (found - zero[:, None]) * (step * unit)[:, None]
            cost = (importance[here] * (weights[:, here] - numbers) ** 2).sum(1)
            better = cost < best
            best[better], steps[better, g] = cost[better], step[better]
            codes[better, here] = found[better]
    return {"codes": codes, "zeros": zeros.copy(), "exponents": exponents, "steps": steps}
    ### END SOLUTION


def read(stored: dict, group: int, block: int) -> np.ndarray:
    """Return the weights [rows, columns] that the file stands for."""
    ### BEGIN SOLUTION
    steps = stored["steps"]
    if steps.min() < 1 or steps.max() > 255:
        raise ValueError(f"steps from {steps.min()} to {steps.max()}")
    groups = np.arange(steps.shape[1])
    if stored["exponents"].shape[1] != groups[-1] // block + 1:
        raise ValueError(f"{stored['exponents'].shape[1]} exponents for {len(groups)} groups")
    scales = steps * 2.0 ** stored["exponents"][:, groups // block]
    group_of = np.arange(stored["codes"].shape[1]) // group
    return (stored["codes"] - stored["zeros"][:, group_of]) * scales[:, group_of]
    ### END SOLUTION


### END VARIANT
### BEGIN VARIANT sorted


def write(
    weights: np.ndarray,
    hessian: np.ndarray,
    bits: int,
    group: int,
    ladder: list[float],
    damp: float,
    static: bool,
) -> dict:
    """Return `codes`, `scales`, `zeros` and, if not static, `g_idx`."""
    ### BEGIN SOLUTION
    importance, columns = np.diag(hessian).copy(), weights.shape[1]
    order = np.argsort(-importance, kind="stable")
    if not static:
        found = gptq(weights[:, order], hessian[np.ix_(order, order)], bits, group, ladder, damp)
        codes = np.zeros(weights.shape, np.int64)
        codes[:, order] = found["codes"]
        g_idx = np.zeros(columns, np.int64)
        g_idx[order] = np.arange(columns) // group
        return {**found, "codes": codes, "g_idx": g_idx}
    grids = [
        search(weights[:, begin : begin + group], importance[begin : begin + group], bits, ladder)
        for begin in range(0, columns, group)
    ]
    num_live = np.count_nonzero(importance)
    live, push = order[:num_live], np.zeros(hessian.shape)  # both in the order of the visits
    if num_live > 0:
        damped = hessian[np.ix_(live, live)]
        damped = damped + damp * np.median(importance[live]) * np.eye(num_live)
        factor = np.linalg.cholesky(np.linalg.inv(damped)).T
        push[:num_live, :num_live] = factor / np.diag(factor)[:, None]
    moved, codes = weights[:, order], np.zeros(weights.shape, np.int64)
    for i, k in enumerate(order):
        scale, zero = grids[k // group]
        codes[:, k] = nearest(moved[:, i : i + 1], scale, zero, bits)[:, 0]
        error = moved[:, i] - (codes[:, k] - zero) * scale
        moved[:, i + 1 :] -= np.outer(error, push[i, i + 1 :])
    return {
        "codes": codes,
        "scales": np.stack([scale for scale, _ in grids], 1),
        "zeros": np.stack([zero for _, zero in grids], 1),
    }
    ### END SOLUTION


def read(stored: dict, group: int) -> np.ndarray:
    """Return the weights [rows, columns] that the file stands for."""
    ### BEGIN SOLUTION
    columns, groups = stored["codes"].shape[1], stored["scales"].shape[1]
    group_of = stored.get("g_idx")
    if group_of is None:
        group_of = np.arange(columns) // group
        if group_of[-1] + 1 != groups:
            raise ValueError(f"{groups} groups of scales for {columns} columns")
    elif len(group_of) != columns or group_of.min() < 0 or group_of.max() >= groups:
        raise ValueError(f"g_idx {group_of} for {columns} columns and {groups} groups")
    return (stored["codes"] - stored["zeros"][:, group_of]) * stored["scales"][:, group_of]
    ### END SOLUTION


### END VARIANT

# %% check="finer"
labkit.check("finer")

# %% [markdown]
# ## Task 5: your format in quire (core, 10 + 5 points)
#
# A layer that stores codes multiplies by what they stand for. Its inputs can be rounded, too: a
# scale for each token is found while it runs, and costs no file anything.
#
# **Specification.** A `Layer` is made of the shards of one layer, as in task 1, and of `inputs`,
# which is `"plain"` or `"token"`. `apply` returns a row of products for each token: `x` has the
# shape [tokens, columns], the answer [tokens, rows of all shards]. `bytes` counts what the shards
# take in a file.
#
# - The product of a token and a row is the sum over the columns of the token's number times what
#   the row's code stands for, with your `fuse`.
# - If `inputs` is `"plain"`, the numbers of `x` are taken as they are.
# - If `inputs` is `"token"`, each token's numbers are rounded to 8 bits by themselves, before the
#   product. The step of a token is the largest magnitude of its numbers over 127. A number `v`
#   becomes `v / step`, rounded to a whole number, times `step`, with halves as in task 2. A token
#   whose numbers are all 0 stays as it is.
# - Any other `inputs` is refused with `ValueError`, and so are shards that `fuse` refuses.
# - In a file a word takes 4 bytes, be it of codes or of zeros, and a scale takes 2. The other keys
#   of a shard are not counted.
# - The arithmetic is that of float64.
#
# With 8 bits, one group and the grid of scale 0.5 and zero 2, the row of codes `4 0 3` stands for
# the weights `1 -1 0.5`. The token `127 50.2 10` has the step 1, so with `"token"` it becomes `127
# 50 10` and its product is 82; with `"plain"` it is 81.8.
#
# A `Layer` stands in every linear layer of quire below. Your own `unpack` and `fuse` of task 1 run
# here, so a fault of task 1 shows here, too.
#
# *Sections of the chapter:* *A scale a token*, *Your engine so far*.
#
# *Deliverable:* `Layer`, and the measurement below with its written answer.


# %% task="engine"
# task: engine
import numpy as np


class Layer:
    """Multiplies by the weights that shards store."""

    def __init__(self, shards: list[dict], inputs: str) -> None:
        """Take the shards of one layer, first to last; `inputs` is "plain" or "token"."""
        ### BEGIN SOLUTION
        if inputs not in ("plain", "token"):
            raise ValueError(f"inputs={inputs!r}")
        self._inputs, fused = inputs, fuse(shards)
        group_of = np.arange(fused["codes"].shape[1]) // shards[0]["group"]
        self._weights = fused["codes"] - fused["zeros"][:, group_of]
        self._weights = self._weights * fused["scales"][:, group_of]
        words = [one[key] for one in shards for key in ("words", "zeros") if one[key] is not None]
        self._bytes = 4 * sum(one.size for one in words)
        self._bytes += 2 * sum(one["scales"].size for one in shards)
        ### END SOLUTION

    def bytes(self) -> int:
        """Return how many bytes the shards take in a file."""
        ### BEGIN SOLUTION
        return self._bytes
        ### END SOLUTION

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Return products [tokens, rows] of x [tokens, columns]."""
        ### BEGIN SOLUTION
        if self._inputs == "token":
            step = np.abs(x).max(1, keepdims=True) / 127
            step[step == 0] = 1
            ### BEGIN VARIANT dense
            x = np.floor(x / step + 0.5) * step
            ### END VARIANT
            ### BEGIN VARIANT doubled
            x = np.sign(x) * np.floor(np.abs(x) / step + 0.5) * step
            ### END VARIANT
            ### BEGIN VARIANT sorted
            x = np.ceil(x / step - 0.5) * step
            ### END VARIANT
        return x @ self._weights.T
        ### END SOLUTION


# %% check="engine"
labkit.check("engine")

# %% [markdown]
# ### In the engine
#
# The class below is a quire `QuantMethod`. It loads a layer's weights as they are and hands them to
# `make`, which returns what multiplies in their place. A first run, over files of quire itself,
# records each layer's weights and its hessian. `coded` runs a function over all of them, and
# `stored` puts the codes into shards with your `pack` and into your `Layer`. The cell asserts that
# the tokens of your `Layer` are those of the same weights written out in full. It takes about half
# a minute, most of it in `gptq`.

# %%
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", message="IProgress not found")  # no widgets

import numpy as np
import torch

import quire
from quire import LLM, Components, SamplingParams
from quire.quantization.unquantized import Unquantized

GROUP, DAMP, LADDER = 128, 0.01, [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6]
torch.set_num_threads(1)  # small products: threads would wait for one another


class InFull:
    """Weights as they are, which take 2 bytes each; notes the sum of x xᵀ where it is asked to."""

    def __init__(self, weights, hessian=None, size=None):
        self.weights, self.hessian = weights, hessian
        self.size = 2 * weights.size if size is None else size

    def bytes(self):
        return self.size

    def apply(self, x):
        if self.hessian is not None:
            self.hessian += x.T @ x
        return x @ self.weights.T


class Method(Unquantized):
    """quire's protocol around `make`, a function of the names and weights of a layer's shards."""

    def __init__(self, names, make):
        self.names, self.make, self.made = names, make, None

    def finish_load(self, layer):
        """All weights are there: let `make` have them, shard by shard."""
        weights = layer.weight.double().numpy()
        parts = [weights[begin : begin + rows] for begin, rows in layer.shard_rows.values()]
        self.made = self.make(self.names, parts)

    def apply(self, layer, x):
        """Multiply by what was made."""
        return torch.from_numpy(self.made.apply(x.double().numpy())).to(x.dtype)


def served(make):
    """An engine in which `make` made every linear layer, and the bytes of these."""
    methods = []

    def quant_method(names):
        methods.append(Method(names, make))
        return methods[-1]

    llm = LLM(
        "quire-mini", device="cpu", dtype="float32", max_model_len=1024, max_num_seqs=8,
        enable_prefix_caching=False, components=Components(quant_method=quant_method),
    )  # fmt: skip
    return llm, sum(method.made.bytes() for method in methods)


def texts_of(*names):
    """The beginnings of files of quire itself, which quire-mini never saw."""
    folder = Path(quire.__file__).parent
    return [(folder / name).read_text("utf8")[:3000] for name in names]


def judged(llm, texts):
    """Bits a byte of the texts, and the most probable token behind each of their tokens."""
    prompts = [[0, *llm.tokenizer.encode(text)] for text in texts]
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=1)
    nats, best = 0.0, []
    for output in llm.generate(prompts, params, use_tqdm=False):
        rows = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
        for token, row in rows:
            nats -= row[token].logprob
            best.append(max(row, key=lambda one: row[one].logprob))
    return nats / np.log(2) / sum(len(text.encode()) for text in texts), best


def tokens_of(llm):
    """Greedy tokens of three prompts."""
    prompts = ["def add(a, b):\n", "class Stack:\n    def push(", "import os\n\n\nfor name in "]
    params = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


layers = {}  # names of a layer's shards: their weights, and the layer's hessian


def recorded(names, parts):
    """`make`: weights in full, noted."""
    columns = parts[0].shape[1]
    layers[names] = parts, np.zeros((columns, columns))
    return InFull(np.concatenate(parts), layers[names][1])


def coded(function):
    """What `function(weights, hessian)` returns for every shard, by the names of its layer."""
    return {
        names: [function(part, hessian) for part in parts]
        for names, (parts, hessian) in layers.items()
    }


def shard(found, bits, group):
    """A shard of codes, scales and zeros, as task 1 describes it."""
    groups = found["zeros"].shape[1]
    ### BEGIN VARIANT dense
    changed = (found["zeros"] - 1) % 2**bits
    ### END VARIANT
    ### BEGIN VARIANT doubled
    changed = (found["zeros"] - 2 ** (bits - 1)) % 2**bits
    ### END VARIANT
    ### BEGIN VARIANT sorted
    changed = 2**bits - 1 - found["zeros"]
    ### END VARIANT
    rows, columns = found["codes"].shape
    return {
        "rows": rows, "columns": columns, "bits": bits, "group": group, "block": 1,
        "words": pack(found["codes"], bits, group), "scales": found["scales"],
        "zeros": pack(changed, bits, groups),
    }  # fmt: skip


def stored(codes, bits, inputs="plain"):
    """`make`: your `Layer` of these codes."""
    return lambda names, parts: Layer([shard(one, bits, GROUP) for one in codes[names]], inputs)


def weights_of(found, group):
    """The weights that codes stand for."""
    group_of = np.arange(found["codes"].shape[1]) // group
    return (found["codes"] - found["zeros"][:, group_of]) * found["scales"][:, group_of]


def looped(bits):
    """Codes of the loop of task 3."""
    return coded(lambda weights, hessian: gptq(weights, hessian, bits, GROUP, LADDER, DAMP))


calibration = texts_of(
    "tokenizer.py", "chat.py", "prompts.py", "kv/block_pool.py", "async_engine.py", "kv/storage.py"
)
judged(served(recorded)[0], calibration)
begin = time.perf_counter()
four = looped(4)
print(f"4-bit codes of all layers took {time.perf_counter() - begin:.1f} s")


def written_out(names, parts):
    """`make`: the weights that the codes stand for."""
    return InFull(np.concatenate([weights_of(found, GROUP) for found in four[names]]))


assert tokens_of(served(stored(four, 4))[0]) == tokens_of(served(written_out)[0])
print("the tokens of your format are those of the weights that it stands for")

# %% [markdown]
# ### Measure
#
# quire-mini reads eight files that it never saw and that were not in the first run. `bytes` is what
# all linear layers take, and `bits` that for a weight. `bits a byte` says how well the files are
# predicted, and less is better. `worse` is its difference to the weights of 16 bits, in percent.
# `kept` is at how many of 100 places the most probable token is the same. The chapter's held-out
# files need 0.53 bits a byte and these more than twice as many, so the percentages of the two do
# not compare. The cell takes one to two minutes.
#
# `nearest` is `search` with the ladder `[1]`, so without a choice, and `search` is yours with the
# whole ladder. Both round each weight by itself. `gptq` is task 3, and `token` the same codes with
# inputs that are rounded for each token. The last rows are your task 4:
# ### BEGIN VARIANT dense
# the grids of `search`, with 4 bits for the half of each layer's groups that needs them most, and 3
# for the others.
# ### END VARIANT
# ### BEGIN VARIANT doubled
# 4 bits and the grids of `search` for groups of 32, with scales of 16 bits, and then with those of
# `write`.
# ### END VARIANT
# ### BEGIN VARIANT sorted
# 3 bits, and the loop visits the columns by importance, with groups of neighbours (`static`) and
# with groups in the order of the visits.
# ### END VARIANT

# %%


def every_group(bits, ladder, group=GROUP):
    """Codes without the loop of task 3: each weight by itself."""

    def function(weights, hessian):
        codes, scales, zeros = [], [], []
        for begin in range(0, weights.shape[1], group):
            part, h = weights[:, begin : begin + group], np.diag(hessian)[begin : begin + group]
            scale, zero = search(part, h, bits, ladder)
            codes.append(nearest(part, scale, zero, bits))
            scales.append(scale)
            zeros.append(zero)
        return {
            "codes": np.concatenate(codes, 1), "scales": np.stack(scales, 1),
            "zeros": np.stack(zeros, 1),
        }  # fmt: skip

    return coded(function)


three = every_group(3, LADDER)
### BEGIN VARIANT dense


def mixed(names, parts):
    """4 bits for the half of a layer's groups for which 3 bits cost most."""
    importance, groups = np.diag(layers[names][1]), range(0, parts[0].shape[1], GROUP)
    costs = [
        np.add.reduceat(importance * (part - weights_of(found, GROUP)) ** 2, groups, 1)
        for part, found in zip(parts, three[names], strict=True)
    ]
    weights, size, limit = [], 0, float(np.median(np.concatenate(costs)))
    for part in parts:
        found = write(part, importance, GROUP, LADDER, limit)
        weights.append(read(found, part.shape[1], GROUP))
        size += 4 * found["words"].size + 4 * found["starts"].size + 2 * found["scales"].size
    return InFull(np.concatenate(weights), None, size)


MORE = [("finer", mixed)]
### END VARIANT
### BEGIN VARIANT doubled
by_32 = every_group(4, LADDER, group=32)


def single(names, parts):
    """Groups of 32 and scales of 16 bits; codes and zeros take 4 bits each."""
    found = by_32[names]
    size = sum((one["codes"].size + one["zeros"].size) // 2 + 2 * one["scales"].size
               for one in found)  # fmt: skip
    return InFull(np.concatenate([weights_of(one, 32) for one in found]), None, size)


def doubled(names, parts):
    """The same with the scales of `write`, in blocks of 8 groups; a byte for each exponent."""
    importance, weights, size = np.diag(layers[names][1]), [], 0
    for part, one in zip(parts, by_32[names], strict=True):
        found = write(part, importance, one["scales"], one["zeros"], 4, 32, 8)
        weights.append(read(found, 32, 8))
        size += (found["codes"].size + found["zeros"].size) // 2
        size += found["steps"].size + found["exponents"].size
    return InFull(np.concatenate(weights), None, size)


MORE = [("search 4, by 32", single), ("finer", doubled)]
### END VARIANT
### BEGIN VARIANT sorted


def by_importance(static):
    """What `write` returns, with 3 bits."""
    return coded(lambda w, hessian: write(w, hessian, 3, GROUP, LADDER, DAMP, static))


with_g_idx = by_importance(False)


def own_groups(names, parts):
    """Shards as the others, and 4 bytes for each number of `g_idx`; only `read` understands it."""
    found = with_g_idx[names]
    size = Layer([shard(one, 3, GROUP) for one in found], "plain").bytes()
    size += sum(4 * len(one["g_idx"]) for one in found)
    return InFull(np.concatenate([read(one, GROUP) for one in found]), None, size)


MORE = [("finer 3, static", stored(by_importance(True), 3)), ("finer 3, g_idx", own_groups)]
### END VARIANT
RUNS = [
    ("16 bits", lambda names, parts: InFull(np.concatenate(parts))),
    ("nearest 4", stored(every_group(4, [1.0]), 4)),
    ("search 4", stored(every_group(4, LADDER), 4)),
    ("gptq 4", stored(four, 4)), ("gptq 4, token", stored(four, 4, "token")),
    ("nearest 3", stored(every_group(3, [1.0]), 3)),
    ("search 3", stored(three, 3)),
    ("gptq 3", stored(looped(3), 3)), *MORE,
]  # fmt: skip
held_out = texts_of(
    "scheduler.py", "request.py", "detokenizer.py", "kv/kv_cache_manager.py", "trace.py",
    "sampling/params.py", "runner/input_batch.py", "speculation/suffix.py",
)  # fmt: skip

print(f"{'':16} {'bytes':>10}  bits  bits a byte  worse  kept")
first = None
for name, make in RUNS:
    llm, size = served(make)
    rate, best = judged(llm, held_out)
    first = first or (size, rate, best)
    kept = 100 * sum(a == b for a, b in zip(best, first[2], strict=True)) / len(best)
    print(f"{name:16} {size:10,} {16 * size / first[0]:5.2f} {rate:12.4f}"
          f" {100 * (rate / first[1] - 1):5.1f}% {kept:5.1f}")  # fmt: skip

# %% [markdown]
# Explain what you measured, in six to ten sentences with your numbers.
#
# 1. How many bits does a weight take in `gptq 4`, and where do those above 4 come from? The zeros
#    of a row lie in words of 32 bits: how many of these bits hold a zero in a row of 256 columns?
# 2. What does `search` change against `nearest`, at 4 bits and at 3? In every group its cost is the
#    least of the ladder's. Why need the files not be predicted better for that?
# 3. What does the loop of task 3 change against `search`, and how many bytes does it cost?
# 4. What do the rounded inputs cost? Why does the file grow by nothing, although each token has a
#    scale of its own?
# 5. What does your task 4 buy, in bytes, in bits a byte or in what a reader has to know? Name the
#    row or rows that show it, and any row that beats yours. Would you ship it?

# %% [markdown] written="explain"
# <!-- written: explain -->
# ### BEGIN SOLUTION
# In `gptq 4` a weight takes 4.22 bits: 4 for its code, 0.125 for a scale of 16 bits for 128
# weights, and 0.10 for zeros. In a row of 256 columns the two zeros are 8 bits and lie in a word of
# 32, so three quarters of that word are empty. At 3 bits `search` brings 10.6 % down to 7.6 %; at 4
# bits it is 1.7 % in place of 1.4 %, so it gains nothing. Its cost adds up the squares of single
# columns, as if their inputs were unrelated, and the outputs of a layer depend on the products of
# their errors, too; a smaller sum of squares need not be a smaller error of the outputs. `gptq`
# counts these products: 0.9 % in place of 1.7 % at 4 bits and 2.8 % in place of 7.6 % at 3, with
# not one byte more, since it chooses other codes and stores nothing else. Rounded inputs cost 0.02
# %, from 1.1619 to 1.1621 bits a byte; the scale of a token is found from the token while the model
# runs and is gone after the product, so no file has it. My task 4 has 3.83 bits and is 3.2 % worse.
# It rounds each weight by itself, so the rows to compare are `search 3` with 3.48 bits and 7.6 %
# and `search 4` with 4.22 bits and 1.7 %: a line between them would have 4.8 % at 3.83 bits, so
# giving the fourth bit to the groups that need it is worth something. But `gptq 3` has 2.8 % with
# 3.48 bits and a reader that needs no stream of bits, so I would ship that, or put the loop in
# front of my format first.
# ### END SOLUTION
