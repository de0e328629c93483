# %%
# An independent second solution, written from the starter's text: other data structures, no line
# shared with the master. It shows that the hidden tests judge the specification and not one way
# of writing it.

# %% task="pool"
# task: pool
import heapq
import itertools


class Slot:
    """One block."""

    def __init__(self):
        self.held, self.uses, self.ticket = 0, 0, 0
        self.label = self.payer = None


class BlockPool:
    """Two heaps of tickets; a ticket that a block has outlived is skipped when it comes up."""

    def __init__(self, num_blocks, quota):
        self.slots = [Slot() for _ in range(num_blocks)]
        self.slots[0].held = 1  # never free, never found
        self.quota = quota
        self.where = {}
        self.tickets = itertools.count(1)
        self.blank = list(range(1, num_blocks))  # a heap of ids
        self.known = []  # a heap of (uses, ticket, id)
        self.count = num_blocks - 1

    def num_free(self):
        return self.count

    def references(self, block):
        return self.slots[block].held

    def name(self, block):
        return self.slots[block].label

    def lookup(self, name):
        return self.where.get(name)

    def _unname(self, block):
        slot = self.slots[block]
        del self.where[slot.label]
        slot.label = slot.payer = None

    def _is_next(self, uses, ticket, block):
        slot = self.slots[block]
        current = slot.label is not None and slot.held == 0
        return current and (slot.uses, slot.ticket) == (uses, ticket)

    def _take(self):
        while self.blank:
            block = heapq.heappop(self.blank)
            if self.slots[block].held == 0 and self.slots[block].label is None:
                return block
        while True:
            entry = heapq.heappop(self.known)
            if self._is_next(*entry):
                self._unname(entry[2])
                return entry[2]

    def allocate(self, count):
        if self.count < count:
            raise NoFreeBlocks(count)
        taken = []
        while len(taken) < count:
            block = self._take()
            self.slots[block].held, self.slots[block].uses = 1, 0
            self.count -= 1
            taken.append(block)
        return taken

    def _check(self, blocks):
        for block in blocks:
            if not 1 <= block < len(self.slots):
                raise ValueError(block)

    def acquire(self, blocks):
        self._check(blocks)
        if any(self.slots[b].held == 0 and self.slots[b].label is None for b in blocks):
            raise ValueError(blocks)
        for slot in (self.slots[b] for b in blocks):
            self.count -= slot.held == 0
            slot.held += 1
            slot.uses += slot.label is not None

    def release(self, blocks):
        self._check(blocks)
        if any(blocks.count(b) > self.slots[b].held for b in set(blocks)):
            raise ValueError(blocks)
        for block in blocks:
            slot = self.slots[block]
            slot.held -= 1
            if slot.held > 0:
                continue
            self.count += 1
            slot.ticket = next(self.tickets)
            if slot.label is None:
                heapq.heappush(self.blank, block)
                continue
            heapq.heappush(self.known, (slot.uses, slot.ticket, block))
            payer = slot.payer
            mine = sorted(
                (s.uses, s.ticket, i)
                for i, s in enumerate(self.slots)
                if s.held == 0 and s.label is not None and s.payer == payer
            )
            for _, _, surplus in mine[: max(0, len(mine) - self.quota)]:
                self._unname(surplus)
                heapq.heappush(self.blank, surplus)

    def publish(self, block, name, client):
        self._check([block])
        slot = self.slots[block]
        if not slot.held:
            raise ValueError(block)
        if slot.label is None and self.where.setdefault(name, block) == block:
            slot.label, slot.payer, slot.uses = name, client, 0


# %% task="names"
# task: names
import hashlib


def block_names(tokens, block_size, salt, images):
    """One running digest over the prompt; a block's name is the digest so far."""
    running = hashlib.blake2b(repr(salt).encode(), digest_size=32)
    seen = {}
    for start, end, digest in images:
        for position in range(start, min(end, len(tokens))):
            seen[position] = (digest, position - start)
    names = []
    for position, token in enumerate(tokens):
        running.update(repr((token, seen.get(position))).encode())
        if position % block_size == block_size - 1:
            names.append(running.copy().digest())
    return names


# %% task="tables"
# task: tables
class Chain:
    """A request's blocks and how many tokens are in them."""

    def __init__(self, blocks, length):
        self.blocks, self.length = blocks, length
        self.parked = None  # [place, host block] while swapped out


