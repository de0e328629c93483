# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Lab: a paged KV cache with quotas
#
# You write the part of an engine that decides where keys and values lie: a pool of blocks, names
# by which a block is found again, tables that share blocks and copy them on write; then your cache
# serves quire. Chapter: *The paged KV cache*. 100 points, 70 core and 30 depth, all on a CPU,
# about five and a half hours; two frontier tasks after that.
#
# | task | tier | points | minutes |
# |---|---|---|---|
# | 1. `pool` | core | 25 | 80 |
# | 2. `names` | core | 15 | 40 |
# | 3. `tables` | depth | 30 | 120 |
# | 4. `engine`, with a written answer | core | 25 + 5 | 90 |
# | 5. an eviction policy | frontier | bonus, up to 10 | open |
# | 6. a cache-write kernel, on a GPU | frontier | bonus, up to 10 | open |
#
# Each task is one cell. Keep its `# task:` line: grading takes that cell and nothing else, so
# helpers of yours belong inside it, and it may import the standard library. Task 4 builds on tasks
# 1 and 2 and not on task 3. The behaviour asked for differs from quire's on purpose; the sentences
# that say how are the ones the hidden tests judge. What is not said here is not tested.

# %%
import importlib.util

if importlib.util.find_spec("labkit") is None:
    # In Colab; torch is there already and stays as it is.
    get_ipython().run_line_magic("pip", "install -q 'quire[labs] @ git+{{repository}}'")

import labkit

LAB = "{{lab}}"  # which lab this is, and which variant

# %% [markdown]
# ## Help that every task may use
#
# Run this cell; grading puts the same one before yours.


# %% given="tools"
# {{given}}

# %% [markdown]
# ## Task 1: a pool with quotas (core, 25 points)
#
# quire gives out the block that has been free longest, whatever it holds. So a client that sends
# many long prompts once flushes the cache of one that comes back with the same prompt every
# minute. The pool here keeps what is used often, and no client may keep more than its quota.
#
# **Specification.** A `BlockPool` counts the references of the blocks 1 to `num_blocks - 1`, gives
# out those that have none, and finds a block again by its name. A block is free while it has no
# reference, and all blocks are free at first.
#
# A trace of `BlockPool(5, 1)`, in which `ada` pays for every name and may keep one. A free block
# that has a name is shown with it and with its uses.
#
# | call | returns | held | free |
# |---|---|---|---|
# | `allocate(3)` | `[1, 2, 3]` | 1, 2, 3 | 4 |
# | `publish(1, b"x", "ada")` | `None` | 1, 2, 3 | 4 |
# | `publish(2, b"y", "ada")` | `None` | 1, 2, 3 | 4 |
# | `release([3, 1])` | `None` | 2 | 1 (x, 0 uses), 3, 4 |
# | `acquire([1, 1])` | `None` | 1 twice, 2 | 3, 4 |
# | `release([1, 1, 2])` | `None` | | 1 (x, 2 uses), 2, 3, 4 |
# | `allocate(4)` | `[2, 3, 4, 1]` | 1, 2, 3, 4 | |
#
# In the sixth call 2 becomes free while 1 is free, too, so one of the two must lose its name: 2,
# which has fewer uses. In the last call those without a name go first; then 1 loses its name, too.
#
# - `allocate` gives each of `count` free blocks one reference and returns them in the order in
#   which it takes them: first those without a name, the smallest id first, then those with the
#   fewest uses, among equals the one that has been free longest, counted from when it last became
#   free.
# - A block that `allocate` gives out loses its name, and with the name its uses and its client.
# - If there are too few free blocks, `allocate` raises `NoFreeBlocks` and takes none.
# - `acquire` adds a reference to each of `blocks`, free or not; a list may name a block twice: two
#   references.
# - A block that is free and has no name cannot be acquired, since nobody knows what it holds. One
#   that is held can, with a name or without.
# - A *use* of a block is an `acquire` of it since it got its name, twice in a list two uses.
#   Neither `publish` nor `lookup` is one.
# - `release` drops one reference of each of `blocks`, in this order; a list may name a block as
#   often as it has references. A block is free from where its last reference is dropped, and keeps
#   its name.
# - A client has at most `quota` free blocks with a name. When a block becomes free and makes them
#   more, in the middle of a list or at its end, the one that `allocate` would take first among them
#   loses its name, whichever that is, and stays free.
# - `publish` names a block that has a reference, for the client that pays for it. If the name is
#   taken, or the block has a name already, nothing changes. A name is never empty.
# - `lookup` returns the block of a name, free or not, or `None`. `references` and `name` say what a
#   block of the pool has, `num_free` how many blocks are free.
# - `acquire`, `release` and `publish` raise `ValueError` when one of their blocks does not allow
#   it: an id outside the pool; for `acquire` a free block without a name; for `release` fewer
#   references than the list names; for `publish` no reference, even if the name is taken. Then
#   nothing has changed.
#
# *Sections of the chapter:* *A pool that knows no requests*, *Who is forgotten*.
#
# *Deliverable:* `BlockPool`; its check passes.


# %% task="pool"
# task: pool
from collections import Counter


class BlockPool:
    """Which blocks are held, free, and found again by name."""

    def __init__(self, num_blocks: int, quota: int) -> None:
        """Manage the blocks 1 to num_blocks - 1; quota is in blocks a client."""
        ### BEGIN SOLUTION
        self._quota = quota
        self._references = dict.fromkeys(range(1, num_blocks), 0)
        self._free = dict.fromkeys(self._references)  # the longest free first
        self._blocks = {}  # block by name
        self._labels = {}  # name, client and uses by block
        ### END SOLUTION

    def num_free(self) -> int:
        """Return how many blocks have no reference."""
        ### BEGIN SOLUTION
        return len(self._free)
        ### END SOLUTION

    def references(self, block: int) -> int:
        """Return how many references a block has."""
        ### BEGIN SOLUTION
        return self._references[block]
        ### END SOLUTION

    def name(self, block: int) -> bytes | None:
        """Return a block's name."""
        ### BEGIN SOLUTION
        return self._labels[block][0] if block in self._labels else None
        ### END SOLUTION

    def lookup(self, name: bytes) -> int | None:
        """Return the block of a name."""
        ### BEGIN SOLUTION
        return self._blocks.get(name)
        ### END SOLUTION

    def allocate(self, count: int) -> list[int]:
        """Take `count` free blocks, or raise NoFreeBlocks."""
        ### BEGIN SOLUTION
        if count > len(self._free):
            raise NoFreeBlocks(f"{count} asked for, {len(self._free)} free")
        taken = sorted(self._free, key=self._rank)[:count]
        for block in taken:
            del self._free[block]
            self._forget(block)
            self._references[block] = 1
        return taken
        ### END SOLUTION

    def acquire(self, blocks: list[int]) -> None:
        """Add a reference to each block."""
        ### BEGIN SOLUTION
        for block in blocks:
            if self._references.get(block, 0) == 0 and block not in self._labels:
                raise ValueError(f"block {block} is free and has no name")
        for block in blocks:
            self._free.pop(block, None)
            self._references[block] += 1
            if block in self._labels:
                self._labels[block][2] += 1
        ### END SOLUTION

    def release(self, blocks: list[int]) -> None:
        """Drop a reference of each block."""
        ### BEGIN SOLUTION
        for block, times in Counter(blocks).items():
            if self._references.get(block, 0) < times:
                raise ValueError(f"block {block} has fewer than {times} references")
        for block in blocks:
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None
                self._keep_quota(block)
        ### END SOLUTION

    def publish(self, block: int, name: bytes, client: str) -> None:
        """Name a block, for a client."""
        ### BEGIN SOLUTION
        if self._references.get(block, 0) == 0:
            raise ValueError(f"block {block} has no reference")
        if name not in self._blocks and block not in self._labels:
            self._blocks[name] = block
            self._labels[block] = [name, client, 0]

    def _rank(self, block):
        """Order in which free blocks are taken; among equals `_free` has the oldest first."""
        return (1, self._labels[block][2]) if block in self._labels else (0, block)

    def _forget(self, block):
        if block in self._labels:
            del self._blocks[self._labels.pop(block)[0]]

    def _keep_quota(self, freed):
        if freed in self._labels:
            client = self._labels[freed][1]
            kept = [b for b in self._free if b in self._labels and self._labels[b][1] == client]
            if len(kept) > self._quota:
                self._forget(min(kept, key=self._rank))
        ### END SOLUTION


