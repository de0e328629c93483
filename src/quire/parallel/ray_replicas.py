"""`RayReplicas`: replicas of an engine as actors of Ray, on whichever machines have room for them.

`data_parallel_size` starts replicas on one machine, by processes of quire's own. Ray (Moritz et al.
2018) knows the machines of a cluster: it places each replica where as many GPUs are free as it has
ranks, and starts one that died again. Where a prompt goes is `quire.parallel.router`'s business
here as there. See the page "Stages, rings, machines".
"""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from quire.async_engine import AsyncEngine
from quire.config import EngineConfig
from quire.defaults import default_sampling_params
from quire.errors import InvalidRequestError, QuireError
from quire.models.config import ModelConfig
from quire.models.loader import resolve_checkpoint
from quire.option_checks import require_counts
from quire.outputs import RequestOutput
from quire.parallel.options import ParallelOptions
from quire.parallel.router import Load, Router
from quire.prompts import Prompt, PromptReader
from quire.request import Request
from quire.sampling.params import SamplingParams
from quire.tokenizer import Tokenizer, load_tokenizer

MOST_CALLS = 10_000  # of one actor at once: streams of requests, and what withdraws them


class RayReplicas:
    """Serves requests as they come, by replicas that are actors of Ray.

        async with RayReplicas("quire-mini", num_replicas=2) as replicas:
            async for output in replicas.generate("def fib(n):", SamplingParams(max_tokens=32)):
                print(output.outputs[0].text)

    The cluster is the one that `ray.init` has joined before, else one of this machine alone. quire
    and the checkpoint must be on every machine of it.

    Args:
        model: a shipped model's name, a checkpoint folder or a hub name.
        num_replicas: engines that each have all of the model.
        num_gpus: of each replica; by default one a rank where the cluster has GPUs and `device`
            is not "cpu".
        max_restarts: how often Ray starts a replica again that has died. Its requests are lost.
        options: those of `LLM`, the same for each replica; `data_parallel_size` stays 1.

    Raises:
        QuireError: Ray is not installed; an impossible number; a replica cannot be made.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        num_replicas: int,
        num_gpus: int | None = None,
        max_restarts: int = 0,
        **options: Any,
    ) -> None:
        self._ray = _import_ray()
        self.num_replicas, self.max_restarts = num_replicas, max_restarts
        require_counts(self, "num_replicas")
        require_counts(self, "max_restarts", least=0)
        if options.get("data_parallel_size", 1) != 1:
            raise QuireError(
                f"data_parallel_size={options['data_parallel_size']} with RayReplicas: "
                "num_replicas says how many there are; leave data_parallel_size out"
            )
        folder = resolve_checkpoint(model)
        if num_gpus is None:
            num_gpus = self._gpus_of_a_replica(options)
        make = self._ray.remote(Replica).options(
            num_gpus=num_gpus, max_restarts=max_restarts, max_concurrency=MOST_CALLS
        )
        self._actors = [make.remote(model, options) for _ in range(num_replicas)]
        try:
            told = self._ray.get([actor.tell.remote() for actor in self._actors])
        except BaseException as error:
            self._kill()
            raise self._translated(error) from None
        config: EngineConfig = told[0][0]
        self._default_params = default_sampling_params(folder, "auto")
        tokenizer = load_tokenizer(folder)
        self._prompts = PromptReader(
            None if tokenizer is None else Tokenizer(tokenizer),
            ModelConfig.from_folder(folder),
            config.model.max_model_len,
        )
        num_blocks = min(number for _, number in told) if config.cache.enable_prefix_caching else 0
        self._router = Router(num_replicas, config.cache.block_size, num_blocks)
        self._max_num_seqs = config.scheduling.max_num_seqs
        # By the request's id, what it has of each replica; None for a replica that is lost.
        self._running: list[dict[str, Held] | None] = [{} for _ in range(num_replicas)]

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        **options: Any,
    ) -> AsyncIterator[RequestOutput]:
        """Complete a prompt, yielding its `RequestOutput` each time it has grown.

        As `AsyncEngine.generate`, by the replica with the least to do before and for it. Leaving
        the loop withdraws the request.

        Raises:
            InvalidRequestError: the request cannot be served.
            QuireError: its replica has died, and the request with it; all have, or were closed.
        """
        params = self._default_params if sampling_params is None else sampling_params
        name = str(uuid.uuid4()) if request_id is None else request_id
        read = await asyncio.to_thread(self._prompts.read, prompt, params)
        if any(name in (running or ()) for running in self._running):
            raise InvalidRequestError(f"request_id={name!r} still runs: choose another")
        salt = options.get("cache_salt")
        keys = () if salt is None else (salt,)
        chosen = self._choose(Request(name, list(read.token_ids), params, extra_keys=keys))
        actor, running = self._actors[chosen], self._running[chosen]
        assert running is not None
        running[name] = Held(params.n, params.n * len(read.token_ids))
        finished = False
        try:
            # A reader who is behind sees several tokens at once: two outputs wait for it at most.
            ways = {"num_returns": "streaming", "_generator_backpressure_num_objects": 2}
            stream = actor.generate.options(**ways).remote(name, read, params, options)
            async for reference in stream:
                output: RequestOutput = await reference
                finished, running[name] = output.finished, Held.of(output)
                yield output
        except self._ray.exceptions.RayError as error:
            finished = True  # nothing is left to withdraw
            if isinstance(error, self._ray.exceptions.ActorDiedError):
                self._running[chosen] = None
            raise self._translated(error) from None
        finally:
            del running[name]
            if not finished:
                actor.abort.remote(name)

    def abort(self, request_id: str) -> None:
        """Withdraw a request; its stream ends with finish reason "abort". Unknown: ignored."""
        for actor, running in zip(self._actors, self._running, strict=True):
            if running is not None and request_id in running:
                actor.abort.remote(request_id)

    async def close(self) -> None:
        """Withdraw every request and let the replicas go, with their devices."""
        closing = [
            actor.close.remote()
            for actor, running in zip(self._actors, self._running, strict=True)
            if running is not None
        ]
        await asyncio.gather(*closing, return_exceptions=True)  # one may die of it just now
        self._kill()
        self._running = [None] * self.num_replicas

    async def __aenter__(self) -> RayReplicas:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _choose(self, request: Request) -> int:
        if not any(running is not None for running in self._running):
            raise QuireError(
                f"none of {self.num_replicas} replicas is left: make new RayReplicas, perhaps with "
                "max_restarts, so that Ray starts again what has died"
            )
        return self._router.choose(self.loads(request.sampling_params.n), request)

    def loads(self, num_more: int = 1) -> list[Load]:
        """Return what each replica has to do before so many more sequences."""
        loads = []
        for running in self._running:
            if running is None:
                loads.append(Load(math.inf, is_full=True))
                continue
            sequences = sum(held.num_sequences for held in running.values())
            is_full = sequences + num_more > self._max_num_seqs
            loads.append(Load(sum(held.num_tokens for held in running.values()), is_full))
        return loads

    def _gpus_of_a_replica(self, options: dict[str, Any]) -> int:
        """Return a GPU a rank, where there are any."""
        if not self._ray.is_initialized():
            self._ray.init()
        on_cpu = str(options.get("device", "cuda")).startswith("cpu")
        if on_cpu or not self._ray.cluster_resources().get("GPU"):
            return 0
        names = ("tensor_parallel_size", "pipeline_parallel_size")
        return ParallelOptions(**{n: options[n] for n in names if n in options}).num_ranks

    def _kill(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor, no_restart=True)

    def _translated(self, error: BaseException) -> BaseException:
        """Return what an error of Ray's says in quire's terms; any other error as it is."""
        exceptions = self._ray.exceptions
        if isinstance(error, exceptions.RayTaskError) and error.cause is not None:
            cause: BaseException = error.cause
            return cause
        if isinstance(error, exceptions.RayActorError):
            is_back = isinstance(error, exceptions.ActorUnavailableError)
            others = "Ray starts it again" if is_back else "the others go on, if there are any"
            return QuireError(
                f"a replica was lost, and its requests with it; {others}: submit the request once "
                f"more. Ray says: {error}"
            )
        return error


@dataclass(frozen=True)
class Held:
    """What a request has of its replica, as far as its last output tells."""

    num_sequences: int  # that have not ended
    num_tokens: int  # of these, their prompts included

    @classmethod
    def of(cls, output: RequestOutput) -> Held:
        """Read it from an output."""
        ends = [len(c.token_ids) for c in output.outputs if c.finish_reason is None]
        return cls(len(ends), len(ends) * len(output.prompt_token_ids) + sum(ends))


class Replica:
    """An engine of its own in a process that Ray has started; the calls of `AsyncEngine`."""

    def __init__(self, model: str | Path, options: dict[str, Any]) -> None:
        """Load the model. What goes wrong is told when asked: Ray would tell it as text."""
        self._engine: AsyncEngine | None = None
        self._failure: Exception | None = None
        try:
            self._engine = AsyncEngine(model, **options)
        except Exception as error:
            self._failure = error

    @property
    def engine(self) -> AsyncEngine:
        """The engine.

        Raises:
            Exception: what making it raised.
        """
        if self._engine is None:
            assert self._failure is not None
            raise self._failure
        return self._engine

    async def tell(self) -> tuple[EngineConfig, int]:
        """Return how the engine is set, and the blocks of its cache."""
        llm = self.engine.llm
        return llm.config, llm.engine.executor.num_blocks

    async def generate(
        self, request_id: str, prompt: Prompt, params: SamplingParams, options: dict[str, Any]
    ) -> AsyncIterator[RequestOutput]:
        """Stream a request's outputs."""
        outputs = self.engine.generate(prompt, params, request_id=request_id, **options)
        async for output in outputs:
            yield output

    async def abort(self, request_id: str) -> None:
        """Withdraw a request; unknown ids are ignored."""
        self.engine.abort(request_id)

    async def close(self) -> None:
        """Withdraw every request and let go of the devices."""
        await asyncio.to_thread(self.engine.close)


def _import_ray() -> ModuleType:
    """Return the module `ray`, which takes seconds to import.

    Raises:
        QuireError: it is not installed.
    """
    try:
        import ray
    except ImportError:
        raise QuireError(
            "RayReplicas needs Ray, which is not installed: pip install 'quire[ray]', or use "
            "data_parallel_size, which starts replicas on one machine without it"
        ) from None
    module: ModuleType = ray
    return module
