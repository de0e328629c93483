"""quire with a cache manager that speaks plain values to whoever is given: both of a `Pair`.

The wrappers do what the notebook's own do; every answer is compared before the engine sees it.
"""

from __future__ import annotations

import functools
from typing import Any

from .driving import Pair

BLOCK_SIZE = 8
MAX_STEPS = 400
HEADER = "import math\nfrom typing import Any\n\n\ndef clamp(x, low, high):\n    "


def _tokens(request: Any) -> list[int]:
    return list(request.prompt_token_ids + request.output_token_ids)


class Delegate:
    """Stands where quire's manager stands; `inner` answers."""

    def __init__(self, num_blocks: int) -> None:
        self.block_size, self.num_blocks = BLOCK_SIZE, num_blocks - 1
        self.inner: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class WithCache:
    """quire's protocol around a `Cache`."""

    def __init__(self, cache: Pair) -> None:
        self.cache = cache

    @property
    def num_free_blocks(self) -> int:
        """Blocks nobody holds."""
        return int(self.cache.call("num_free"))

    def match_prefix(self, request: Any) -> int:
        """Begin a request."""
        salt = "|".join(request.extra_keys)
        answer = self.cache.call(
            "match_prefix", request.request_id, _tokens(request), salt, [], request.client_id
        )
        return int(answer)

    def reserve(self, request: Any, num_tokens: int) -> Any:
        """Make room."""
        from quire.kv.kv_cache_manager import Reservation

        new = self.cache.call(
            "reserve", request.request_id, request.num_computed_tokens, num_tokens
        )
        return None if new is None else Reservation((tuple(new),))

    def block_ids(self, request: Any) -> tuple[tuple[int, ...], ...]:
        """The table."""
        return (tuple(self.cache.call("table", request.request_id)),)

    def commit(self, request: Any) -> None:
        """Publish."""
        self.cache.call("commit", request.request_id, _tokens(request), request.num_computed_tokens)

    def free(self, request: Any) -> None:
        """End."""
        self.cache.call("free", request.request_id)


class WithTables:
    """quire's protocol around `BlockTables`: nothing is found again, samples share."""

    def __init__(self, tables: Pair) -> None:
        self.tables = tables
        self.lengths: dict[str, int] = {}

    @property
    def num_free_blocks(self) -> int:
        """Blocks in no table."""
        return int(self.tables.call("num_free"))

    def match_prefix(self, request: Any) -> int:
        """Begin a request."""
        self.tables.call("start", request.request_id)
        self.lengths[request.request_id] = 0
        return 0

    def fork(self, parent: Any, child: Any, num_tokens: int) -> None:
        """Begin a sample."""
        self.tables.call("fork", parent.request_id, child.request_id, num_tokens)
        self.lengths[child.request_id] = num_tokens

    def reserve(self, request: Any, num_tokens: int) -> Any:
        """Append what is not there yet."""
        from quire.kv.kv_cache_manager import Reservation

        end = request.num_computed_tokens + num_tokens
        count = max(0, end - self.lengths[request.request_id])
        answer = self.tables.call("append", request.request_id, count)
        if answer is None:
            return None
        self.lengths[request.request_id] += count
        copies = tuple((source, target) for source, target in answer["copies"])
        return Reservation((tuple(answer["new"]),), (copies,) if copies else ())

    def block_ids(self, request: Any) -> tuple[tuple[int, ...], ...]:
        """The table."""
        return (tuple(self.tables.call("table", request.request_id)),)

    def commit(self, request: Any) -> None:
        """Nothing is named."""

    def free(self, request: Any) -> None:
        """End, if it began."""
        if self.lengths.pop(request.request_id, None) is not None:
            self.tables.call("free", request.request_id)


@functools.cache
def engine(num_blocks: int, own: bool) -> tuple[Any, Delegate]:
    """quire with its `own` manager or a delegate; made once for all submissions.

    On the smaller model, since who computes what does not depend on it.
    """
    from quire import LLM, Components

    delegate = Delegate(num_blocks)
    manager = None if own else lambda *ignored: delegate
    llm = LLM(
        "quire-mini-draft", device="cpu", dtype="float32", block_size=BLOCK_SIZE, max_model_len=128,
        num_blocks=num_blocks, max_num_batched_tokens=48,
        components=Components(kv_cache_manager=manager),
    )  # fmt: skip
    return llm, delegate


def run(requests: list[tuple[str, str, dict[str, Any]]], num_blocks: int, inner: Any) -> Any:
    """Serve (client, prompt, sampling parameters) all at once; return every sample's tokens."""
    import torch

    from quire import SamplingParams

    llm, delegate = engine(num_blocks, inner is None)
    delegate.inner = inner
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small products: threads would wait for one another
    handles = []
    try:
        for i, (client, prompt, values) in enumerate(requests):
            params = SamplingParams(ignore_eos=True, **values)
            handles.append(llm.engine.add_request(f"r{i}", prompt, params, client_id=client))
        for _ in range(MAX_STEPS):
            if not llm.engine.has_requests:
                break
            llm.engine.step()
    except BaseException:
        engine.cache_clear()  # requests are left in it
        raise
    finally:
        torch.set_num_threads(threads)
    return [
        [sample.token_ids for sample in output.outputs]
        for output in [handle.snapshot() for handle in handles]
    ]
