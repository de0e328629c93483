"""`Router`: which replica of an engine a prompt goes to.

Replicas share nothing, so where a prompt goes decides how long it waits and whether its prefix is
found in a cache. Both are counted in tokens. A replica that computes as many sequences as it can
comes last: what it is given waits for a whole answer, however short the queue is in tokens. See the
chapter "Parallelism".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from quire.kv.block_hash import extend_chain
from quire.request import Request


@dataclass(frozen=True)
class Load:
    """What a replica has to do before a prompt that comes now."""

    num_tokens: int  # prompts and outputs of the sequences that have not ended
    is_full: bool  # whether the prompt waits until one of those ends


# docs: router begin
class Router:
    """Sends a prompt where it need not wait for a row, and there where the least is to be done.

    `_seen[r]` holds the names of the last blocks of prompts that went to replica r, as many as
    its cache has. It is a guess at what is cached there: the replica may have thrown it away.
    """

    def __init__(self, num_replicas: int, block_size: int, num_blocks: int) -> None:
        """Know of replicas whose caches have so many blocks of so many tokens."""
        self._block_size, self._num_blocks = block_size, num_blocks
        self._seen: list[OrderedDict[bytes, None]] = [OrderedDict() for _ in range(num_replicas)]

    def choose(self, loads: Sequence[Load], request: Request) -> int:
        """Return the replica for a prompt, and take it as sent there.

        Args:
            loads: what each replica has to do.
            request: its prompt, and what else names its blocks.
        """
        names: list[bytes] = []
        num_blocks = (len(request.prompt_token_ids) - 1) // self._block_size
        extend_chain(names, request, num_blocks, self._block_size)

        def work(replica: int) -> tuple[bool, int, int]:
            load, known = loads[replica], self._block_size * self._num_known(replica, names)
            return load.is_full, load.num_tokens - known, replica

        chosen = min(range(len(loads)), key=work)
        seen = self._seen[chosen]
        for name in names:
            seen[name] = None
            seen.move_to_end(name)
        while len(seen) > self._num_blocks:
            seen.popitem(last=False)
        return chosen

    def _num_known(self, replica: int, names: Sequence[bytes]) -> int:
        """Return how many of a prompt's first blocks went to a replica before."""
        for number, name in enumerate(names):
            if name not in self._seen[replica]:
                return number
        return len(names)


# docs: router end
