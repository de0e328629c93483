"""The name of a cached block: a hash of all tokens up to its end.

Keys and values depend on every token before them, so a block's name covers its parent's
name; the chain starts at the request's extra keys (cache salt, adapter), so that nothing is
shared across them. SHA-256 rather than Python's `hash`: two prompts with one name would
read each other's cache. See the chapter "The paged KV cache".
"""

from __future__ import annotations

import hashlib
import json
from array import array

from quire.request import Request


def extend_chain(chain: list[bytes], request: Request, end: int, block_size: int) -> None:
    """Grow `chain` to the names of the blocks [0, end), all full of known tokens.

    `chain[i]` is the name of block i; what is there already is not hashed again.
    """
    for index in range(len(chain), end):
        parent = chain[-1] if chain else _root(request.extra_keys)
        tokens = _tokens(request, index * block_size, (index + 1) * block_size)
        chain.append(hashlib.sha256(parent + array("q", tokens).tobytes()).digest())


def _root(extra_keys: tuple[str, ...]) -> bytes:
    return hashlib.sha256(json.dumps(extra_keys).encode()).digest()


def _tokens(request: Request, begin: int, end: int) -> list[int]:
    """Return the tokens of positions [begin, end), prompt first, then output."""
    prompt = request.prompt_token_ids
    if end <= len(prompt):
        return prompt[begin:end]
    output_begin = max(begin - len(prompt), 0)
    return prompt[begin:] + request.output_token_ids[output_begin : end - len(prompt)]