# %% check="pool"
labkit.check("pool")

# %% [markdown]
# ## Task 2: names (core, 15 points)
#
# A block may be used again for whatever has the same keys and values. They depend on every token
# before them, and on more: two clients with different salts must not learn from each other's
# timing, and a picture in the prompt is a row of equal placeholder tokens, whichever picture it is.
# quire's names know of no pictures; an engine that forgot them once answered questions about
# somebody else's.
#
# **Specification.** `block_names` returns the names of the full blocks of `tokens`, first to last,
# each of 16 to 64 bytes. Under one `block_size` two blocks, of one prompt or of two, have the same
# name exactly when all that their keys and values depend on is equal: the tokens from the start of
# the prompt to the end of the block, the salt, and the part of each image that lies among these
# tokens.
#
# - `images` is a list of `[start, end, digest]`, in order, each of at least one position, none
#   overlapping another: the positions `start` to `end - 1` hold the image with that digest, its
#   first part at `start`.
# - Images with one digest are equal and of one length; other digests are other images.
# - An image may reach beyond the end of `tokens`: only a part of it is there so far.
# - Where images are, `images` alone says: the placeholder's token may also stand where none is.
# - What comes after a block's end changes nothing in its name, the rest of an image included.
# - A token is an integer from -2³¹ to 2³¹ - 1 (some engines mark placeholders by negative ones);
#   `salt` and the digests are any strings that UTF-8 can write, the empty one included.
# - A hash of 256 bits, such as SHA-256 from `hashlib`, counts as giving different values for
#   different inputs. Python's `hash` is no such thing: `hash(-1) == hash(-2)`.
#
# *Sections of the chapter:* *The same beginning twice*, *When reuse is unsafe*.
#
# *Deliverable:* `block_names`; its check passes.


# %% task="names"
# task: names
import hashlib
import json


def block_names(tokens: list[int], block_size: int, salt: str, images: list[list]) -> list[bytes]:
    """Return a name for each full block of a prompt."""
    ### BEGIN SOLUTION
    name = hashlib.sha256(salt.encode()).digest()
    names = []
    for begin in range(0, len(tokens) - block_size + 1, block_size):
        end = begin + block_size
        inside = [(start, digest) for start, stop, digest in images if start < end and begin < stop]
        content = json.dumps([tokens[begin:end], inside])
        name = hashlib.sha256(name + content.encode()).digest()
        names.append(name)
    return names
    ### END SOLUTION


# %% check="names"
labkit.check("names")

