# %%
# quire's own pool, names, tables and cache manager, carried over to the lab's signatures: what a
# reader hands in who copies the engine. Compare src/quire/kv/.

# %% task="pool"
# task: pool
class BlockPool:
    def __init__(self, num_blocks, quota):
        self._num_blocks = num_blocks
        self._references = [0] * num_blocks
        self._next = [*range(1, num_blocks), 0]
        self._previous = [num_blocks - 1, *range(num_blocks - 1)]
        self._num_free = num_blocks - 1
        self._published = {}
        self._hashes = {}

    def num_free(self):
        return self._num_free

    def references(self, block):
        return self._references[block]

    def name(self, block):
        return self._hashes.get(block)

    def lookup(self, name):
        return self._published.get(name)

    def allocate(self, count):
        if count > self._num_free:
            raise NoFreeBlocks(count)
        block_ids = []
        for _ in range(count):
            block_id = self._next[0]
            self._unlink(block_id)
            self._references[block_id] = 1
            block_hash = self._hashes.pop(block_id, None)
            if block_hash is not None:
                del self._published[block_hash]
            block_ids.append(block_id)
        return block_ids

    def acquire(self, blocks):
        for block_id in blocks:
            if self._references[block_id] == 0:
                self._unlink(block_id)
            self._references[block_id] += 1

    def release(self, blocks):
        for block_id in blocks:
            self._require_held(block_id)
            self._references[block_id] -= 1
            if self._references[block_id] == 0:
                self._link_last(block_id)

    def publish(self, block, name, client):
        self._require_held(block)
        if name not in self._published and block not in self._hashes:
            self._published[name] = block
            self._hashes[block] = name

    def _unlink(self, block_id):
        before, after = self._previous[block_id], self._next[block_id]
        self._next[before], self._previous[after] = after, before
        self._num_free -= 1

    def _link_last(self, block_id):
        last = self._previous[0]
        self._next[last], self._previous[block_id] = block_id, last
        self._next[block_id], self._previous[0] = 0, block_id
        self._num_free += 1

    def _require_held(self, block_id):
        if not 0 < block_id < self._num_blocks or self._references[block_id] == 0:
            raise ValueError(block_id)


# %% task="names"
# task: names
import hashlib
import json
from array import array


def block_names(tokens, block_size, salt, images):
    chain = []
    for index in range(len(tokens) // block_size):
        parent = chain[-1] if chain else hashlib.sha256(json.dumps([salt]).encode()).digest()
        part = tokens[index * block_size : (index + 1) * block_size]
        chain.append(hashlib.sha256(parent + array("q", part).tobytes()).digest())
    return chain


# %% task="tables"
# task: tables
class BlockTables:
    def __init__(self, num_blocks, block_size, special=None):
        self._pool, self._block_size, self._special = BlockPool(num_blocks, 0), block_size, special
        self._tables, self._num_shared, self._lengths = {}, {}, {}

    def num_free(self):
        return self._pool.num_free()

    def table(self, request):
        return list(self._tables[request])

    def start(self, request):
        self._tables[request], self._num_shared[request], self._lengths[request] = [], 0, 0

    def append(self, request, count):
        table, start = self._tables[request], self._lengths[request]
        num_new = -(-(start + count) // self._block_size) - len(table)
        first = start // self._block_size
        copy = first < self._num_shared[request] and count > 0
        num_new = max(num_new, 0)
        if self._pool.num_free() < num_new + copy:
            return None
        new, copies = self._pool.allocate(num_new), []
        table.extend(new)
        if copy:
            source, (target,) = table[first], self._pool.allocate(1)
            table[first] = target
            self._pool.release([source])
            copies = [[source, target]]
            self._num_shared[request] = first
        self._lengths[request] += count
        return {"new": new, "copies": copies}

    def fork(self, parent, child, length):
        if length > self._lengths[parent] or child in self._tables:
            raise ValueError(length)
        num_blocks = -(-length // self._block_size)
        blocks = self._tables[parent][:num_blocks]
        self._pool.acquire([block for block in blocks if block])
        self._tables[child], self._num_shared[child] = blocks, num_blocks
        self._lengths[child] = length

    def truncate(self, request, length):
        if length > self._lengths[request]:
            raise ValueError(length)
        num_kept = -(-length // self._block_size)
        table = self._tables[request]
        self._pool.release([block for block in reversed(table[num_kept:]) if block])
        del table[num_kept:]
        self._num_shared[request] = min(self._num_shared[request], num_kept)
        self._lengths[request] = length

    def commit(self, request, names):
        for index in range(self._num_shared[request], len(names)):
            self._pool.publish(self._tables[request][index], names[index], "")
        self._num_shared[request] = max(self._num_shared[request], len(names))

    def free(self, request):
        self._pool.release([block for block in reversed(self._tables.pop(request)) if block])

    ### BEGIN VARIANT swap
    # quire keeps what a preempted request had in its cache, and has no moves of a table.
    def swap_out(self, request):
        return []

    def swap_in(self, request):
        return []

    ### END VARIANT
    ### BEGIN VARIANT beam
    # quire has parallel samples and no beams; a beam would be forked from its parent.
    def reorder(self, beams, parents):
        for beam, parent in zip(beams, parents, strict=True):
            if beam != parent:
                self.free(beam)
                self.fork(parent, beam, self._lengths[parent])

    def append_all(self, beams, count):
        answers = [self.append(beam, count) for beam in beams]
        return None if None in answers else answers

    ### END VARIANT


# %% task="engine"
# task: engine
class Cache:
    def __init__(self, num_blocks, block_size, quota):
        self._pool, self._block_size = BlockPool(num_blocks, quota), block_size
        self._tables, self._num_shared, self._salts = {}, {}, {}

    def num_free(self):
        return self._pool.num_free()

    def table(self, request):
        return list(self._tables[request])

    def match_prefix(self, request, tokens, salt, images, client):
        blocks = []
        chain = block_names(tokens, self._block_size, salt, [])
        for block_hash in chain[: (len(tokens) - 1) // self._block_size]:
            found = self._pool.lookup(block_hash)
            if found is None:
                break
            blocks.append(found)
        self._pool.acquire(blocks)
        self._tables[request], self._num_shared[request] = blocks, len(blocks)
        self._salts[request] = salt
        return len(blocks) * self._block_size

    def reserve(self, request, start, count):
        num_new = -(-(start + count) // self._block_size) - len(self._tables[request])
        if num_new <= 0:
            return []
        if self._pool.num_free() < num_new:
            return None
        new_ids = self._pool.allocate(num_new)
        self._tables[request].extend(new_ids)
        return new_ids

    def commit(self, request, tokens, num_computed):
        num_full = min(num_computed, len(tokens)) // self._block_size
        chain = block_names(tokens, self._block_size, self._salts[request], [])
        for index in range(self._num_shared[request], num_full):
            self._pool.publish(self._tables[request][index], chain[index], "")
        self._num_shared[request] = max(self._num_shared[request], num_full)

    def free(self, request):
        table = self._tables.pop(request, None)
        if table is not None:
            self._pool.release(list(reversed(table)))
