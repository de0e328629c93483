# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Lab: ranks of unequal size
#
# quire cuts a model into equal parts, one for each rank. You write what it takes where ranks are
# not equal: who keeps which heads and columns, how sums of uneven parts go round a ring, and how
# all ranks agree which expert serves which token. Then quire runs a model on three unequal ranks,
# with your parts and your sums. Chapter: *Parallelism*. 100 points, 70 core and 30 depth, all on a
# CPU. The minutes below are estimates. They add up to five hours and a quarter, which is two
# evenings. After that comes a frontier task, for a bonus.
#
# | task | tier | points | minutes |
# |---|---|---|---|
# | 1. `shards` | core | 20 | 60 |
# | 2. `ring` | core | 20 | 60 |
# | 3. `router` | core | 15 | 45 |
# | 4. `spread` | depth | 30 | 90 |
# | 5. `engine`, with a written answer | core | 10 + 5 | 60 |
# | 6. a sum in one shot, on a GPU | frontier | bonus | open |
#
# Each task is one cell. Keep its `# task:` line: grading takes that cell and nothing else, so
# helpers of yours belong inside it, and it may import the standard library and NumPy. The behaviour
# asked for differs from quire's on purpose; the sentences that say how are the ones the hidden
# tests judge.
#
# A *rank* is one of several workers that compute a model together. Ranks are numbered from 0. A
# rank is no process here but a *generator*: a function with `yield` in it. It yields a wish, such
# as `y = yield AllReduce(x)`, and gets the answer once the other ranks have done their part. What
# it returns is its result.
#
# Arrays are NumPy's: numbers that are computed with are float64, and no function changes its
# arguments. A *part* of things that are numbered is the list `[begin, size]`: the first of them,
# and how many. What is refused raises `ValueError`; a generator raises it before its first wish.

# %%
import importlib.util

if importlib.util.find_spec("labkit") is None:
    # In Colab; torch is there already and stays as it is.
    get_ipython().run_line_magic("pip", "install -q 'quire[labs] @ git+{{repository}}'")

import labkit

LAB = "{{lab}}"  # which lab this is, and which variant

# %% [markdown]
# The next cell is given and is there in grading, too. Leave it as it is. It holds the four wishes
# and the network that grants them. `run` lets you try a generator of yours on several ranks: it
# takes the function's name and a list of arguments for each rank, and returns what the ranks
# returned and what was carried out. Where ranks wait for one another for ever, it says who waits
# for what. Three small functions at its end are for task 1: `within`, `numbers` and
# `check_weight`. NumPy is `np` in all task cells, and `Generator` is there for the signatures.

# %% given="network"
# {{given}}

# %% [markdown]
# ## Task 1: what a rank keeps (core, 20 points)
#
# A layer's first matrix is cut by its rows, its second by its columns, so a rank multiplies by both
# without asking anybody. If a rank is three times as fast as another one, it should keep three
# times as many rows. Heads are few and cannot be cut, and several ranks may read the same KV head.
#
# **Specification.** `split` cuts `total` numbered things into parts whose sizes are in the
# proportion of `ratio`, one number for each rank. `shards` says for each rank what it keeps of a
# model, and `cut` returns what a rank keeps of one weight.
#
# A model with 7 heads of which each reads a KV head of its own, on ranks of the ratio `5 2 1`:
#
# | rank | exact share | whole | remainder | part |
# |---|---|---|---|---|
# | 0 | 35/8 | 4 | 3/8 | `[0, 4]` |
# | 1 | 14/8 | 1 | 6/8 | `[4, 2]` |
# | 2 | 7/8 | 0 | 7/8 | `[6, 1]` |
#
# Two heads are left over. They go to ranks 2 and 1, whose remainders are the largest.
#
# `split`:
#
# - The parts follow one another in the order of ranks, without a gap. Together they are all of
#   `total`.
# - The exact share of a rank is `total * ratio[rank] / sum(ratio)`. It gets the whole part of that.
# - What is left over goes out one by one, to the ranks with the largest remainders. No rank gets
#   two. Remainders are compared exactly, as fractions: floating-point numbers would lose small
#   differences, and take some equal ones for unequal.
# - Of ranks with equal remainders
# ### BEGIN VARIANT experts
#   the one of the smaller number comes first.
# ### END VARIANT
# ### BEGIN VARIANT ring
#   the one of the larger number comes first.
# ### END VARIANT
# ### BEGIN VARIANT pipeline
#   the one of the larger ratio comes first, and where the ratios are equal, too, the one of the
#   smaller number.
# ### END VARIANT
#
# `shards` gets a model as a dict with `hidden`, `heads`, `kv_heads`, `head_size`, `ffn` and
# `vocab`. It returns a dict for each rank:
#
# | key | meaning |
# |---|---|
# | `heads` | the part of the query heads |
# | `kv` | the list of KV heads that it keeps |
# | `kv_of` | for each of its query heads, the place in `kv` of the KV head that it reads |
# | `ffn` | the part of the columns in the middle of the MLP |
# | `vocab` | the part of the vocabulary |
#
# - The three parts are what `split` gives. A part may be empty: the rank then keeps none.
# - Query head `h` of the model reads KV head `h // (heads // kv_heads)`. The caller promises that
#   `kv_heads` divides `heads`.
# - A rank keeps the KV heads that its query heads read, each once, in ascending order. So two ranks
#   may keep a copy of the same one.
#
# `cut` gets the weight's name, the whole weight, the model and the dict of one rank. With `q` for
# `heads * head_size` and `k` for `kv_heads * head_size`:
#
# | names | shape of the whole | how it is cut |
# |---|---|---|
# | `qkv_proj` | [q + 2 k, hidden] | by rows |
# | `qkv_bias` | [q + 2 k] | as the rows of `qkv_proj` |
# | `o_proj` | [hidden, q] | by columns |
# | `gate_up_proj` | [2 ffn, hidden] | by rows |
# | `gate_up_bias` | [2 ffn] | as the rows of `gate_up_proj` |
# | `down_proj` | [hidden, ffn] | by columns |
# | `embedding` | [vocab, hidden] | by rows |
# | `query_norm`, `key_norm` | [q], [k] | as rows, by heads |
# | `head_norm` | [head_size] | kept whole |
# | `o_bias`, `down_bias`, `layer_norm` | [hidden] | kept whole |
#
# - A matrix whose outputs are shared is cut by its rows, and so is a bias of its outputs. The rows
#   of a head are `head_size` neighbours.
# - `qkv_proj` has the rows of all query heads, then those of all KV heads' keys, then those of all
#   KV heads' values. What a rank keeps has its own in the same order, those of its KV heads in the
#   order of `kv`.
# ### BEGIN VARIANT experts
# - `gate_up_proj` has the `ffn` rows of the gate, then the `ffn` rows of up. What a rank keeps has
#   first the rows of its gate, then the rows of its up.
# ### END VARIANT
# ### BEGIN VARIANT ring
# - `gate_up_proj` has a row of the gate and a row of up by turns: gate 0, up 0, gate 1, up 1, ….
# ### END VARIANT
# ### BEGIN VARIANT pipeline
# - `gate_up_proj` has the `ffn` rows of up, then the `ffn` rows of the gate.
# ### END VARIANT
# ### BEGIN VARIANT ring pipeline
#   What a rank keeps has another order: first the rows of its gate, then the rows of its up.
# ### END VARIANT
# - A matrix whose inputs are shared is cut by its columns: those that the rank's own heads or
#   middle columns are multiplied by.
# - What every rank needs is kept whole: weights of a single head's size, and what is added to or
#   multiplied by the sum over all ranks.
#
# What is refused, with `ValueError`:
#
# - `split`: a `ratio` that is empty, that has a number below 0, or whose numbers are all 0.
# - `cut`: a name that is not in the table, and a weight that does not have the shape of the table.
#   `check_weight(name, weight, model)` of the cell above raises it in both cases.
#
# *Sections of the chapter:* *Columns, then rows*, *Heads that do not divide*.
#
# *Deliverable:* `split`, `shards` and `cut`; their check passes.


# %% task="shards"
# task: shards