# %% [markdown]
# ## Task 3: tables that share blocks (depth, 30 points)
#
# A request that is sampled several times, searched with beams, or continued from its middle shares
# the blocks of what is common. quire copies a shared block when the *child* first writes; the
# parent goes on in place. Here, as in the paper on PagedAttention, whoever writes first copies,
# and the last one that holds a block writes in place.
#
# **Specification.** A `BlockTables` keeps for each request a table of blocks and a length: the
# token at position `p`, below the length, lies in block `table[p // block_size]`. `append` makes
# room for the next `count` tokens, which are then computed: it adds as few blocks as needed to the
# end of the table, and a block is written only while it has one reference and no name.
#
# A trace with blocks of 4 tokens, 1 to 5, in which the rule of your variant plays no part:
#
# | call | new | copies | table of a | table of b | free |
# |---|---|---|---|---|---|
# | `start("a")` | | | | | 1, 2, 3, 4, 5 |
# | `append("a", 6)` | `[1, 2]` | `[]` | 1, 2 | | 3, 4, 5 |
# | `fork("a", "b", 6)` | | | 1, 2 | 1, 2 | 3, 4, 5 |
# | `append("a", 3)` | `[4]` | `[[2, 3]]` | 1, 3, 4 | 1, 2 | 5 |
# | `append("b", 1)` | `[]` | `[]` | 1, 3, 4 | 1, 2 | 5 |
# | `commit("b", [b"x"])` | | | 1, 3, 4 | 1, 2 | 5 |
# | `free("a")` | | | | 1, 2 | 3, 4, 5 |
# | `truncate("b", 2)` | | | | 1 | 2, 3, 4, 5 |
# | `append("b", 3)` | `[3]` | `[[1, 2]]` | | 2, 3 | 1, 4, 5 |
#
# `a` writes its seventh token into block 2, which it shares, so it copies 2 to 3. From then on `b`
# alone holds 2 and writes in place. In the end `b` alone holds 1, but 1 has a name, so `b` copies
# it to 2.
#
# - `start` gives a new request an empty table; `free` gives back all that a request has, and its
#   id may then begin anew.
# - `append` returns `{"new": blocks, "copies": [[source, target]]}`: the blocks added at the end,
#   and the copy that must be made before the step writes. There is at most one.
# - If the last block has room left for these tokens and may not be written, it is copied: a new
#   block takes its place in the table. Otherwise `copies` is empty, and with `count` 0 both are.
# - The copy's target is the first block that an `append` takes from the pool. The source is
#   released once all new blocks are taken, so it is never among the new blocks of this `append`.
#   From then on the pool may give it out: copies are made in the order in which they are
#   returned, before the step writes.
# - If there are too few free blocks for all of this, `append` returns `None` and the table and its
#   length stay as they are.
# - `fork` lets a new request, `child`, begin with the first `length` tokens of `parent`, in the
#   parent's blocks.
# - `truncate` gives up the tokens of a request behind the first `length`, such as rejected drafts,
#   and with them every block that holds none of the rest.
# - For `fork` and `truncate`, more tokens than there are raise `ValueError`, and so does a child
#   that has a table; then nothing has changed.
# - `commit` names the first `len(names)` blocks of a table, which are full, in order; where a name
#   is taken or a block has one, nothing changes, as in task 1. A block that has a name may be in
#   another table tomorrow, so it is never written again, not even by its last holder.
# - `table` returns the blocks of a request, `num_free` how many blocks are free.
# - The blocks are those of a `BlockPool(num_blocks, 0)` that `BlockTables` makes for itself; its
#   references are the tables that a block is in. With quota 0 a block that is in no table has no
#   name, so the pool gives out the smallest ids first. The check below runs your own pool of task
#   1; grading puts the reference's in its place, so call it by the methods of its starter alone.
#
# One more rule belongs to your variant of this lab.
#
# ### BEGIN VARIANT window
# **Your model** has a *sliding window*: a token sees the latest `window` tokens, itself included,
# `window` at least 1. A trace, after `start("a")`, with blocks of 2 tokens, 1 to 4, and a window
# of 3:
#
# | call | new | copies | table of a | table of b | free |
# |---|---|---|---|---|---|
# | `append("a", 5)` | `[1, 2, 3]` | `[]` | 1, 2, 3 | | 4 |
# | `append("a", 1)` | `[]` | `[]` | 0, 2, 3 | | 1, 4 |
# | `fork("a", "b", 6)` | | | 0, 2, 3 | 0, 2, 3 | 1, 4 |
# | `truncate("b", 3)` | `ValueError` | | 0, 2, 3 | 0, 2, 3 | 1, 4 |
# | `truncate("b", 4)` | | | 0, 2, 3 | 0, 2 | 1, 4 |
# | `append("a", 7)` | `None` | | 0, 0, 3 | 0, 2 | 1, 4 |
#
# The token at 5 sees 3, 4 and 5, so the block of 0 and 1 goes. The next token of a `b` of three
# tokens would look at 1, which is gone; that of a `b` of four looks at 2, 3 and 4. In the end `a`
# needs four blocks and gets none. But its next token, at 6, sees nothing of block 2, so `a` has let
# go of it; `b` holds it still.
#
# - `append` first, also with `count` 0, lets go of the blocks that no token from position `length`
#   on sees, with the length from before this call: each is replaced by 0 in the table and released,
#   and may serve this very `append`.
# - So the block of positions `i * block_size` to `(i + 1) * block_size - 1` goes when
#   `(i + 1) * block_size <= length - window + 1`.
# - What was let go of stays so when `append` returns `None`.
# - `commit` passes over a 0 and the name in its place.
# - `fork` and `truncate` raise `ValueError`, and nothing has changed, if the new table would hold a
#   0 where the token at position `length` looks or is written. Other zeros are taken over.
#
# *Sections of the chapter:* *Four samples, one prompt*; *Fewer tokens*, on its page *A smaller
# cache*.
# ### END VARIANT
# ### BEGIN VARIANT swap
# **Your engine** *swaps* requests out to `num_host_blocks` blocks of host memory, numbered from 0.
# A trace, after `start("a")`, with blocks of 2 tokens, 1 to 4, and two host blocks:
#
# | call | returns | table of a | table of b | free | free on the host |
# |---|---|---|---|---|---|
# | `append("a", 3)` | `{"new": [1, 2], "copies": []}` | 1, 2 | | 3, 4 | 0, 1 |
# | `fork("a", "b", 2)` | `None` | 1, 2 | 1 | 3, 4 | 0, 1 |
# | `swap_out("a")` | `[[2, 0]]` | 1, 0 | 1 | 2, 3, 4 | 1 |
# | `append("a", 1)` | `ValueError` | 1, 0 | 1 | 2, 3, 4 | 1 |
# | `append("b", 5)` | `{"new": [2, 3, 4], "copies": []}` | 1, 0 | 1, 2, 3, 4 | | 1 |
# | `swap_in("a")` | `None` | 1, 0 | 1, 2, 3, 4 | | 1 |
# | `truncate("b", 4)` | `None` | 1, 0 | 1, 2 | 3, 4 | 1 |
# | `swap_in("a")` | `[[0, 3]]` | 1, 3 | 1, 2 | 4 | 0, 1 |
#
# Block 1 stays where it is, since `b` holds it, too. The second `swap_in` finds room for one block.
#
# - `swap_out` moves the blocks that this table alone holds to the free host blocks with the
#   smallest numbers, both in order, and returns the moves in the order of the table,
#   `[block, host block]`.
# - Each moved block is replaced by 0 in the table and released, and a block that moves loses its
#   name.
# - A block that another table holds stays where it is, since moving it would free nothing. It stays
#   there, too, when the other table ends before this one is swapped in.
# - `swap_in` gives every 0 a new block, in the order of the table and of the pool, and returns the
#   moves in this order, `[host block, block]`; the host blocks are free again.
# - Both return `None`, and nothing has changed, when there is too little room.
# - A request with nothing to move is swapped out all the same, and in again; both return `[]`.
# - One that is swapped out can only be swapped in, freed or looked at with `table`: `append`,
#   `fork` from it, `truncate`, `commit` and `swap_out` raise `ValueError`, and so does `swap_in` of
#   one that is not. Then nothing has changed.
# - `free` of one that is swapped out frees its host blocks, too.
#
# *Sections of the chapter:* *Four samples, one prompt*; its page *A second tier*.
# ### END VARIANT
# ### BEGIN VARIANT beam
# **Your engine** searches with *beams*. A trace, after `start("a")`, with blocks of 2 tokens, 1 to
# 5:
#
# | call | new | copies | table of a | table of b | free |
# |---|---|---|---|---|---|
# | `append("a", 3)` | `[1, 2]` | `[]` | 1, 2 | | 3, 4, 5 |
# | `fork("a", "b", 3)` | | | 1, 2 | 1, 2 | 3, 4, 5 |
# | `append_all(["a", "b"], 1)` | `[], []` | `[[2, 3]], []` | 1, 3 | 1, 2 | 4, 5 |
# | `append_all(["a", "b"], 3)` | `None` | | 1, 3 | 1, 2 | 4, 5 |
# | `reorder(["a", "b"], ["b", "a"])` | | | 1, 2 | 1, 3 | 4, 5 |
# | `reorder(["a", "b"], ["b", "b"])` | | | 1, 3 | 1, 3 | 2, 4, 5 |
# | `append_all(["a", "b"], 1)` | `[2], [4]` | `[], []` | 1, 3, 2 | 1, 3, 4 | 5 |
#
# In the third call `b` writes its fourth token in place, because `a` has left block 2 by then. The
# fourth call needs four blocks and finds two, so not even `a` gets its two. In the sixth nobody
# continues from block 2, which is free from then on.
#
# - `reorder` takes requests, `beams`, and for each of them the one of `beams` that it continues
#   from, `parents`. No beam is twice in `beams`; a parent may be chosen often or not at all.
# - Every beam gets the table and the length that its parent had before the call, all at once,
#   without a copy and without a new block. A block that no table holds any more is free.
# - `append_all` appends `count` tokens to each of `beams`, in this order, and returns what `append`
#   gives for each, in a list. Each finds what those before it have left: the last holder of a block
#   writes in place, and a source that no table holds any more, since even its last holder copied
#   it for its name, may be given out to a later one.
# - If one of these appends would give `None`, `append_all` returns `None` and nothing has changed.
#
# *Section of the chapter:* *Four samples, one prompt*.
# ### END VARIANT
#
# *Deliverable:* `BlockTables`; its check passes.