class BlockTables:
    def __init__(self, num_blocks, block_size, special=None):
        self.pool, self.size, self.special = BlockPool(num_blocks, 0), block_size, special
        self.chains = {}

    def num_free(self):
        return self.pool.num_free()

    def table(self, request):
        return self.chains[request].blocks

    def start(self, request):
        self.chains[request] = Chain([], 0)

    def _drop(self, blocks):
        for block in filter(None, blocks):
            self.pool.release([block])

    def _active(self, request):
        chain = self.chains[request]
        if chain.parked is not None:
            raise ValueError(request)
        return chain

    def _plan(self, chain, count, leavers=()):
        """Whether the last block is copied, and how many blocks are added."""
        room = len(chain.blocks) * self.size - chain.length
        added = max(0, -(-(count - room) // self.size))
        if count == 0 or room == 0:
            return False, added
        last = chain.blocks[-1]
        others = self.pool.references(last) - leavers.count(last) - 1
        return bool(others) or self.pool.name(last) is not None, added

    def append(self, request, count):
        chain = self._active(request)
        ### BEGIN VARIANT window
        for place, block in enumerate(chain.blocks):
            last_token = place * self.size + self.size - 1
            if last_token + self.special <= chain.length:
                self._drop([block])
                chain.blocks[place] = 0
        ### END VARIANT
        copied, added = self._plan(chain, count)
        if copied + added > self.pool.num_free():
            return None
        copies = []
        if copied:
            source = chain.blocks.pop()
            chain.blocks += self.pool.allocate(1)
            copies.append([source, chain.blocks[-1]])
        new = self.pool.allocate(added)
        if copied:
            self._drop([source])
        chain.blocks += new
        chain.length += count
        return {"new": new, "copies": copies}

    def _cut(self, request, length):
        chain = self._active(request)
        if length > chain.length:
            raise ValueError(length)
        whole, rest = divmod(length, self.size)
        kept = chain.blocks[: whole + bool(rest)]
        ### BEGIN VARIANT window
        for place, block in enumerate(kept):
            if block == 0 and (place + 1) * self.size + self.special > length + 1:
                raise ValueError(length)
        ### END VARIANT
        return kept

    def fork(self, parent, child, length):
        if child in self.chains:
            raise ValueError(child)
        kept = self._cut(parent, length)
        self.pool.acquire(list(filter(None, kept)))
        self.chains[child] = Chain(kept, length)

    def truncate(self, request, length):
        kept = self._cut(request, length)
        chain = self.chains[request]
        self._drop(chain.blocks[len(kept) :])
        chain.blocks, chain.length = kept, length

    def commit(self, request, names):
        blocks = self._active(request).blocks
        for place, name in enumerate(names):
            if blocks[place]:
                self.pool.publish(blocks[place], name, "me")

    def free(self, request):
        self._drop(self.chains.pop(request).blocks)

    ### BEGIN VARIANT swap
    def swap_out(self, request):
        chain = self._active(request)
        taken = {host for other in self.chains.values() for _, host in other.parked or []}
        hosts = [host for host in range(self.special) if host not in taken]
        places = [i for i, b in enumerate(chain.blocks) if self.pool.references(b) < 2]
        if len(places) > len(hosts):
            return None
        chain.parked = list(zip(places, hosts, strict=False))
        moves = []
        for place, host in chain.parked:
            moves.append([chain.blocks[place], host])
            self._drop([chain.blocks[place]])
            chain.blocks[place] = 0
        return moves

    def swap_in(self, request):
        chain = self.chains[request]
        if chain.parked is None:
            raise ValueError(request)
        if len(chain.parked) > self.pool.num_free():
            return None
        moves = []
        for place, host in chain.parked:
            chain.blocks[place] = self.pool.allocate(1)[0]
            moves.append([host, chain.blocks[place]])
        chain.parked = None
        return moves

    ### END VARIANT
    ### BEGIN VARIANT beam
    def reorder(self, beams, parents):
        old = [self.chains[beam].blocks for beam in beams]
        new = [(self.chains[p].blocks[:], self.chains[p].length) for p in parents]
        for blocks, _ in new:
            self.pool.acquire(blocks)
        for beam, blocks, (table, length) in zip(beams, old, new, strict=True):
            self._drop(blocks)
            self.chains[beam] = Chain(table, length)

    def append_all(self, beams, count):
        left, free = [], self.pool.num_free()
        for chain in map(self.chains.get, beams):
            copied, added = self._plan(chain, count, left)
            free -= copied + added
            if free < 0:
                return None
            if copied:
                left.append(chain.blocks[-1])
                free += left.count(left[-1]) == self.pool.references(left[-1])
        return [self.append(beam, count) for beam in beams]

    ### END VARIANT


# %% task="engine"
# task: engine
class Cache:
    def __init__(self, num_blocks, block_size, quota):
        self.pool, self.size = BlockPool(num_blocks, quota), block_size
        self.live = {}

    def num_free(self):
        return self.pool.num_free()

    def table(self, request):
        return self.live[request]["blocks"]

    def match_prefix(self, request, tokens, salt, images, client):
        blocks = []
        names = block_names(tokens, self.size, salt, images)
        while len(blocks) < len(names) and (len(blocks) + 1) * self.size < len(tokens):
            block = self.pool.lookup(names[len(blocks)])
            if block is None:
                break
            blocks.append(block)
        for start, end, _ in reversed(images):
            if start < len(blocks) * self.size < end:
                del blocks[start // self.size :]
        for block in blocks:
            self.pool.acquire([block])
        self.live[request] = {
            "blocks": blocks, "named": len(blocks), "salt": salt, "images": images,
            "client": client,
        }  # fmt: skip
        return len(blocks) * self.size

    def reserve(self, request, start, count):
        blocks, new = self.live[request]["blocks"], []
        lacking = start + count - len(blocks) * self.size
        if lacking > self.pool.num_free() * self.size:
            return None
        while len(new) * self.size < lacking:
            new += self.pool.allocate(1)
        blocks += new
        return new

    def commit(self, request, tokens, num_computed):
        live = self.live[request]
        full = min(len(tokens), num_computed) // self.size
        if full <= live["named"]:
            return
        names = block_names(tokens, self.size, live["salt"], live["images"])
        for place in range(live["named"], full):
            self.pool.publish(live["blocks"][place], names[place], live["client"])
        live["named"] = full

    def free(self, request):
        blocks = self.live.pop(request, {"blocks": []})["blocks"]
        while blocks:
            self.pool.release([blocks.pop()])