def split(total: int, ratio: list[int]) -> list[list[int]]:
    """Return for each rank the part `[begin, size]` of `total` things; ratio is whole numbers."""
    ### BEGIN SOLUTION
    whole = sum(ratio)
    if whole <= 0 or min(ratio) < 0:
        raise ValueError(f"ratio={ratio}: numbers from 0 on are needed, and not only 0")
    sizes = [total * one // whole for one in ratio]
    left = [total * one % whole for one in ratio]
    ### BEGIN VARIANT experts
    order = sorted(range(len(ratio)), key=lambda rank: (-left[rank], rank))
    ### END VARIANT
    ### BEGIN VARIANT ring
    order = sorted(range(len(ratio)), key=lambda rank: (-left[rank], -rank))
    ### END VARIANT
    ### BEGIN VARIANT pipeline
    order = sorted(range(len(ratio)), key=lambda rank: (-left[rank], -ratio[rank], rank))
    ### END VARIANT
    for rank in order[: total - sum(sizes)]:
        sizes[rank] += 1
    return [[sum(sizes[:rank]), size] for rank, size in enumerate(sizes)]
    ### END SOLUTION


def shards(model: dict, ratio: list[int]) -> list[dict]:
    """Return `heads`, `kv`, `kv_of`, `ffn` and `vocab` of each rank."""
    ### BEGIN SOLUTION
    group, found = model["heads"] // model["kv_heads"], []
    parts = [split(model[name], ratio) for name in ("heads", "ffn", "vocab")]
    for heads, ffn, vocab in zip(*parts, strict=True):
        read = [head // group for head in within(heads)]
        kv = sorted(set(read))
        kv_of = [kv.index(head) for head in read]
        found.append({"heads": heads, "kv": kv, "kv_of": kv_of, "ffn": ffn, "vocab": vocab})
    return found
    ### END SOLUTION


def cut(name: str, weight: np.ndarray, model: dict, shard: dict) -> np.ndarray:
    """Return what the rank of `shard` keeps of a weight of the model."""
    ### BEGIN SOLUTION
    check_weight(name, weight, model)
    size, ffn = model["head_size"], model["ffn"]
    q, k = model["heads"] * size, model["kv_heads"] * size
    queries, keys = numbers(within(shard["heads"]), size), numbers(shard["kv"], size)
    middle = numbers(within(shard["ffn"]))
    qkv = np.concatenate([queries, q + keys, q + k + keys])
    ### BEGIN VARIANT experts
    gate_up = np.concatenate([middle, ffn + middle])
    ### END VARIANT
    ### BEGIN VARIANT ring
    gate_up = np.concatenate([2 * middle, 2 * middle + 1])
    ### END VARIANT
    ### BEGIN VARIANT pipeline
    gate_up = np.concatenate([ffn + middle, middle])
    ### END VARIANT
    kept = {
        "qkv_proj": qkv, "qkv_bias": qkv, "gate_up_proj": gate_up, "gate_up_bias": gate_up,
        "o_proj": queries, "query_norm": queries, "key_norm": keys, "down_proj": middle,
        "embedding": numbers(within(shard["vocab"])),
    }  # fmt: skip
    if name not in kept:
        return weight.copy()
    return np.take(weight, kept[name], 1 if name in ("o_proj", "down_proj") else 0)
    ### END SOLUTION


# %% check="shards"
labkit.check("shards")

# %% [markdown]
# ## Task 2: an all-reduce of uneven parts (core, 20 points)
#
# If every rank sent its whole array to every other one, each array would cross the network as often
# as there are other ranks. In a ring a rank talks to two neighbours only. First each part of the
# sum is added up on its way round, then the finished parts go round once more.
#
# **Specification.** `all_reduce` is a generator that runs on every rank. `x` is the rank's own
# array of one dimension, and `parts` has a size for each rank's part of it, the same on all ranks;
# it returns the sum of all ranks' `x`.
#
# Three ranks, step by step. `S 2` means that the rank sends part 2 to
# ### BEGIN VARIANT experts pipeline
# the next rank, and `R 1` that it receives part 1 from the rank before it:
# ### END VARIANT
# ### BEGIN VARIANT ring
# the rank before it, and `R 1` that it receives part 1 from the next rank:
# ### END VARIANT
#
# | step | rank 0 | rank 1 | rank 2 | afterwards complete |
# |---|---|---|---|---|
# ### BEGIN VARIANT experts
# | 0 | S 0, R 2 | S 1, R 0 | S 2, R 1 | none |
# | 1 | S 2, R 1 | S 0, R 2 | S 1, R 0 | on rank 0 part 1, on rank 1 part 2, on rank 2 part 0 |
# | 2 | S 1, R 0 | S 2, R 1 | S 0, R 2 | two parts on each rank |
# | 3 | S 0, R 2 | S 1, R 0 | S 2, R 1 | all |
# ### END VARIANT
# ### BEGIN VARIANT ring
# | 0 | S 0, R 1 | S 1, R 2 | S 2, R 0 | none |
# | 1 | S 1, R 2 | S 2, R 0 | S 0, R 1 | on rank 0 part 2, on rank 1 part 0, on rank 2 part 1 |
# | 2 | S 2, R 0 | S 0, R 1 | S 1, R 2 | two parts on each rank |
# | 3 | S 0, R 1 | S 1, R 2 | S 2, R 0 | all |
# ### END VARIANT
# ### BEGIN VARIANT pipeline
# | 0 | S 2, R 1 | S 0, R 2 | S 1, R 0 | none |
# | 1 | S 1, R 0 | S 2, R 1 | S 0, R 2 | on rank 0 part 0, on rank 1 part 1, on rank 2 part 2 |
# | 2 | S 0, R 2 | S 1, R 0 | S 2, R 1 | two parts on each rank |
# | 3 | S 2, R 1 | S 0, R 2 | S 1, R 0 | all |
# ### END VARIANT
#
# - The parts lie one behind the other in `x`: part `p` has `parts[p]` numbers, behind those of the
#   parts before it. Their sizes may differ.
# ### BEGIN VARIANT experts pipeline
# - Ranks are a ring: rank `r` sends to rank `r + 1`, the last one to rank 0.
# ### END VARIANT
# ### BEGIN VARIANT ring
# - Ranks are a ring: rank `r` sends to rank `r - 1`, and rank 0 to the last one.
# ### END VARIANT
# - With `n` ranks there are `2 n - 2` steps. A rank sends one part a step and receives one. Counted
#   from 0, in step `t` rank `r` sends
# ### BEGIN VARIANT experts
#   part `(r - t) % n`, and receives part `(r - t - 1) % n`.
# ### END VARIANT
# ### BEGIN VARIANT ring
#   part `(r + t) % n`, and receives part `(r + t + 1) % n`.
# ### END VARIANT
# ### BEGIN VARIANT pipeline
#   part `(r - t - 1) % n`, and receives part `(r - t - 2) % n`.
# ### END VARIANT
# - In the first `n - 1` steps it adds what it receives to its own numbers of that part, and what it
#   sends later are these sums. In the other steps it keeps what it receives as it is.
# - A part without numbers is neither sent nor received.
# - It asks for `Send` and `Receive` alone. `Send` waits until the other rank receives. The ranks
#   must not come to a standstill, whatever their number and the parts. In which order a rank sends
#   and receives within a step is up to you; *What goes wrong* on the chapter's second page has a
#   remedy.
# - Every rank returns the sum of all ranks' `x`, as an array of its own; its `x` stays as it is. A
#   single rank has no steps, and returns a copy.
# - Parts that do not add up to the length of `x` are refused with `ValueError`, and so is a size
#   below 0.
#
# *Sections of the chapter:* *What a sum costs*; *What goes wrong*, on its second page.
#
# *Deliverable:* `all_reduce`; its check passes.


# %% task="ring"
# task: ring


def all_reduce(rank: int, x: np.ndarray, parts: list[int]) -> Generator:
    """Return the sum of all ranks' x [numbers]; `parts` has a size for each rank."""
    ### BEGIN SOLUTION
    if sum(parts) != len(x) or min(parts) < 0:
        raise ValueError(f"parts {parts} of {len(x)} numbers")
    total, n = x.copy(), len(parts)
    pieces = np.split(total, np.cumsum(parts)[:-1])  # views of it
    ### BEGIN VARIANT experts pipeline
    to, source = (rank + 1) % n, (rank - 1) % n
    ### END VARIANT
    ### BEGIN VARIANT ring
    to, source = (rank - 1) % n, (rank + 1) % n
    ### END VARIANT
    for step in range(2 * n - 2):
        ### BEGIN VARIANT experts
        out, into = (rank - step) % n, (rank - step - 1) % n
        ### END VARIANT
        ### BEGIN VARIANT ring
        out, into = (rank + step) % n, (rank + step + 1) % n
        ### END VARIANT
        ### BEGIN VARIANT pipeline
        out, into = (rank - step - 1) % n, (rank - step - 2) % n
        ### END VARIANT
        for is_sending in (rank % 2 == 0, rank % 2 == 1):
            if is_sending and parts[out] > 0:
                yield Send(to, pieces[out].copy())
            elif not is_sending and parts[into] > 0:
                received = yield Receive(source, (parts[into],))
                pieces[into][:] = pieces[into] + received if step < n - 1 else received
    return total
    ### END SOLUTION


# %% check="ring"
labkit.check("ring")

# %% [markdown]
# ## Task 3: a router with a capacity (core, 15 points)
#
# In a mixture of experts each token is computed by a few experts, and the experts lie on different
# ranks. An expert has room for so many tokens a step. If two ranks disagree who is left out, a
# token is computed twice or never, and nothing says so.
#
# **Specification.** `top` returns for each token the experts that it chooses, and their weights.
# `dispatch` is a generator that runs on every rank with the choices of that rank's own tokens; it
# returns what the rank's own experts have to compute, and what is left out on any rank.
#
# `top` gets `logits` of the shape [tokens, experts] and returns two arrays [tokens, k], of int64
# and of float64:
#
# - A token chooses the `k` experts with the largest logits, the largest first.
# - Of experts with equal logits
# ### BEGIN VARIANT experts pipeline
#   that of the smaller number comes first.
# ### END VARIANT
# ### BEGIN VARIANT ring
#   that of the larger number comes first.
# ### END VARIANT
# ### BEGIN VARIANT experts ring
# - The weights are the softmax of all logits, divided by the sum over the chosen ones, so that a
#   token's weights add up to 1. Logits may be any finite numbers.
# ### END VARIANT
# ### BEGIN VARIANT pipeline
# - The weights are the sigmoids `1 / (1 + exp(-logit))` of the chosen logits, divided by their sum,
#   so that a token's weights add up to 1. Logits lie between -500 and 500.
# ### END VARIANT
# - There may be no tokens: a rank without requests calls `top`, too.
# - A `k` below 1 or above the number of experts is refused with `ValueError`.
#
# A *choice* is a list `[request, position, place, expert, weight]`: which token it is, whether this
# is its first (`place` 0) or a later choice, and what it chose; weights are above 0. With capacity
# 1 and all choices of expert 0, this is the order in which they are served, and only the first one
# is:
#
# | choice | rank that has the token |
# |---|---|
# ### BEGIN VARIANT experts
# | `[7, 1, 1, 0, 0.5]` | 1 |
# | `[3, 2, 0, 0, 0.25]` | 1 |
# | `[3, 4, 0, 0, 0.25]` | 0 |
# | `[5, 0, 0, 0, 0.25]` | 1 |
# | `[1, 9, 1, 0, 0.125]` | 1 |
# ### END VARIANT
# ### BEGIN VARIANT ring
# | `[3, 2, 0, 0, 0.25]` | 1 |
# | `[3, 4, 0, 0, 0.25]` | 0 |
# | `[5, 0, 0, 0, 0.25]` | 1 |
# | `[1, 9, 1, 0, 0.125]` | 1 |
# | `[7, 1, 1, 0, 0.5]` | 1 |
# ### END VARIANT
# ### BEGIN VARIANT pipeline
# | `[5, 0, 0, 0, 0.25]` | 1 |
# | `[7, 1, 1, 0, 0.5]` | 1 |
# | `[3, 2, 0, 0, 0.25]` | 1 |
# | `[3, 4, 0, 0, 0.25]` | 0 |
# | `[1, 9, 1, 0, 0.125]` | 1 |
# ### END VARIANT
#
# `dispatch` gets the choices of this rank's tokens, `experts`, which is the part of the experts
# that lie on this rank, and `capacity`:
#
# - It asks once for an `AllGather`, so that every rank knows all choices, and for nothing else.
# - An expert serves at most `capacity` choices, those of all ranks taken together, in *one order*:
# ### BEGIN VARIANT experts
#   the larger weight first, then the smaller request, then the smaller position. Weights are
#   compared as they are, not rounded.
# ### END VARIANT
# ### BEGIN VARIANT ring
#   the smaller place first, then the smaller request, then the smaller position.
# ### END VARIANT
# ### BEGIN VARIANT pipeline
#   the smaller position first, then the smaller request.
# ### END VARIANT
#   A token never chooses an expert twice. The capacity may be 0.
# - Which rank has a token, and in which order a rank lists its choices, changes nothing.
# ### BEGIN VARIANT experts pipeline
# - A choice that is served keeps its weight, even if others of its token are dropped.
# ### END VARIANT
# ### BEGIN VARIANT ring
# - The weights of a token are divided by the sum of those of its choices that are served on any
#   rank, so that they add up to 1 again.
# ### END VARIANT
# - It returns a dict. `kept` has a list for each of the rank's own experts: `[request, position,
#   weight]` of what it serves, in the one order. `dropped` has `[request, position, expert]` of all
#   choices that no rank serves, sorted; it is the same on every rank.
# - A rank without choices or without experts takes part all the same.
#
# *Section of the chapter:* *What ranks must agree on*.
#
# *Deliverable:* `top` and `dispatch`; their check passes.


# %% task="router"
# task: router


def top(logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return experts and weights [tokens, k] of logits [tokens, experts]."""
    ### BEGIN SOLUTION
    if not 1 <= k <= logits.shape[1]:
        raise ValueError(f"k={k} of {logits.shape[1]} experts")
    ### BEGIN VARIANT experts pipeline
    chosen = np.argsort(-logits, 1, kind="stable")[:, :k]
    ### END VARIANT
    ### BEGIN VARIANT ring
    chosen = logits.shape[1] - 1 - np.argsort(-logits[:, ::-1], 1, kind="stable")[:, :k]
    ### END VARIANT
    values = np.take_along_axis(logits, chosen, 1)
    ### BEGIN VARIANT experts ring
    weights = np.exp(values - values[:, :1])
    ### END VARIANT
    ### BEGIN VARIANT pipeline
    weights = 1 / (1 + np.exp(-values))
    ### END VARIANT
    return chosen, weights / weights.sum(1, keepdims=True)
    ### END SOLUTION


def dispatch(choices: list[list], experts: list[int], capacity: int) -> Generator:
    """Return `kept` and `dropped`; a choice is [request, position, place, expert, weight]."""
    ### BEGIN SOLUTION
    everyone = yield AllGather(choices)
    served, dropped = {}, []
    every = [one for own in everyone for one in own]
    ### BEGIN VARIANT experts
    every.sort(key=lambda one: (-one[4], one[0], one[1]))
    ### END VARIANT
    ### BEGIN VARIANT ring
    every.sort(key=lambda one: (one[2], one[0], one[1]))
    ### END VARIANT
    ### BEGIN VARIANT pipeline
    every.sort(key=lambda one: (one[1], one[0]))
    ### END VARIANT
    for request, position, _, expert, weight in every:
        if len(served.setdefault(expert, [])) < capacity:
            served[expert].append([request, position, weight])
        else:
            dropped.append([request, position, expert])
    ### BEGIN VARIANT ring
    sums = {}
    for request, position, weight in (one for own in served.values() for one in own):
        sums[request, position] = sums.get((request, position), 0) + weight
    served = {e: [[r, p, w / sums[r, p]] for r, p, w in own] for e, own in served.items()}
    ### END VARIANT
    kept = [served.get(expert, []) for expert in within(experts)]
    return {"kept": kept, "dropped": sorted(dropped)}
    ### END SOLUTION


# %% check="router"
labkit.check("router")

# %% [markdown]
# ## Task 4: one more way to share the work (depth, 30 points)
#
# ### BEGIN VARIANT experts
# A few experts get most of the tokens, and all ranks wait for the one that has them. So busy
# experts are stored several times. Each token must then be served by exactly one of the replicas,
# and all ranks must know by which.
#
# **Specification.** `share` is a generator that runs on every rank with the tokens that this rank
# has counted for each expert; it returns the *table*: for each rank the list of experts in its
# slots. `work` says for tokens and a table which slot serves which token.
#
# Four experts whose loads are `12 3 9 6` on all ranks together, and two ranks with `4 2` slots.
# Experts 0 and 2 get a second replica. Then:
#
# | expert | share | goes to rank | because | load a slot: rank 0 | rank 1 |
# |---|---|---|---|---|---|
# | 0 | 6 | 0 | equal loads, smaller number | 1.5 | 0 |
# | 0 | 6 | 1 | rank 0 has it | 1.5 | 3 |
# | 3 | 6 | 0 | 1.5 is less than 3 | 3 | 3 |
# | 2 | 4.5 | 0 | equal loads, smaller number | 4.125 | 3 |
# | 2 | 4.5 | 1 | rank 0 has it | 4.125 | 5.25 |
# | 1 | 3 | 0 | rank 1 is full | 4.875 | 5.25 |
#
# What is shared, and how; the *share* of a replica is its expert's load over the number of the
# expert's replicas:
#
# - Each expert has one replica. Further ones are made one by one, until there are as many replicas
#   as slots: for the expert whose replicas have the largest share, among equals the one of the
#   smaller number.
# - An expert has at most as many replicas as there are ranks with slots. One that has as many is
#   passed over. If all have, the other slots stay empty: the rank's list is shorter than the
#   number of its slots.
# - Replicas are placed one by one, the largest share first, among equals the expert of the smaller
#   number. A replica goes to a rank with a free slot that does not have this expert yet. If there
#   are only ranks that have it, it goes to one of these.
# - Among the ranks that may have it, it is the one with the smallest load a slot: the shares placed
#   there so far, over the number of all its slots. Among equals it is the smaller rank.
# - Shares and loads are compared exactly, as fractions. Loads may be as large as int64 allows.
#
# What is exchanged:
#
# - `share` gets `loads`, an array with a whole number for each expert, and `slots`, a number for
#   each rank. It asks once for an `AllReduce` of its loads, and for nothing else. All else follows
#   from the sum, so the table is the same on all ranks.
#
# What comes out, of `work`, which gets the table and tokens `[request, position, expert]` of all
# ranks in any order:
#
# - It returns a list for each rank, with a list for each of its slots in the table: `[request,
#   position]` of the tokens that this slot serves.
# - The tokens of an expert are counted from 0 in the order of request and position. Number `i` is
#   served by replica `i % replicas`, where the replicas of an expert are numbered by rank, and on
#   one rank by slot. Tokens of a slot are listed in the same order.
#
# At the edges:
#
# - A rank may have no slots; it takes part in `share`, and its list is empty. The loads may all be
#   0.
# - Fewer slots than experts are refused with `ValueError`.
# ### END VARIANT
# ### BEGIN VARIANT ring
# A prompt of a million tokens fits no rank's cache, so its tokens are cut over the ranks. Each rank
# keeps its queries, and keys and values go round the ring. A rank that has only late tokens sees
# almost everything and a rank that has only early ones almost nothing, so each gets some of both.
#
# **Specification.** `share` says for each rank which positions of a sequence it has. `work` is a
# generator that runs on every rank with that rank's queries, keys and values, and returns their
# attention over the whole sequence.
#
# Ten positions on two ranks of the ratio `2 1`:
#
# | rank | first chunk | last chunk | positions that its queries see, added up |
# |---|---|---|---|
# | 0 | 0 1 2 | 7 8 9 | 33 |
# | 1 | 3 4 | 5 6 | 22 |
#
# Three ranks, of whose blocks block 0 is that of rank 0, and so on:
#
# | step | on rank 0 | on rank 1 | on rank 2 |
# |---|---|---|---|
# | 0 | sends block 0, then has 1 | sends block 1, then has 2 | sends block 2, then has 0 |
# | 1 | sends block 1, then has 2 | sends block 2, then has 0 | sends block 0, then has 1 |
#
# What is shared, and how:
#
# - With `n` ranks there are `2 n` chunks. Their sizes are what your `split` gives for the ratio of
#   all ranks, followed by the same numbers from the last to the first.
# - Rank `r` has chunk `r` and chunk `2 n - 1 - r`. `share` returns for each rank its positions in
#   ascending order, as an array of int64.
#
# What is exchanged, by `work`, which gets in `counts` the number of tokens on each rank, padding
# included, `q`, `k` and `v` of the shape [tokens, width], and `positions` of the shape [tokens]:
#
# - A *block* is an array [tokens, 1 + 2 width] of a rank's positions, keys and values, side by
#   side.
# - With `n` ranks there are `n - 1` steps. In each one a rank sends the block that it holds to rank
#   `rank - 1`, rank 0 to the last one, and receives that of the next rank. It begins with its own
#   block, and sends in each later step what it has received in the one before.
# - A block without tokens is neither sent nor received. `work` asks for `Send` and `Receive` alone;
#   `Send` waits until the other rank receives, and the ranks must not come to a standstill.
#
# What comes out is a dict with `out`, of the shape [tokens, width], and `lse`, [tokens]:
#
# - A query sees the keys of all ranks whose position is not above its own. Its score for a key is
#   `q · k / sqrt(width)`, `out` is the mean of the values, weighted by the softmax of the scores,
#   and `lse` is the logarithm of the sum of `exp(score)`.
# - Parts are merged by their `lse`, as the chapter derives. Scores may be thousands, so no `exp` is
#   taken of a score as it is.
#
# At the edges:
#
# - A position -1 is padding: a key that no query sees, and a query that sees none. What padding
#   holds may be anything, NaN included.
# - A query that sees no key has `out` 0 and `lse` -∞. A part in which it sees none counts for
#   nothing.
# - A rank may have no tokens; it hands on the others' blocks all the same.
# - `share` refuses what `split` refuses.
# ### END VARIANT
# ### BEGIN VARIANT pipeline
# A pipeline's stages are busy only if there is work in flight for all of them. Tokens make a
# circle: the first stage needs the last one's token before it can compute the next. And whoever
# sends while nobody receives, waits.
#
# **Specification.** `share` cuts the layers of a model into one run for each rank, so that the
# slowest rank is as fast as can be. `work` is a generator that runs on every rank and lets `k`
# micro-batches go through its stage; on rank 0 it returns their tokens.
#
# Wishes of three ranks with two micro-batches and two steps, which are four jobs. `S 2` sends what
# belongs to job 2, `R 2` receives it:
#
# | rank | wishes, in order |
# |---|---|
# | 0 | S 0, S 1, R 0, S 2, R 1, S 3, R 2, R 3 |
# | 1 | R 0, S 0, R 1, S 1, R 2, S 2, R 3, S 3 |
# | 2 | R 0, S 0, R 1, S 1, R 2, S 2, R 3, S 3 |
#
# What is shared, and how; `costs` has the cost of each layer, `head` that of the head, `speeds` the
# speed of each rank:
#
# - Rank 0 gets the first layers, rank 1 the next, and so on; each gets at least one. `share`
#   returns the number of layers of each rank.
# - A rank's time is the cost of its layers over its speed. The last rank computes the head besides.
# - The largest of these times is as small as can be. If several cuts have the same largest time, it
#   is that with the fewest layers on rank 0, among these on rank 1, and so on. Times are compared
#   exactly. There are at most 14 layers.
#
# What is exchanged; job `s * k + b` is step `s` of micro-batch `b`:
#
# - Every rank computes the jobs in the order of their numbers. Rank 0 sends an array [width] to
#   rank 1, and so on; the last rank sends an array [1] with the token's number to rank 0. The table
#   may have thousands of rows.
# - A rank other than 0 receives a job, computes it and sends it before it receives the next.
# - With `n` ranks, before rank 0 sends job `j` it has received the tokens of all jobs up to `j -
#   min(k, n - 1)`, and no others: it waits for a token if it needs it for this job, or if every
#   other rank is busy with a job. What is missing at the end it receives behind its last job.
# - A single rank sends nothing. `work` asks for `Send` and `Receive` alone.
#
# What comes out:
#
# - Rank 0 begins with row `token` of `table` [tokens, width]: in step 0 that of the micro-batch's
#   number in `tokens`, later that of its latest token. A stage turns `x` into `tanh(x @ layer)`.
#   The last one's token is the row of `table` whose product with the result is largest, among
#   equals the smallest number.
# - Rank 0 returns for each micro-batch the list of its `steps` tokens, as whole numbers. The other
#   ranks return None, and do not look at what `tokens` holds but at how many there are.
#
# At the edges:
#
# - `share` refuses with `ValueError` fewer layers than ranks.
# - There may be more micro-batches than ranks, or a single one. There is at least one step.
# ### END VARIANT
#
# ### BEGIN VARIANT experts
# *Section of the chapter:* *Several machines*, on its second page.
# ### END VARIANT
# ### BEGIN VARIANT ring
# *Section of the chapter:* *Parts of a softmax*, on its second page.
# ### END VARIANT
# ### BEGIN VARIANT pipeline
# *Section of the chapter:* *Stages*, on its second page.
# ### END VARIANT
#
# *Deliverable:* `share` and `work`; their check passes.


# %% task="spread"
# task: spread
### BEGIN VARIANT experts
from fractions import Fraction


def share(loads: np.ndarray, slots: list[int]) -> Generator:
    """Return the table: for each rank the experts in its slots; loads is [experts]."""
    ### BEGIN SOLUTION
    if sum(slots) < len(loads):
        raise ValueError(f"{sum(slots)} slots for {len(loads)} experts")
    total = (yield AllReduce(loads)).tolist()
    experts, ranks = range(len(total)), [r for r, count in enumerate(slots) if count > 0]
    copies = [1] * len(total)
    for _ in range(sum(slots) - len(total)):
        open_ = [e for e in experts if copies[e] < len(ranks)]
        if open_:
            copies[max(open_, key=lambda e: (Fraction(total[e], copies[e]), -e))] += 1
    table, load = [[] for _ in slots], [Fraction(0)] * len(slots)
    shares = [(-Fraction(total[e], copies[e]), e) for e in experts for _ in range(copies[e])]
    for minus, expert in sorted(shares):
        free = [r for r in ranks if len(table[r]) < slots[r]]
        free = [r for r in free if expert not in table[r]] or free
        rank = min(free, key=lambda r: (load[r] / slots[r], r))
        table[rank].append(expert)
        load[rank] -= minus
    return table
    ### END SOLUTION


def work(table: list[list[int]], tokens: list[list[int]]) -> list[list[list[list[int]]]]:
    """Return for each rank and slot the tokens [request, position] that it serves."""
    ### BEGIN SOLUTION
    served, places, count = [[[] for _ in own] for own in table], {}, {}
    for rank, own in enumerate(table):
        for slot, expert in enumerate(own):
            places.setdefault(expert, []).append(served[rank][slot])
    for request, position, expert in sorted(tokens):
        number = count[expert] = count.get(expert, -1) + 1
        places[expert][number % len(places[expert])].append([request, position])
    return served
    ### END SOLUTION


### END VARIANT
### BEGIN VARIANT ring
def share(total: int, ratio: list[int]) -> list[np.ndarray]:
    """Return for each rank its positions, in ascending order."""
    ### BEGIN SOLUTION
    chunks = [np.arange(b, b + size) for b, size in split(total, [*ratio, *ratio[::-1]])]
    return [np.concatenate([chunks[r], chunks[-1 - r]]) for r in range(len(ratio))]
    ### END SOLUTION


def work(
    rank: int, counts: list[int], q: np.ndarray, k: np.ndarray, v: np.ndarray, positions: np.ndarray
) -> Generator:
    """Return `out` [tokens, width] and `lse` [tokens]; q, k and v are [tokens, width]."""
    ### BEGIN SOLUTION
    n, width = len(counts), q.shape[1]
    block, lses, outs = np.concatenate([positions[:, None], k, v], 1), [], []
    for step in range(n):
        seen, keys, values = block[:, 0], block[:, 1 : 1 + width], block[:, 1 + width :]
        sees = (seen <= positions[:, None]) & (seen >= 0) & (positions[:, None] >= 0)
        scores = np.where(sees, q @ keys.T / np.sqrt(width), -np.inf)
        most = scores.max(1, initial=-np.inf)
        most[np.isinf(most)] = 0
        weights = np.exp(scores - most[:, None])
        sums = weights.sum(1)
        values = np.where((seen >= 0)[:, None], values, 0)
        outs.append(weights @ values / np.where(sums > 0, sums, 1)[:, None])
        with np.errstate(divide="ignore"):
            lses.append(most + np.log(sums))
        if step < n - 1:
            own, theirs = counts[(rank + step) % n], counts[(rank + step + 1) % n]
            sent, block = block, np.zeros((0, 1 + 2 * width))
            for is_sending in (rank % 2 == 0, rank % 2 == 1):
                if is_sending and own > 0:
                    yield Send((rank - 1) % n, sent)
                elif not is_sending and theirs > 0:
                    block = yield Receive((rank + 1) % n, (theirs, 1 + 2 * width))
    most = np.max(lses, 0)
    most[np.isinf(most)] = 0
    weights = np.exp(np.array(lses) - most)
    sums = weights.sum(0)
    out = (weights[:, :, None] * np.array(outs)).sum(0) / np.where(sums > 0, sums, 1)[:, None]
    with np.errstate(divide="ignore"):
        return {"out": out, "lse": most + np.log(sums)}
    ### END SOLUTION


### END VARIANT
### BEGIN VARIANT pipeline
from fractions import Fraction
from itertools import combinations, pairwise


def share(costs: list[int], head: int, speeds: list[int]) -> list[int]:
    """Return the number of layers of each rank."""
    ### BEGIN SOLUTION
    layers, ranks = len(costs), len(speeds)
    if layers < ranks:
        raise ValueError(f"{layers} layers for {ranks} ranks")

    def slowest(ends):
        ends = [0, *ends, layers]
        work = [sum(costs[a:b]) for a, b in pairwise(ends)]
        work[-1] += head
        return max(map(Fraction, work, speeds))

    ends = [0, *min(combinations(range(1, layers), ranks - 1), key=slowest), layers]
    return [b - a for a, b in pairwise(ends)]
    ### END SOLUTION


def work(
    rank: int, size: int, layer: np.ndarray, table: np.ndarray, tokens: list[int], steps: int
) -> Generator:
    """Return the tokens of each micro-batch on rank 0; layer is [width, width]."""
    ### BEGIN SOLUTION
    k, width, said = len(tokens), table.shape[1], []  # tokens said, by job

    def computed(x):
        x = np.tanh(x @ layer)
        return np.array([np.argmax(table @ x)]) if rank == size - 1 else x

    for job in range(k * steps):
        if rank == 0:
            while len(said) <= job - min(k, size - 1) and size > 1:
                said.append((yield Receive(size - 1, (1,))))
            x = table[tokens[job] if job < k else int(said[job - k][0])]
        else:
            x = yield Receive(rank - 1, (width,))
        x = computed(x)
        if size > 1:
            yield Send((rank + 1) % size, x)
        else:
            said.append(x)
    if rank > 0:
        return None
    while len(said) < k * steps:
        said.append((yield Receive(size - 1, (1,))))
    return [[int(one[0]) for one in said[batch::k]] for batch in range(k)]
    ### END SOLUTION


### END VARIANT

# %% check="spread"
labkit.check("spread")

# %% [markdown]
# ## Task 5: unequal ranks in quire (core, 10 + 5 points)
#
# Each half of a layer ends in a product whose inputs lie on different ranks, so what a rank has is
# one term of a sum. Wrong sums are hard to see: a decoder that takes the mean in place of the sum
# may say the same tokens, since the norms behind it forgive a factor. So the tests look at what
# each rank gives to the sum.
#
# **Specification.** All three are generators that run on every rank with what that rank has.
# `project` returns a product whose inputs are shared, `norm` an RMS norm over numbers that are
# shared, and `pick` the token of the largest logit where the vocabulary is shared.
#
# - `project` gets `x` of the shape [tokens, own inputs], `weight` [outputs, own inputs], as `cut`
#   gives it, and `bias` [outputs] or None. It returns [tokens, outputs], on all ranks the same.
# - It asks for an `AllReduce` of an array [tokens, outputs]: the rank's own term of the sum. The
#   bias is added once, to the sum. Some numbers of a bias may be 0.
# - `norm` gets `x` [tokens, own numbers], `weight` [own numbers], the `width` of all ranks' numbers
#   together, and `eps`. It returns the rank's own numbers of `x / sqrt(mean + eps) * weight`, where
#   `mean` is the mean square; the mean is that over all ranks' numbers.
# - `norm` asks for an `AllReduce` of one number a token, of the shape [tokens].
# - `pick` gets `logits` [tokens, own vocabulary] and `begin`, the number of the rank's first token
#   of the vocabulary. It returns a list with a whole number for each token: where in the whole
#   vocabulary the largest logit stands.
# - Of equal logits that of
# ### BEGIN VARIANT experts pipeline
#   the smaller number is taken, on whatever rank it is.
# ### END VARIANT
# ### BEGIN VARIANT ring
#   the larger number is taken, on whatever rank it is.
# ### END VARIANT
# - Logits are compared as they are, in float64, however close they are. They may be -∞, and in a
#   row all may. The parts of the vocabulary may lie on the ranks in any order.
# - `pick` asks for one `AllGather`. A rank gives at most two numbers a row to the others, in lists,
#   not its logits. What a rank without a part of the vocabulary gives is up to you; it may be
#   nothing.
# - A rank may have no inputs, no numbers or no part of the vocabulary. It takes part all the same.
#
# Two ranks with the logits `1 5` and `4 5 2` of one token, the second of which begins at 2: both
# return
# ### BEGIN VARIANT experts pipeline
# `[1]`.
# ### END VARIANT
# ### BEGIN VARIANT ring
# `[3]`.
# ### END VARIANT
#
# `project` ends each half of a layer of quire below. Your own `cut` and `all_reduce` run here, so a
# fault of tasks 1 and 2 shows here, too.
#
# *Sections of the chapter:* *Columns, then rows*, *Your engine so far*.
#
# *Deliverable:* `project`, `norm` and `pick`, and the measurement below with its written answer.


# %% task="engine"
# task: engine


def project(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> Generator:
    """Return [tokens, outputs]; x is [tokens, own inputs], weight [outputs, own inputs]."""
    ### BEGIN SOLUTION
    total = yield AllReduce(x @ weight.T)
    return total if bias is None else total + bias
    ### END SOLUTION


def norm(x: np.ndarray, weight: np.ndarray, width: int, eps: float) -> Generator:
    """Return [tokens, own numbers]; `width` is that of all ranks together."""
    ### BEGIN SOLUTION
    squares = yield AllReduce((x**2).sum(1))
    return x / np.sqrt(squares[:, None] / width + eps) * weight
    ### END SOLUTION


def pick(logits: np.ndarray, begin: int) -> Generator:
    """Return for each token the number of its largest logit in the whole vocabulary."""
    ### BEGIN SOLUTION
    ### BEGIN VARIANT experts pipeline
    best = [int(row.argmax()) for row in logits if row.size > 0]
    ### END VARIANT
    ### BEGIN VARIANT ring
    best = [row.size - 1 - int(row[::-1].argmax()) for row in logits if row.size > 0]
    ### END VARIANT
    own = [[float(logits[t, place]), begin + place] for t, place in enumerate(best)]
    everyone = yield AllGather(own)
    rows = zip(*(one for one in everyone if one), strict=True)
    ### BEGIN VARIANT experts pipeline
    return [max(row, key=lambda pair: (pair[0], -pair[1]))[1] for row in rows]
    ### END VARIANT
    ### BEGIN VARIANT ring
    return [max(row)[1] for row in rows]
    ### END VARIANT
    ### END SOLUTION


# %% check="engine"
labkit.check("engine")

# %% [markdown]
# ### In the engine
#
# Each of three ranks is a quire of its own. Its checkpoint is what your `cut` keeps of quire-mini,
# and its `config.json` has as many heads and columns as that: to quire it is a small model. The
# ranks of the ratio `5 2 2` have 2, 1 and 1 heads. Below, your `project` ends each half of a layer,
# and your `pick` chooses tokens. quire's `Lockstep` is the network: it lets one rank run at a time,
# and names what does not fit together. Your `all_reduce` makes the sums there. The embedding is
# whole on each rank.
#
# quire wants every KV head of a rank to be read by equally many of its query heads. Where yours are
# not, the cell stores one copy for each query head. It asserts that the tokens are those of one
# whole quire-mini, and prints the largest difference between a sum and the product with the whole
# weight. It takes about 10 seconds, and so does the next one.

# %%
import json
import shutil
import tempfile
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

warnings.filterwarnings("ignore", message="IProgress not found")  # no widgets

from quire import LLM, Components, SamplingParams
from quire.models.loader import resolve_checkpoint
from quire.parallel.lockstep import Lockstep
from quire.quantization.unquantized import Unquantized
from quire.sampling.sampler import SamplerOutput

RATIO = [5, 2, 2]
PROMPTS = ["def add(a, b):\n", "class Stack:\n    def push(", "import os\n\n\nfor name in "]
torch.set_num_threads(1)  # small products: threads would wait for one another
source = resolve_checkpoint("quire-mini")
config = json.loads((source / "config.json").read_text("utf8"))
tensors = {name: one.double().numpy() for name, one in
           load_file(source / "model.safetensors").items()}  # fmt: skip
MODEL = {
    "hidden": config["hidden_size"], "heads": config["num_attention_heads"],
    "kv_heads": config["num_key_value_heads"], "head_size": config["head_dim"],
    "ffn": config["intermediate_size"], "vocab": config["vocab_size"],
}  # fmt: skip


def fused(layer):
    """The weights of a layer as task 1 has them."""
    q, k, v, gate, up = (
        tensors[f"model.layers.{layer}.{name}_proj.weight"]
        for name in ("self_attn.q", "self_attn.k", "self_attn.v", "mlp.gate", "mlp.up")
    )
    ### BEGIN VARIANT experts
    gate_up = np.concatenate([gate, up])
    ### END VARIANT
    ### BEGIN VARIANT ring
    gate_up = np.stack([gate, up], 1).reshape(-1, MODEL["hidden"])
    ### END VARIANT
    ### BEGIN VARIANT pipeline
    gate_up = np.concatenate([up, gate])
    ### END VARIANT
    return {
        "qkv_proj": np.concatenate([q, k, v]), "gate_up_proj": gate_up,
        "o_proj": tensors[f"model.layers.{layer}.self_attn.o_proj.weight"],
        "down_proj": tensors[f"model.layers.{layer}.mlp.down_proj.weight"],
    }  # fmt: skip


def write_rank(folder, shard):
    """Write what a rank keeps as a checkpoint of its own."""
    heads, size, ffn = shard["heads"][1], MODEL["head_size"], shard["ffn"][1]
    kept, reads = dict(tensors), shard["kv_of"]
    is_even = reads == [i * len(shard["kv"]) // heads for i in range(heads)]
    places = list(range(len(shard["kv"]))) if is_even else reads
    for layer in range(config["num_hidden_layers"]):
        own = {name: cut(name, one, MODEL, shard) for name, one in fused(layer).items()}
        stacked = own["qkv_proj"].reshape(-1, size, MODEL["hidden"])
        q, k, v = np.split(stacked, [heads, heads + len(shard["kv"])])
        parts = {
            "self_attn.q": q, "self_attn.k": k[places], "self_attn.v": v[places],
            "self_attn.o": own["o_proj"], "mlp.down": own["down_proj"],
            "mlp.gate": own["gate_up_proj"][:ffn], "mlp.up": own["gate_up_proj"][ffn:],
        }  # fmt: skip
        for name, one in parts.items():
            flat = one.reshape(-1, one.shape[-1])
            kept[f"model.layers.{layer}.{name}_proj.weight"] = flat
    shutil.copytree(source, folder, dirs_exist_ok=True)
    local = {"num_attention_heads": heads, "num_key_value_heads": len(places)}
    (folder / "config.json").write_text(json.dumps(config | local | {"intermediate_size": ffn}))
    save_file(
        {name: torch.from_numpy(np.ascontiguousarray(one)).float() for name, one in kept.items()},
        folder / "model.safetensors",
    )


class Served:
    """One rank's end of the network: grants the wishes of your generators."""

    def __init__(self, world, rank, proportion):
        self.comm, self.rank, self.proportion = world.comm(rank), rank, proportion
        self.sent = {}  # bytes, by what was asked for; a number would take 4 bytes

    def let(self, generator, name):
        """Run a generator to its end."""
        answer = None
        while True:
            try:
                wish = generator.send(answer)
            except StopIteration as end:
                return end.value
            if isinstance(wish, Send):
                self.sent[name] = self.sent.get(name, 0) + 4 * wish.x.size
                answer = self.comm.send(torch.from_numpy(wish.x), wish.to)
            elif isinstance(wish, Receive):
                like = torch.empty(wish.shape, dtype=torch.float64)
                answer = self.comm.receive(like, wish.source).numpy()
            elif isinstance(wish, AllReduce):
                parts = [size for _, size in split(wish.x.size, self.proportion)]
                flat = self.let(all_reduce(self.rank, wish.x.reshape(-1), parts), name)
                answer = flat.reshape(wish.x.shape)
            else:
                rows = np.array(wish.value, np.float64).reshape(-1, 2)
                self.sent[name] = self.sent.get(name, 0) + 8 * len(rows) * (self.comm.size - 1)
                found = self.comm.all_gather(torch.from_numpy(rows), dim=0)
                answer = [part.tolist() for part in found.chunk(self.comm.size)]


class Ending(Unquantized):
    """Lets `project` end each half of a layer, and notes the sums that come out."""

    def __init__(self, served, sums, names):
        self.served, self.sums, self.name = served, sums, names[0]

    def apply(self, layer, x):
        if not self.name.endswith(("o_proj", "down_proj")):
            return super().apply(layer, x)
        if self.served is None:
            total = super().apply(layer, x)
        else:
            weight = layer.weight.double().numpy()
            total = self.served.let(project(x.double().numpy(), weight, None), "sums")
            total = torch.from_numpy(total).to(x.dtype)
        self.sums.append(total)
        return total


class Picking:
    """A sampler that looks at the rank's own part of the vocabulary."""

    def __init__(self, served, part):
        self.served, self.part = served, part

    def __call__(self, logits, sampling, drafts=None):
        begin, size = self.part
        own = logits[:, begin : begin + size].double().numpy()
        found = self.served.let(pick(own, begin), "tokens")
        return SamplerOutput(torch.tensor([[int(token)] for token in found]))


def engine(folder, **components):
    """quire from a folder."""
    return LLM(
        folder, device="cpu", dtype="float32", max_model_len=128, max_num_seqs=4, num_blocks=64,
        enable_prefix_caching=False, components=Components(**components),
    )  # fmt: skip


def tokens_of(llm):
    """Greedy tokens of the prompts."""
    params = SamplingParams(max_tokens=16, temperature=0, ignore_eos=True)
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def on_ranks(ratio, proportion):
    """Tokens, sums and ends of the network of ranks of a ratio."""
    world, kept = Lockstep(len(ratio)), shards(MODEL, ratio)
    ends = [Served(world, rank, proportion) for rank in range(len(ratio))]
    sums = [[] for _ in ratio]
    with tempfile.TemporaryDirectory() as folder:
        engines = []
        for rank, shard in enumerate(kept):
            write_rank(Path(folder) / str(rank), shard)
            method = partial(Ending, ends[rank], sums[rank])
            sampler = partial(Picking, ends[rank], shard["vocab"])
            engines.append(engine(Path(folder) / str(rank), quant_method=method, sampler=sampler))
        return world.run([partial(tokens_of, one) for one in engines]), sums, ends


whole_sums = []
whole = tokens_of(engine("quire-mini", quant_method=partial(Ending, None, whole_sums)))
found, sums, ends = on_ranks(RATIO, RATIO)
for rank in range(len(RATIO)):
    off = max((a - b).abs().max() for a, b in zip(sums[rank], whole_sums, strict=True))
    print(f"rank {rank}: {len(sums[rank])} sums, largest difference {off:.1e}")
    assert found[rank] == whole
    assert off < 1e-3
print("the tokens of three unequal ranks are those of quire-mini")

# %% [markdown]
# ### Measure
#
# **Bytes.** The same sums once more, with parts of three proportions: even ones, parts in the ratio
# of the ranks, and everything in the part of rank 0. `sums` is what a rank sends for the sums of
# the whole run, and `tokens` what it sends to choose tokens, at 4 bytes a number.
#
# **Idle.** On a GPU a step of decoding takes about as long as its weights take to be read. So the
# cell counts the weights that a rank keeps and divides them by its speed; the speeds are 5, 2 and
# 2. At the end of each half layer all ranks wait for the slowest. `step` is the time of all layers,
# in percent of what rank 0 alone would need with all weights; a rank is `idle` for the rest of the
# step. Nothing is said here of the time that a sum takes.
#
# ### BEGIN VARIANT experts
# **Experts.** 128 experts whose loads fall like 1, 1/2, 1/3, …, on ranks with so many slots.
# `fullest` is the largest load a slot of a rank, over the mean of all slots. `neighbours` gives
# each rank a run of experts and no replicas.
# ### END VARIANT
# ### BEGIN VARIANT ring
# **Ring.** 4,096 positions on four ranks. `fullest` is the number of pairs of query and key of the
# rank that has most, over the mean; `neighbours` cuts the sequence into runs.
# ### END VARIANT
# ### BEGIN VARIANT pipeline
# **Pipeline.** The layers of quire-mini in the cut of your `share`, on ranks of the same speeds.
# The order is that of your `work`, a message takes no time, and `a token` is the time for each
# token, in percent of what rank 0 alone would need.
# ### END VARIANT

# %%
heads = [f"{f'rank {rank} sums':>14}{'tokens':>8}" for rank in range(3)]
print(f"{'parts':10}" + "".join(heads))
for proportion in ([1, 1, 1], RATIO, [1, 0, 0]):
    _, _, ends = on_ranks(RATIO, proportion)
    row = "".join(f"{end.sent.get('sums', 0):14,}{end.sent['tokens']:8,}" for end in ends)
    print(f"{proportion!s:10}{row}")
print(f"\nnumbers in the `x` of all sums together: {sum(one.numel() for one in whole_sums):,}")
print("tokens of the vocabulary on the ranks:", *(size for _, size in split(MODEL["vocab"], RATIO)))


def halves(ratio):
    """Weights of attention and of the MLP that each rank keeps of a layer."""
    size, hidden = MODEL["head_size"], MODEL["hidden"]
    return [
        (2 * hidden * size * (shard["heads"][1] + len(shard["kv"])), 3 * hidden * shard["ffn"][1])
        for shard in shards(MODEL, ratio)
    ]


SPEEDS = [5, 2, 2]
(alone,) = halves([1])
alone = sum(alone) / SPEEDS[0]
print("\nratio      step    idle: rank 0  rank 1  rank 2  in attention: rank 0  rank 1  rank 2")
for ratio in ([1, 1, 1], [5, 2, 2], [4, 1, 1], [8, 1, 1]):
    pairs_of = zip(halves(ratio), SPEEDS, strict=True)
    times = [[one / speed for one in half] for half, speed in pairs_of]
    slowest = [max(rank[half] for rank in times) for half in (0, 1)]
    idle = [100 * (1 - sum(rank) / sum(slowest)) for rank in times]
    first = [100 * (1 - rank[0] / slowest[0]) for rank in times]
    shown = ["".join(f"{one:7.0f}%" for one in row) for row in (idle, first)]
    step = 100 * sum(slowest) / alone
    print(f"{ratio!s:10}{step:5.0f}%{shown[0]:>34}{shown[1]:>38}")

### BEGIN VARIANT experts
loads = (100_000 / np.arange(1, 129)).astype(np.int64)
print("\nslots on the ranks         neighbours  fullest of `share`")
for slots in ([32] * 4, [33] * 4, [16] * 8, [17] * 8, [18] * 8, [64, 32, 16, 16], [66, 33, 17, 17]):
    tables, _ = run("share", [(loads * (rank == 0), slots) for rank in range(len(slots))])
    copies = np.bincount([expert for own in tables[0] for expert in own])
    served = [sum(loads[e] / copies[e] for e in own) for own in tables[0]]
    runs = [loads[b : b + size].sum() for b, size in split(128, slots)]
    rows = [max(np.array(one) / slots) * sum(slots) / loads.sum() for one in (runs, served)]
    words = f"{len(slots)} x {slots[0]}" if len(set(slots)) == 1 else str(slots)
    print(f"{words:25}" + "".join(f"{one:12.3f}" for one in rows))
### END VARIANT
### BEGIN VARIANT ring


def pairs(positions):
    """How many keys the queries of a rank see."""
    return int((np.asarray(positions) + 1).sum())


print("\nratio of ranks      fullest of `share`  of neighbours")
for ratio in ([1, 1, 1, 1], [5, 2, 2, 1]):
    weight = np.array(ratio) / sum(ratio)
    kept = [np.array([pairs(own) for own in share(4096, ratio)]) / weight]
    kept.append(np.array([pairs(range(b, b + s)) for b, s in split(4096, ratio)]) / weight)
    rows = "".join(f"{one.max() / one.mean():20.3f}" for one in kept)
    print(f"{ratio!s:16}{rows}")
q, k, v = np.random.default_rng(0).normal(size=(3, 4096, 16))
parts = share(4096, [5, 2, 2, 1])
_, events = run("work", [(r, [len(p) for p in parts], q[p], k[p], v[p], p)
                         for r, p in enumerate(parts)])  # fmt: skip
sent = [sum(4 * x.size for _, source, _, x in events if source == rank) for rank in range(4)]
print("bytes that the ranks send:", ", ".join(f"{one:,}" for one in sent))
### END VARIANT
### BEGIN VARIANT pipeline
layer = sum(sum(half) for half in halves([1]))
head = MODEL["vocab"] * MODEL["hidden"]
print("\nspeeds      layers        in flight  a token  idle: rank 0  rank 1  rank 2")
for speeds in ([1, 1, 1], SPEEDS):
    layers = share([layer] * config["num_hidden_layers"], head, speeds)
    costs = [(count * layer + head * (rank == 2)) / speeds[rank]
             for rank, count in enumerate(layers)]  # fmt: skip
    whole_cost = (8 * layer + head) / speeds[0]
    for k in (1, 2, 3, 4):
        steps, width = 24, 4
        calls = [(r, 3, np.eye(width), np.eye(width), [0] * k, steps) for r in range(3)]
        clock = [0.0, 0.0, 0.0]
        for _, sender, receiver, _ in run("work", calls)[1]:
            if sender > 0 or k < 3:  # with 3 in flight rank 0 computes before it waits
                clock[sender] += costs[sender]
            clock[sender] = clock[receiver] = max(clock[sender], clock[receiver])
            if sender == 0 and k >= 3:
                clock[0] += costs[0]
        jobs, total = k * steps, max(clock)
        idle = "".join(f"{100 * (1 - jobs * cost / total):8.0f}%" for cost in costs)
        a_token = 100 * total / jobs / whole_cost
        print(f"{speeds!s:11} {layers!s:13} {k:9} {a_token:8.0f}%{idle:>29}")
### END VARIANT

# %% [markdown]
# Explain what you measured, in six to ten sentences with your numbers.
#
# 1. With even parts, how many numbers does a rank send for each number of an `x`? (Divide its bytes
#    by 4 and by the numbers of all `x`.) Why is it the same on all ranks, and why does it hardly
#    depend on the proportion of the parts? What changes with all in one part?
# 2. How many bytes do the tokens cost a rank, and how many would it be if each rank sent its
#    logits, in 4 bytes each, to both others for each of the 48 tokens?
# 3. How long is a step with the ratios `1 1 1` and `5 2 2`? Who is idle, and for how much of it?
# 4. Why is somebody idle even where the ratio is that of the speeds? What would you change, in the
#    model or in the cut?
# ### BEGIN VARIANT experts
# 5. What do your replicas buy at 8 ranks, and what do they cost? From which number of spare slots
#    on would you stop?
# ### END VARIANT
# ### BEGIN VARIANT ring
# 5. What does the order of your `share` buy against runs of neighbours, at equal and at unequal
#    ranks? Which rank sends the fewest bytes, and why?
# ### END VARIANT
# ### BEGIN VARIANT pipeline
# 5. From which number of micro-batches in flight on does one more change nothing, and why? Does a
#    pipeline shorten the time until the next token of a request?
# ### END VARIANT

# %% [markdown] written="explain"
# <!-- written: explain -->
# ### BEGIN SOLUTION
# With even parts a rank sends 1.46 MB for the sums. That is 4/3 numbers for each number of an `x`:
# a rank has four steps and sends a third of `x` in each, so all ranks send the same. With parts of
# 5 : 2 : 2 rank 0 sends 1.71 MB and the others 1.34 MB, and with everything in one part 2.20 MB and
# 1.10 MB: a rank leaves out one part in each of the two rounds, so only the sizes of these parts
# count, and the three ranks together always send 4.39 MB. But with one part nobody adds anything up
# while another rank does: the whole `x` goes round alone. The tokens cost a rank 768 bytes, two
# numbers of 4 bytes for each of 48 rows to two ranks; rank 0's logits, 2,276 a row, would be 874
# KB. With `1 1 1` a step takes 83 % of what rank 0 needs alone, and rank 0 is idle for 56 % of it;
# with `5 2 2` it takes 61 % and rank 0 is idle for 11 %. The speeds together would allow 5/9, 56 %.
# The rest is lost in attention: four heads become 2, 1 and 1, which is 40 % idle time for rank 0
# there, while the MLP's 1,024 columns can be cut as the speeds are. More columns of the MLP for
# rank 0 would not mend that, since all wait at the end of each half; a model with more and smaller
# heads would. My replicas bring the fullest of 8 ranks from 4.98 (neighbours) and 1.66 (packed, no
# spare slot) down to 1.00 with one spare slot a rank, which is 6 % more memory for experts; a
# second one buys nothing, so I would stop at one.
# ### END SOLUTION

# %% [markdown]
# ## Task 6: a sum in one shot (frontier, a GPU, bonus)
#
# The sums of a decode step are small, so their number of bytes hardly counts (*What a sum costs* in
# the chapter). In one shot a rank reads the terms of all ranks and adds them up itself. Then it has
# the sum in registers, where it can add the residual and normalise before it writes anything.
#
# **Specification.** The Triton kernel `one_shot` gets the terms of four ranks, `term_0` to
# `term_3`, and `residual`, all fp16 [tokens, width], and `weight`, fp16 [width]. It writes `stream`
# and `normed`, fp16 [tokens, width], and nothing else. All arrays are contiguous.
#
# - `stream` is the sum in float32 of `residual`, `term_3`, `term_2`, `term_1` and `term_0`, added
#   up in this order, which is not quire's, and rounded to fp16 once. Its bits are judged: every
#   rank makes this sum by itself, and all must get the same.
# - `normed` is `x / sqrt(mean + 1e-6) * weight`. Here `x` is that sum, before or after it is
#   rounded, and `mean` is the mean of its squares over the token's row.
# - `width` is a power of two; `tokens` is any number above 0.
# - The kernel may take any of these eight pointers and `tokens` by name, in any order. `launch`
#   gives the grid, a value for each other parameter (`constants`), `num_warps` and `num_stages`.
#
# Your instructor compiles it without a GPU and runs the result on fresh inputs of 1,021 tokens and
# a width of 4,096. That is more than a decode step has; so few tokens would take too little time to
# be told apart. The bonus is 10 points times its share of the reference kernel's speed, at most 10,
# and nothing below half of that speed or if one number of one call is wrong. All terms lie in the
# memory of one GPU and are there before the kernel starts. So neither the link is judged nor the
# meeting of the ranks before they read.
#
# In a clone of the repository `python labs/parallelism/kernel.py NOTEBOOK --interpreted` says
# whether a saved notebook's kernel is right, without a GPU; without `--interpreted` it says what it
# earns on yours.
#
# *Deliverable:* kernel and `launch` in the cell with the line `# frontier: kernel`, without
# helpers from other cells; `labkit.submit` hands it in, too. Your instructor judges it with
# `kernel.py` of this lab's folder. Triton comes with torch on Linux; where it is not installed the
# cell defines no kernel, and all cells run.

# %%
# frontier: kernel
import importlib.util

if importlib.util.find_spec("triton") is not None:
    import triton
    import triton.language as tl

    @triton.jit
    def one_shot(term_0, term_1, term_2, term_3, residual, weight, stream, normed):
        """Begin here; with one program a token, say, whose number is this."""
        tl.program_id(0)


def launch(tokens: int, width: int) -> dict[str, object]:
    """Return the dict `{"grid": (…,), "constants": {…}, "num_warps": …, "num_stages": …}`."""
    raise NotImplementedError("write launch")