# %% task="tables"
# task: tables
class BlockTables:
    """Tables of requests that share blocks, copied on write."""

    ### BEGIN VARIANT window
    def __init__(self, num_blocks: int, block_size: int, window: int) -> None:
        """Share the blocks 1 to num_blocks - 1 among tables."""
        ### BEGIN SOLUTION
        self._pool = BlockPool(num_blocks, 0)
        self._block_size = block_size
        self._tables, self._lengths = {}, {}  # by request
        self._window = window
        ### END SOLUTION

    ### END VARIANT
    ### BEGIN VARIANT swap
    def __init__(self, num_blocks: int, block_size: int, num_host_blocks: int) -> None:
        """Share the blocks 1 to num_blocks - 1 among tables."""
        ### BEGIN SOLUTION
        self._pool = BlockPool(num_blocks, 0)
        self._block_size = block_size
        self._tables, self._lengths = {}, {}  # by request
        self._host = list(range(num_host_blocks))  # free host blocks
        self._away = {}  # of a request that is swapped out: host block by place in the table
        ### END SOLUTION

    ### END VARIANT
    ### BEGIN VARIANT beam
    def __init__(self, num_blocks: int, block_size: int) -> None:
        """Share the blocks 1 to num_blocks - 1 among tables."""
        ### BEGIN SOLUTION
        self._pool = BlockPool(num_blocks, 0)
        self._block_size = block_size
        self._tables, self._lengths = {}, {}  # by request
        ### END SOLUTION

    ### END VARIANT
    def num_free(self) -> int:
        """Return how many blocks are in no table."""
        ### BEGIN SOLUTION
        return self._pool.num_free()
        ### END SOLUTION

    def table(self, request: str) -> list[int]:
        """Return a request's blocks."""
        ### BEGIN SOLUTION
        return list(self._tables[request])
        ### END SOLUTION

    def start(self, request: str) -> None:
        """Begin a new request."""
        ### BEGIN SOLUTION
        self._tables[request], self._lengths[request] = [], 0
        ### END SOLUTION

    def append(self, request: str, count: int) -> dict[str, list] | None:
        """Make room for the next `count` tokens."""
        ### BEGIN SOLUTION
        table, length = self._tables[request], self._lengths[request]
        ### BEGIN VARIANT window
        for i in range(min(self._first_seen(length), len(table))):
            if table[i] != 0:
                self._pool.release([table[i]])
                table[i] = 0
        ### END VARIANT
        ### BEGIN VARIANT swap
        self._require_here(request)
        ### END VARIANT
        copy = count > 0 and length % self._block_size > 0 and not self._may_write(table[-1])
        missing = self._num_blocks(length + count) - len(table)
        try:
            new = self._pool.allocate(missing + copy)
        except NoFreeBlocks:
            return None
        copies = []
        if copy:
            copies = [[table[-1], new.pop(0)]]
            self._pool.release([table[-1]])
            table[-1] = copies[0][1]
        table.extend(new)
        self._lengths[request] += count
        return {"new": new, "copies": copies}
        ### END SOLUTION

    def fork(self, parent: str, child: str, length: int) -> None:
        """Let a new request begin with tokens of another."""
        ### BEGIN SOLUTION
        self._require(parent, length)
        if child in self._tables:
            raise ValueError(f"{child} has a table")
        table = self._tables[parent][: self._num_blocks(length)]
        self._pool.acquire([block for block in table if block != 0])
        self._tables[child], self._lengths[child] = table, length
        ### END SOLUTION

    def truncate(self, request: str, length: int) -> None:
        """Give up the tokens behind the first `length`."""
        ### BEGIN SOLUTION
        self._require(request, length)
        table, kept = self._tables[request], self._num_blocks(length)
        self._pool.release([block for block in table[kept:] if block != 0])
        del table[kept:]
        self._lengths[request] = length
        ### END SOLUTION

    def commit(self, request: str, names: list[bytes]) -> None:
        """Name a request's first blocks."""
        ### BEGIN SOLUTION
        ### BEGIN VARIANT swap
        self._require_here(request)
        ### END VARIANT
        for block, name in zip(self._tables[request], names, strict=False):
            if block != 0:
                self._pool.publish(block, name, "")
        ### END SOLUTION

    def free(self, request: str) -> None:
        """End a request."""
        ### BEGIN SOLUTION
        self._pool.release([block for block in self._tables.pop(request) if block != 0])
        del self._lengths[request]
        ### BEGIN VARIANT swap
        self._host += self._away.pop(request, {}).values()
        ### END VARIANT

    def _num_blocks(self, length):
        return -(-length // self._block_size)

    def _may_write(self, block):
        return self._pool.references(block) == 1 and self._pool.name(block) is None

    def _require(self, request, length):
        """Raise ValueError unless a request can go on from its first `length` tokens."""
        ### BEGIN VARIANT swap
        self._require_here(request)
        ### END VARIANT
        if length > self._lengths[request]:
            raise ValueError(f"{request} has {self._lengths[request]} tokens, not {length}")
        ### BEGIN VARIANT window
        if 0 in self._tables[request][self._first_seen(length) : self._num_blocks(length)]:
            raise ValueError(f"{request} has let go of what token {length} would see")

    def _first_seen(self, position):
        """The first block that the token at a position sees."""
        return max(0, position - self._window + 1) // self._block_size
        ### END VARIANT
        ### BEGIN VARIANT swap

    def _require_here(self, request):
        if request in self._away:
            raise ValueError(f"{request} is swapped out")
        ### END VARIANT
        ### END SOLUTION

    ### BEGIN VARIANT swap
    def swap_out(self, request: str) -> list[list[int]] | None:
        """Move a request's own blocks to the host."""
        ### BEGIN SOLUTION
        self._require_here(request)
        table = self._tables[request]
        own = [i for i, block in enumerate(table) if self._pool.references(block) == 1]
        if len(own) > len(self._host):
            return None
        self._host.sort()
        self._away[request] = {i: self._host.pop(0) for i in own}
        moves = [[table[i], host] for i, host in self._away[request].items()]
        self._pool.release([block for block, _ in moves])
        for i in own:
            table[i] = 0
        return moves
        ### END SOLUTION

    def swap_in(self, request: str) -> list[list[int]] | None:
        """Move a request's blocks back."""
        ### BEGIN SOLUTION
        if request not in self._away:
            raise ValueError(f"{request} is not swapped out")
        away = self._away[request]
        try:
            new = self._pool.allocate(len(away))
        except NoFreeBlocks:
            return None
        for i, block in zip(away, new, strict=True):
            self._tables[request][i] = block
        self._host += away.values()
        del self._away[request]
        return [[host, block] for host, block in zip(away.values(), new, strict=True)]
        ### END SOLUTION

    ### END VARIANT
    ### BEGIN VARIANT beam
    def reorder(self, beams: list[str], parents: list[str]) -> None:
        """Let each beam continue from its parent."""
        ### BEGIN SOLUTION
        chosen = {
            beam: (self._tables[parent][:], self._lengths[parent])
            for beam, parent in zip(beams, parents, strict=True)
        }
        for table, _ in chosen.values():
            self._pool.acquire(table)
        for beam, (table, length) in chosen.items():
            self._pool.release(self._tables[beam])
            self._tables[beam], self._lengths[beam] = table, length
        ### END SOLUTION

    def append_all(self, beams: list[str], count: int) -> list[dict[str, list]] | None:
        """Append to every beam or to none."""
        ### BEGIN SOLUTION
        num_free, left = self._pool.num_free(), []  # left: blocks that a beam leaves by a copy
        for beam in beams:
            table, length = self._tables[beam], self._lengths[beam]
            needed, copy = self._num_blocks(length + count) - len(table), False
            if count > 0 and length % self._block_size > 0:
                holders = self._pool.references(table[-1]) - left.count(table[-1])
                copy = holders > 1 or self._pool.name(table[-1]) is not None
            if needed + copy > num_free:
                return None
            num_free -= needed + copy
            if copy:
                left.append(table[-1])
                num_free += holders == 1  # its last holder leaves a block with a name
        return [self.append(beam, count) for beam in beams]
        ### END SOLUTION

    ### END VARIANT


# %% check="tables"
labkit.check("tables")

# %% [markdown]
# ## Task 4: your cache in quire (core, 25 + 5 points)
#
# quire's scheduler asks its cache manager for the tokens of a new request that are there already,
# for room, and tells it what was computed and when a request has ended. The cell after the check
# puts your class in that place.
#
# **Specification.** A `Cache` keeps a block table for each request over one `BlockPool`, in which
# requests find one another's blocks. `match_prefix` begins a request with the blocks that are
# there, `reserve` makes room for more, `commit` names what is complete and `free` ends a request.
#
# A trace with blocks of 2 tokens, 1 to 5, and a quota of 9; `T` is `[1, 2, 3, 4, 5]`. `named` are
# the blocks that have a name:
#
# | call | returns | table of a | table of b | named | free |
# |---|---|---|---|---|---|
# | `match_prefix("a", T, "", [], "ada")` | `0` | | | | 1, 2, 3, 4, 5 |
# | `reserve("a", 0, 3)` | `[1, 2]` | 1, 2 | | | 3, 4, 5 |
# | `commit("a", T, 3)` | `None` | 1, 2 | | 1 | 3, 4, 5 |
# | `reserve("a", 3, 4)` | `[3, 4]` | 1, 2, 3, 4 | | 1 | 5 |
# | `commit("a", T, 7)` | `None` | 1, 2, 3, 4 | | 1, 2 | 5 |
# | `free("a")` | `None` | | | 1, 2 | 1, 2, 3, 4, 5 |
# | `match_prefix("b", T[:4], "", [], "bob")` | `2` | | 1 | 1, 2 | 2, 3, 4, 5 |
#
# At the first `commit` five tokens are known and three computed, the first piece of a prompt: the
# token at position 3 is known and lies in block 2, but its key is not there yet. At the second one
# seven positions are computed and five tokens known: positions 5 and 6 hold drafts, say, that may
# yet be rejected. In the end the four tokens of `b` are all cached, but one must be left to
# compute, so block 2 is not used.
#
# - `match_prefix` gives the request a table, the longest chain of blocks, from the first on, that
#   the pool finds under the names of the request's tokens, with a reference to each of these and to
#   no other; it returns how many tokens they hold.
# - A match leaves at least one token to compute, since the next token is sampled from the last
#   one's output.
# - A match does not end inside an image, which is encoded whole or not at all: the chain is
#   shortened to where no image is cut.
# - `reserve` makes room for the tokens at positions `start` to `start + count - 1`: it adds as few
#   blocks as needed to the table and returns them, or `None` when too few are free, and then
#   nothing has changed.
# - `commit` publishes the blocks whose tokens are all computed and all known, for the request's
#   client, the one of its `match_prefix`: the first `num_computed` tokens are computed, `tokens`
#   are known, and either may be more.
# - `commit` may publish all such blocks of the request on each call, or only those since the last
#   call.
# - `free` releases a request's blocks from the last to the first, so that among equals the
#   beginning of a prompt stays longest. A request without a table is left alone, and one that was
#   freed may begin anew.
# - `table` returns a request's blocks, `num_free` how many blocks nobody holds.
# - The check, the cells below and one hidden test run your own `BlockPool` and `block_names`; the
#   other tests put the reference's in their place, so call them by the methods of their starters
#   alone.
#
# *Section of the chapter:* *The same beginning twice*.
#
# *Deliverable:* `Cache`, and the measurement below with its written answer.


# %% task="engine"
# task: engine
class Cache:
    """Block tables of requests that find one another's blocks."""

    def __init__(self, num_blocks: int, block_size: int, quota: int) -> None:
        """Serve from the blocks 1 to num_blocks - 1; quota is in blocks a client."""
        ### BEGIN SOLUTION
        self._pool = BlockPool(num_blocks, quota)
        self._block_size = block_size
        self._tables, self._contexts = {}, {}  # by request; a context: salt, images, client
        ### END SOLUTION

    def num_free(self) -> int:
        """Return how many blocks nobody holds."""
        ### BEGIN SOLUTION
        return self._pool.num_free()
        ### END SOLUTION

    def table(self, request: str) -> list[int]:
        """Return a request's blocks."""
        ### BEGIN SOLUTION
        return list(self._tables[request])
        ### END SOLUTION

    def match_prefix(
        self, request: str, tokens: list[int], salt: str, images: list[list], client: str
    ) -> int:
        """Begin a request with the blocks that are there; return how many tokens they hold."""
        ### BEGIN SOLUTION
        found = []
        for name in block_names(tokens[:-1], self._block_size, salt, images):
            block = self._pool.lookup(name)
            if block is None:
                break
            found.append(block)
        while any(start < len(found) * self._block_size < end for start, end, _ in images):
            found.pop()
        self._pool.acquire(found)
        self._tables[request], self._contexts[request] = found, (salt, images, client)
        return len(found) * self._block_size
        ### END SOLUTION

    def reserve(self, request: str, start: int, count: int) -> list[int] | None:
        """Make room for tokens; return the blocks added, or None if there is none."""
        ### BEGIN SOLUTION
        needed = -(-(start + count) // self._block_size) - len(self._tables[request])
        try:
            new = self._pool.allocate(max(0, needed))
        except NoFreeBlocks:
            return None
        self._tables[request] += new
        return new
        ### END SOLUTION

    def commit(self, request: str, tokens: list[int], num_computed: int) -> None:
        """Publish the blocks that are complete."""
        ### BEGIN SOLUTION
        salt, images, client = self._contexts[request]
        names = block_names(tokens[:num_computed], self._block_size, salt, images)
        for block, name in zip(self._tables[request], names, strict=False):
            self._pool.publish(block, name, client)
        ### END SOLUTION

    def free(self, request: str) -> None:
        """End a request."""
        ### BEGIN SOLUTION
        self._pool.release(self._tables.pop(request, [])[::-1])
        ### END SOLUTION


# %% check="engine"
labkit.check("engine")

# %% [markdown]
# ### In the engine
#
# The class below is all it takes: quire's `KVCacheManager` protocol on the outside, plain values
# inside. Greedy tokens must be quire's own, whatever the cache keeps or throws away; the cell
# asserts it, with a cache so small that requests are preempted.

# %%
from quire import LLM, Components, SamplingParams, Trace
from quire.kv.kv_cache_manager import Reservation

BLOCK_SIZE = 8


class InEngine:
    """quire's cache-manager protocol around `Cache`."""

    def __init__(self, cache, num_blocks):
        self.cache = cache
        self.block_size, self.num_blocks = BLOCK_SIZE, num_blocks - 1  # without the null block

    @property
    def num_free_blocks(self):
        return self.cache.num_free()

    def match_prefix(self, request):
        salt = "|".join(request.extra_keys)
        return self.cache.match_prefix(
            request.request_id, _tokens(request), salt, [], request.client_id
        )

    def reserve(self, request, num_tokens):
        new = self.cache.reserve(request.request_id, request.num_computed_tokens, num_tokens)
        return None if new is None else Reservation((tuple(new),))

    def block_ids(self, request):
        return (tuple(self.cache.table(request.request_id)),)

    def commit(self, request):
        self.cache.commit(request.request_id, _tokens(request), request.num_computed_tokens)

    def free(self, request):
        self.cache.free(request.request_id)


def _tokens(request):
    return request.prompt_token_ids + request.output_token_ids


def engine_with(make_manager=None, num_blocks=40, **options):
    """quire-mini with a cache manager of ours, or with quire's own."""
    manager = None if make_manager is None else lambda *ignored: make_manager(num_blocks)
    return LLM(
        "quire-mini", device="cpu", dtype="float32", block_size=BLOCK_SIZE, max_model_len=304,
        num_blocks=num_blocks, components=Components(kv_cache_manager=manager), **options,
    )  # fmt: skip


def with_quota(quota):
    """The factory of a manager around your cache."""
    return lambda num_blocks: InEngine(Cache(num_blocks, BLOCK_SIZE, quota), num_blocks)


HEADER = '"""Tools for lists."""\n\nimport bisect\nimport heapq\nfrom typing import Any\n\n\n'
PROMPTS = [
    HEADER + body
    for body in ("def sort(items):", "def merge(a, b):", "class Heap:\n", "def index(", "def sort(")
]
params = SamplingParams(max_tokens=48, temperature=0, ignore_eos=True)
ours = engine_with(with_quota(8)).generate(PROMPTS, params)
theirs = engine_with().generate(PROMPTS, params)
for mine, other in zip(ours, theirs, strict=True):
    assert mine.outputs[0].token_ids == other.outputs[0].token_ids, mine.prompt
print("greedy tokens equal quire's on", len(PROMPTS), "prompts")

# %% [markdown]
# ### Measure
#
# Two clients share an engine. `chat` holds three conversations: each turn sends all three at once,
# each with all that was said before. `scan` sends three long texts a turn, each twice in a row and
# then never again, the first one beside the conversations. The cell prints, for quire's cache and
# for yours with several quotas, how many of each client's prompt tokens were found in the cache,
# how many tokens were computed in all, the most blocks that were held in one step, and how many
# tokens the requests of that step had for each block held. A block has room for 8. The cell takes
# less than a minute on two cores.

# %%
TURNS, CONVERSATIONS, TEXTS, NUM_BLOCKS = 4, 3, 3, 96


class Workload:
    """The clients' requests, served by one engine and counted."""

    def __init__(self, make_manager):
        self.trace = Trace()
        self.llm = engine_with(make_manager, NUM_BLOCKS, trace=self.trace)
        self.asked = {"chat": 0, "scan": 0}  # prompt tokens
        self.handles = []  # of every request

    def serve(self, client, prompts, max_tokens):
        """Submit prompts without waiting for them; return their handles."""
        params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
        first = len(self.handles)
        for prompt in prompts:
            request = f"{client} {len(self.handles)}"
            handle = self.llm.engine.add_request(request, prompt, params, client_id=client)
            self.asked[client] += len(prompt)
            self.handles.append(handle)
        return self.handles[first:]

    @property
    def tokens(self):
        """Every request's output so far."""
        return [handle.snapshot().outputs[0].token_ids for handle in self.handles]

    def run(self):
        """Serve all turns; return a row of the table."""
        encode = self.llm.tokenizer.encode
        chats = [encode(f"{HEADER}# Conversation {c}\n") for c in range(CONVERSATIONS)]
        for turn in range(TURNS):
            starts = [200 * (TEXTS * turn + t) for t in range(TEXTS)]
            texts = [[(start + 7 * i) % 4000 + 50 for i in range(160)] for start in starts]
            for c in range(CONVERSATIONS):
                chats[c] = chats[c] + encode(f"\n\ndef step_{turn}_{c}(items, key):\n")
            answers = self.serve("chat", chats, max_tokens=16)
            for text in texts:
                for _ in range(2):
                    self.serve("scan", [text], max_tokens=2)
                    self.finish()
            answered = [handle.snapshot().outputs[0].token_ids for handle in answers]
            chats = [chat + answer for chat, answer in zip(chats, answered, strict=True)]
        return self.row()

    def finish(self):
        """Run until every request has ended."""
        while self.llm.engine.has_requests:
            self.llm.engine.step()

    def row(self):
        """Hit rates, tokens computed, blocks held, tokens a block held."""
        steps = [step.scheduled for step in self.trace.steps]
        hits = {"chat": 0, "scan": 0}
        for step in steps:
            for request, count in step.hit_tokens.items():
                hits[request.split()[0]] += count
        fullest = min(steps, key=lambda step: step.num_free_blocks)
        held = NUM_BLOCKS - 1 - fullest.num_free_blocks
        used = sum(entry.start + entry.num_tokens for entry in fullest.entries)
        rates = [hits[client] / self.asked[client] for client in self.asked]
        return [*rates, sum(step.num_tokens for step in steps), held, used / held]


print("cache       chat hits  scan hits  computed  blocks held  tokens a block")
reference = Workload(None)
print("quire       {:9.0%}  {:9.0%}  {:8}  {:11}  {:14.1f}".format(*reference.run()))
for quota in (0, 20, 30, 40, NUM_BLOCKS):
    workload = Workload(with_quota(quota))
    row = workload.run()
    assert workload.tokens == reference.tokens
    print("quota {:4}  {:9.0%}  {:9.0%}  {:8}  {:11}  {:14.1f}".format(quota, *row))

# %% [markdown]
# Explain what you measured, in nine to twelve short sentences with your numbers:
#
# 1. Compare quire's cache with yours at the quota that is best for `chat`: who gains, who pays?
# 2. Which blocks does each of these two caches throw away first, so that it comes out this way?
# 3. In the last row the quota is as large as the cache, and the pool still gives out first what was
#    used least. Which blocks of `chat` go there before which blocks of `scan`, so that `chat` finds
#    much less than at its best quota, and why does counting uses not save them?
# 4. Change one rule of the specification, not the quota, so that in this last row `chat` finds more
#    and `scan` does not lose. Say what the change may cost; measuring it is optional.
# 5. Why can a block hold more than 8 tokens here, and why not with quota 0?

# %% [markdown] written="explain"
# <!-- written: explain -->
# ### BEGIN SOLUTION
# With a quota of 40 `chat` finds 70 % of its prompt tokens, with quire's cache 45 %. `scan` falls
# from 48 % to 11 %, and the engine computes 3,946 tokens where quire computed 2,786: `scan` and the
# machine pay. quire gives out the block that has been free longest, so the three texts of 20 blocks
# that pass between two turns of a conversation push its blocks out. Mine gives out first what was
# used least, and the beginning that the conversations share was used by each of them; a new text of
# `scan` has no use, and its names go within the quota, before those of older texts with one use.
# With a quota of 96 `chat` finds 49 %. The blocks of its latest turn have no use, because they are
# found for the first time in the next turn. Every text of `scan` was found once, a moment after it
# was sent, so its blocks have one use each and stay, although nobody asks for them again. Counting
# takes a past use for one to come, and no count ever ends. I would halve the uses of all blocks,
# rounded down, whenever `allocate` takes a named one: then a text's one use is gone soon, and the
# older block goes. The price is that the conversations' shared beginning loses its lead as well
# when nobody asks for it in a while. In the fullest step 66 blocks were held for 8.4 tokens each,
# because the shared beginning lies in one set of blocks and counts in three tables. With quota 0
# nothing is left to be found, so the three requests, which begin in the same step, each compute it:
# 72 blocks hold 7.7 tokens each, the last one of each table being partly empty.
# ### END SOLUTION

# %% [markdown]
# ### Your tables in quire
#
# If you have written task 3, this cell runs it: four samples of each prompt, shared through your
# `BlockTables`. The tokens must be quire's own. Compare the blocks with those of the same samples
# sent as requests of their own: only a prompt's last block, where it is not full, is copied.


# %%
class SamplesInEngine:
    """quire's cache-manager protocol around `BlockTables`: no prefix is found, samples share."""

    def __init__(self, tables, num_blocks):
        self.tables, self.lengths, self.copies = tables, {}, 0
        self.block_size, self.num_blocks = BLOCK_SIZE, num_blocks - 1

    @property
    def num_free_blocks(self):
        return self.tables.num_free()

    def match_prefix(self, request):
        self.tables.start(request.request_id)
        self.lengths[request.request_id] = 0
        return 0

    def fork(self, parent, child, num_tokens):
        self.tables.fork(parent.request_id, child.request_id, num_tokens)
        self.lengths[child.request_id] = num_tokens

    def reserve(self, request, num_tokens):
        end = request.num_computed_tokens + num_tokens
        count = max(0, end - self.lengths[request.request_id])
        made = self.tables.append(request.request_id, count)
        if made is None:
            return None
        self.lengths[request.request_id] += count
        self.copies += len(made["copies"])
        copies = (tuple(map(tuple, made["copies"])),) if made["copies"] else ()
        return Reservation((tuple(made["new"]),), copies)

    def block_ids(self, request):
        return (tuple(self.tables.table(request.request_id)),)

    def commit(self, request):
        pass

    def free(self, request):
        if self.lengths.pop(request.request_id, None) is not None:
            self.tables.free(request.request_id)


def block_tables(num_blocks):
    """Your tables, the variant's own rule out of the way."""
    ### BEGIN VARIANT window
    return BlockTables(num_blocks, BLOCK_SIZE, 1000)
    ### END VARIANT
    ### BEGIN VARIANT swap
    return BlockTables(num_blocks, BLOCK_SIZE, 0)
    ### END VARIANT
    ### BEGIN VARIANT beam
    return BlockTables(num_blocks, BLOCK_SIZE)
    ### END VARIANT


def samples(manager, prompts, **values):
    """All tokens of four samples a prompt, and the most blocks held."""
    trace = Trace()
    llm = engine_with(manager, 200, trace=trace)
    params = SamplingParams(max_tokens=20, temperature=0.8, seed=5, ignore_eos=True, **values)
    outputs = llm.generate(prompts, params)
    tokens = [[sample.token_ids for sample in output.outputs] for output in outputs]
    return tokens, 199 - min(step.scheduled.num_free_blocks for step in trace.steps)


try:
    block_tables(200)
except NotImplementedError:
    print("task 3 is not written yet")
else:
    made = []
    shared, held = samples(
        lambda n: made.append(SamplesInEngine(block_tables(n), n)) or made[-1], PROMPTS, n=4
    )
    assert shared == samples(None, PROMPTS, n=4)[0]
    print(f"4 samples of {len(PROMPTS)} prompts: {held} blocks held, {made[-1].copies} copied")
    _, apart = samples(lambda n: SamplesInEngine(block_tables(n), n), PROMPTS * 4)
    print(f"as {4 * len(PROMPTS)} requests of their own: {apart} blocks held")

# %% [markdown]
# ## Task 5: an eviction policy (frontier, bonus)
#
# `LeastRecent` below evicts what was served longest ago, `LeastUsed` what was found the fewest
# times. The table says how many of each kind's blocks they find on the traces of the seeds 100 to
# 159, beside an order that knows the future.
#
# | kind | `LeastRecent` | `LeastUsed` | knowing the future |
# |---|---|---|---|
# | scan | 26 % | 14 % | 29 % |
# | template | 22 % | 26 % | 44 % |
# | loop | 18 % | 17 % | 57 % |
# | chat | 34 % | 34 % | 65 % |
#
# `LeastUsed` is bad for scans on every trace. Both are bad for loops and chats. For all kinds but
# scans the better of the two changes with the seed; for whole traces `LeastRecent` is the better
# one on 45 of the 60. Find an order that is better than both.
#
# *Sections of the chapter:* *Who is forgotten*.
#
# **Specification.** A `Policy` is told of every request with `served`, and names the block to
# evict with `victim`. It is driven from outside, one request after another, and never sees the
# future. The cache holds 60 blocks, the `capacity` of `simulate`. The judge draws 120 traces with
# `make_trace`, from seeds of its own. On each of them it takes the share of blocks that are found
# by your policy, by the better of the two baselines on that trace, and by `Clairvoyant`, which
# knows the future (Belady's order):
#
# > share = (yours − better baseline) / (Belady − better baseline)
#
# The bonus is 25 points times the mean share over the traces, at least 0 and at most 10. It is
# printed with its ±, which is 25 times the standard error of that mean.
#
# So a mean share of 40 % earns all 10 points. The best fixed orders of clients earn about 3 to 4,
# with a ± of 0.7. A careful estimate of how likely each block is to return soon earns 8 to 10, with
# a ± of 0.4. A policy that was told the generator's hidden state, though not what it draws next,
# reached a share of 46 %.
#
# - `served(client, blocks, found)`: a request was served; `blocks` are its blocks in order, all of
#   them cached now, and the first `found` of them were cached before.
# - `victim(blocks)`: return the one of `blocks` to evict. They are cached and none of them belongs
#   to the request that is being served.
# - A block is found only if all before it in its request are.
# - These facts a policy may use. A new `Policy()` begins each trace, and each trace has 400
#   requests. `served` is called exactly once a request, after its calls of `victim`, so requests
#   can be counted. `client` is the kind of the request, and `victim` is not told it. A cached block
#   that is missing from `victim`'s list belongs to the current request.
# - Clients are of the four kinds of `make_trace`, and a policy may make use of how it draws them.
# - The numbers of blocks say nothing: they are new in each trace, and no seed gives them again.
#   A policy that rebuilds the trace, from a seed or in any other way, earns nothing.
# - A policy that raises, takes too long or returns what is not in its list earns nothing.
# - The class may use the cell below, which is given, and the standard library. All 120 traces
#   together may take ten minutes (600 s) on one core, and one call ten seconds. In the judge each
#   call goes to another process and back, a minute or more in all: stay below 450 s by `report`.
#
# Tune on other seeds than the ten of `report` below, and on at least 50 of them: the bonus of ten
# traces has a ± of 1 to 2.5 points, that of 50 a ± of 0.5 to 1. Compare two versions on the same
# seeds. And measure the best of many again, on seeds by which you did not choose it: there it looks
# better than it is.
#
# *Deliverable:* the class in the cell with the line `# frontier: policy`, which `labkit.submit`
# plays on one short trace and hands in, too. Your instructor judges it with `frontier.py` of this
# lab's folder.

# %%
import random


def make_trace(seed, requests=400):
    """Requests (client, blocks) of four kinds in a mixture that drifts with time."""
    rng, names = random.Random(seed), random.SystemRandom()  # names that no seed gives again
    fresh = iter(lambda: names.randrange(1 << 48), None)
    weights = [rng.uniform(0.5, 2) for _ in range(4)]
    chats = [[next(fresh) for _ in range(3)] for _ in range(rng.randint(3, 6))]
    shared = [[next(fresh) for _ in range(rng.randint(3, 9))] for _ in range(8)]
    loop = [[next(fresh) for _ in range(6)] for _ in range(rng.randint(5, 9))]
    trace, scan, popular = [], [], 0
    for number in range(requests):
        if number % 100 == 99:  # other templates become popular, an old conversation ends
            popular = rng.randrange(len(shared))
            chats[0] = [next(fresh) for _ in range(3)]
            weights = [weight * rng.uniform(0.6, 1.7) for weight in weights]
        kind = rng.choices(["chat", "template", "loop", "scan"], weights)[0]
        if kind == "chat":
            chat = rng.choice(chats)
            chat += [next(fresh) for _ in range(rng.randint(1, 2))]
            del chat[18:]
            blocks = list(chat)
        elif kind == "template":
            near = (popular + min(rng.randrange(8), rng.randrange(8))) % len(shared)
            blocks = [*shared[near], next(fresh), next(fresh)]
        elif kind == "loop":
            blocks = list(loop[number % len(loop)])
        else:  # a long text, now and then a second time
            scan = scan if scan and rng.random() < 0.3 else [next(fresh) for _ in range(15)]
            blocks = list(scan)
        trace.append((kind, blocks))
    return trace


def simulate(policy, trace, capacity=60):
    """Drive a policy; return the share of blocks that were found."""
    cached, hits, total = {}, 0, 0
    for client, blocks in trace:
        found = 0
        while found < len(blocks) and blocks[found] in cached:
            found += 1
        needed = [block for block in blocks if block not in cached]
        candidates = [block for block in cached if block not in blocks]
        for _ in range(len(cached) + len(needed) - capacity):
            block = policy.victim(list(candidates))
            if block not in candidates:
                raise ValueError(
                    f"victim returned {block!r}, which is not one of the {len(candidates)} blocks "
                    "it was given"
                )
            candidates.remove(block)
            del cached[block]
        cached |= dict.fromkeys(needed)
        policy.served(client, list(blocks), found)
        hits, total = hits + found, total + len(blocks)
    return hits / total


class LeastRecent:
    """The baseline that engines use: whatever was served longest ago; of a request, its end."""

    def __init__(self):
        self.order, self.clock = {}, 0

    def served(self, client, blocks, found):
        for block in reversed(blocks):
            self.clock += 1
            self.order[block] = self.clock

    def victim(self, blocks):
        return min(blocks, key=self.order.__getitem__)


class LeastUsed(LeastRecent):
    """The other baseline, much like the order of task 1: the fewest times found, then the oldest.

    Here no client has a quota, and a block that is served without being found begins again at 0,
    even if it is cached; in task 1 it keeps its uses as long as its name.
    """

    def __init__(self):
        super().__init__()
        self.uses = {}

    def served(self, client, blocks, found):
        super().served(client, blocks, found)
        for place, block in enumerate(blocks):
            self.uses[block] = self.uses.get(block, 0) + 1 if place < found else 0

    def victim(self, blocks):
        return min(blocks, key=lambda block: (self.uses[block], self.order[block]))


class Clairvoyant:
    """Evicts what is asked for latest, knowing the trace: what the gap is measured to."""

    def __init__(self, trace):
        self.times, self.now = {}, 0
        for number, (_, blocks) in enumerate(trace):
            for place, block in enumerate(blocks):
                self.times.setdefault(block, []).append((number, place))

    def served(self, client, blocks, found):
        self.now += 1
        for block in blocks:
            self.times[block].pop(0)

    def victim(self, blocks):
        return max(blocks, key=lambda block: self.times[block][0] if self.times[block] else (1e9,))


# %%
# frontier: policy
class Policy(LeastRecent):
    """Begin here: so far this is the first baseline, and closes nothing of the gap."""

    def served(self, client, blocks, found):
        """Be told of a request: its `blocks` are cached now, the first `found` were before."""
        super().served(client, blocks, found)

    def victim(self, blocks):
        """Return the one of `blocks` to evict for the request that `served` tells of next."""
        return super().victim(blocks)


# %%
import time


def report(make_policy, seeds):
    """Print the shares found on the traces of some seeds; return the bonus."""
    closed, seconds = [], 0.0
    print("trace  least recent  least used  yours  knowing the future")
    for number, seed in enumerate(seeds, 1):
        trace = make_trace(seed)
        old, used = simulate(LeastRecent(), trace), simulate(LeastUsed(), trace)
        best = simulate(Clairvoyant(trace), trace)
        begun = time.perf_counter()
        yours = simulate(make_policy(), trace)
        seconds += time.perf_counter() - begun
        closed.append((yours - max(old, used)) / (best - max(old, used)))
        print(f"{number:5}  {old:12.1%}  {used:10.1%}  {yours:5.1%}  {best:18.1%}")
    n = len(closed)
    share = sum(closed) / n
    error = (sum((x - share) ** 2 for x in closed) / max(n * (n - 1), 1)) ** 0.5
    bonus = min(10.0, max(0.0, 25 * share))
    print(f"yours took {seconds:.1f} s for {n} traces, so {120 * seconds / n:.0f} s for 120;")
    print("the judge draws 120 and allows 600 s; each call takes longer there")
    print(f"mean share {share:.1%} ± {error:.1%}: bonus {bonus:.1f} ± {25 * error:.1f} of 10")
    return bonus


bonus = report(Policy, seeds=range(10))

# %% [markdown]
# ## Task 6: a cache-write kernel (frontier, Hopper, bonus)
#
# In every step and layer an engine writes the new tokens' keys and values to their slots. No
# number is computed, so the memory's bandwidth alone says how fast that can be.
#
# **Specification.** The Triton kernel `cache_write` copies `key[t]` and `value[t]`, bf16
# [num_tokens, kv_heads, head_size], to the place `slots[t]` (int64) of `key_cache` and
# `value_cache`, bf16 [num_blocks, block_size, kv_heads, head_size], where slot `s` is place
# `s % block_size` of block `s // block_size`; a token of slot -1 is skipped, no two tokens share
# another slot, and nothing else may be written. It may take any of these five pointers and
# `num_tokens` by name, in any order; `launch` gives the grid, a value for each other parameter
# (`constants`), `num_warps` and `num_stages`.
#
# Your instructor compiles it for Hopper and runs the result on fresh inputs of 16,381 tokens, 1,100
# blocks of 16 places and 8 heads of 128. All arrays are contiguous and start at a multiple of 16
# bytes, and Triton is told so. The bonus is 10 points times its share of the reference kernel's
# speed, at most 10, and nothing below half of that speed or if one number of one call is wrong.
#
# Without a GPU you can try it in two ways. With `TRITON_INTERPRET=1` in the environment before
# Triton is imported it runs on tensors of the CPU. And `triton.compile` with the target
# `GPUTarget("cuda", 90, 32)` finds what the assembler for Hopper refuses.
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
    def cache_write(key, value, slots, key_cache, value_cache, num_tokens):
        """Begin here; with one program a token, say, whose number is this."""
        tl.program_id(0)


def launch(
    num_tokens: int, num_blocks: int, block_size: int, kv_heads: int, head_size: int
) -> dict[str, object]:
    """Return the dict `{"grid": (…,), "constants": {…}, "num_warps": …, "num_stages": …}`."""
    raise NotImplementedError("write launch")
