"""`ReplicatedEngine`: several engines that each have all of the model, behind one router."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from quire.config import EngineConfig
from quire.engine import LLMEngine
from quire.errors import InvalidRequestError
from quire.interrupts import uninterrupted
from quire.outputs import RequestOutput
from quire.parallel.router import Load, Router
from quire.progress import RequestHandle
from quire.prompts import Prompt
from quire.request import Request
from quire.sampling.params import SamplingParams
from quire.tokenizer import Tokenizer

PAUSE = 50e-6  # seconds between two looks at the devices; a decode step takes some milliseconds


class ReplicatedEngine:
    """Answers the calls of an `LLMEngine`; each request is one replica's business.

    Every replica has steps queued, and the one whose step has ended is advanced: a long prompt
    keeps nobody waiting but those who share its replica.
    """

    def __init__(self, engines: Sequence[LLMEngine]) -> None:
        """Put engines of one configuration behind a router."""
        self.engines = list(engines)
        first = self.engines[0]
        self.config: EngineConfig = first.config
        self.tokenizer: Tokenizer | None = first.tokenizer
        self.prompts = first.prompts
        cache = self.config.cache
        num_blocks = first.executor.num_blocks if cache.enable_prefix_caching else 0
        self._router = Router(len(self.engines), cache.block_size, num_blocks)
        self._where: dict[str, LLMEngine] = {}  # by the caller's id, until the request has ended

    @property
    def has_requests(self) -> bool:
        """Whether there is work left."""
        return any(engine.has_requests for engine in self.engines)

    def add_request(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        *,
        priority: int = 0,
        client_id: str = "",
        cache_salt: str | None = None,
    ) -> RequestHandle:
        """Submit a prompt to the replica that the router chooses; see `LLMEngine.add_request`."""
        if request_id in self._where:
            raise InvalidRequestError(f"request_id={request_id!r} still runs: choose another")
        read = self.prompts.read(prompt, params)
        keys = () if cache_salt is None else (cache_salt,)
        request = Request(str(request_id), list(read.token_ids), params, extra_keys=keys)
        loads = [self._load(engine, params.n) for engine in self.engines]
        chosen = self._router.choose(loads, request)
        handle = self.engines[chosen].add_request(
            request_id,
            read,
            params,
            priority=priority,
            client_id=client_id,
            cache_salt=cache_salt,
        )
        self._where[request_id] = self.engines[chosen]
        return handle

    def _load(self, engine: LLMEngine, num_more: int) -> Load:
        """Return what an engine has to do, of which so many more sequences are wanted."""
        held = engine.unfinished
        is_full = len(held) + num_more > self.config.scheduling.max_num_seqs
        return Load(sum(request.num_tokens for request in held), is_full)

    def abort_request(self, request_id: str) -> RequestOutput | None:
        """End a request early; unknown ids are ignored."""
        engine = self._where.pop(request_id, None)
        return None if engine is None else engine.abort_request(request_id)

    def step(self) -> list[RequestOutput]:
        """Run a step of the replicas whose next one has ended; return what has grown."""
        return [handle.snapshot() for handle in self.advance()]

    @uninterrupted()
    def advance(self) -> list[RequestHandle]:
        """Run a step of the replicas whose next one has ended; return what has grown, uncopied."""
        busy = [engine for engine in self.engines if engine.has_requests]
        for engine in busy:
            engine.queue_steps()
        ready: list[LLMEngine] = []
        while busy and not ready:
            ready = [engine for engine in busy if engine.is_ahead]
            if not ready:
                time.sleep(PAUSE)
        grown = [handle for engine in ready for handle in engine.advance()]
        for handle in grown:
            if handle.finished:
                self._where.pop(handle.request_id, None)
        return grown

    def shutdown(self) -> None:
        """Withdraw every request and let go of the devices; no step may follow."""
        self._where.clear()
        for engine in self.engines:
            engine.shutdown()


def replica_configs(config: EngineConfig) -> list[EngineConfig]:
    """Return each replica's configuration: on GPUs, each begins behind the one before it."""
    device, parallel = config.model.device, config.parallel
    if device.type == "cpu" or parallel.distributed_executor_backend == "lockstep":
        return [config] * parallel.data_parallel_size
    firsts = [
        torch.device("cuda", (device.index or 0) + replica * parallel.num_ranks)
        for replica in range(parallel.data_parallel_size)
    ]
    return [replace(config, model=replace(config.model, device=first)) for first in firsts]
