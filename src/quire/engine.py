"""`LLMEngine`: the step loop. Requests go in, `RequestOutput`s come out.

Request → Scheduler.schedule() → SchedulerOutput → Executor.execute() → QueuedStep
        → .wait() → StepResult → Scheduler.update() → RequestOutput

With overlap, a step is scheduled and queued before the one ahead of it is waited for: the
device never waits for the host. Waiting at once is the same loop with one step in flight.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from quire.config import EngineConfig
from quire.detokenizer import Detokenizer
from quire.errors import InvalidRequestError, QuireError
from quire.executor import Executor, QueuedStep
from quire.interrupts import uninterrupted
from quire.messages import Logprob, SchedulerOutput, StepResult
from quire.models.config import ModelConfig
from quire.outputs import RequestOutput
from quire.progress import RequestHandle
from quire.prompts import Prompt, PromptReader
from quire.request import FinishReason, Request
from quire.sampling.params import SamplingParams
from quire.sampling.resolve import resolve
from quire.scheduler_interface import Scheduler
from quire.speculation.controller import LengthController, requests_ahead
from quire.tokenizer import Tokenizer
from quire.trace import Trace


class LLMEngine:
    """Drives scheduler and executor, and turns tokens into text.

    It holds no tensors and makes no decision; those belong to the executor and the
    scheduler.
    """

    def __init__(
        self,
        config: EngineConfig,
        model_config: ModelConfig,
        scheduler: Scheduler,
        executor: Executor,
        tokenizer: Tokenizer | None,
        trace: Trace | None = None,
    ) -> None:
        """`tokenizer` may be None: the engine then speaks token ids only."""
        self.config = config
        self.model_config = model_config
        self.tokenizer = tokenizer
        self.prompts = PromptReader(tokenizer, model_config, config.model.max_model_len)
        self.trace = trace
        self._scheduler = scheduler
        self.executor = executor
        self._handles: dict[str, RequestHandle] = {}  # by the caller's id
        self._owners: dict[str, RequestHandle] = {}  # by the id of each sequence that runs
        self._in_flight: deque[tuple[QueuedStep, float]] = deque()  # with when it was scheduled
        # When the last step's tokens were known, if its requests go on; idle time is no step's.
        self._last_end: float | None = None
        self._controller: LengthController | None = None
        if config.speculation is not None and config.speculation.is_adaptive:
            assert executor.round_costs is not None
            self._controller = LengthController(executor.round_costs, config.speculation.choices)

    @property
    def has_requests(self) -> bool:
        """Whether there is work left."""
        return bool(self._handles)

    @property
    def unfinished(self) -> list[Request]:
        """The sequences that have not ended, those of one prompt side by side."""
        sequences = (each for handle in self._handles.values() for each in handle.sequences)
        return [each.request for each in sequences if each.request.finish_reason is None]

    @uninterrupted()
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
        """Submit a prompt (`quire.prompts.Prompt`); its handle shows what steps made of it.

        Args:
            priority: lower runs first, under the policy "priority".
            client_id: whom the policy "fair" counts the work for.
            cache_salt: share cached blocks only with requests of the same salt.

        Raises:
            InvalidRequestError: the prompt is empty, too long, or has a token id outside
                the vocabulary; text was given, or a stop string, without a tokenizer; a
                parameter that this model cannot serve; a request of that id still runs.
        """
        _check_labels(request_id, priority, client_id, cache_salt)
        if request_id in self._handles:
            raise InvalidRequestError(f"request_id={request_id!r} still runs: choose another")
        tokenized = self.prompts.read(prompt, params)
        token_ids = list(tokenized.token_ids)
        params = resolve(
            params,
            self.tokenizer,
            num_prompt_tokens=len(token_ids),
            max_model_len=self.config.model.max_model_len,
            vocab_size=self.model_config.vocab_size,
            num_ranks=self.config.parallel.num_ranks,
        )
        requests = [
            Request(
                f"{request_id}-{index}",
                token_ids,
                params,
                self.model_config.eos_token_ids,
                priority=priority,
                client_id=client_id,
                extra_keys=() if cache_salt is None else (cache_salt,),
                parent_id=None if index == 0 else f"{request_id}-0",
                seed=seed_of_sample(params, index),
            )
            for index in range(params.n)
        ]
        for request in requests:  # a scheduler refuses what can never run
            if self.tokenizer is not None and params.detokenize:
                request.detokenizer = Detokenizer(self.tokenizer, params, token_ids)
            self._scheduler.add(request)
        handle = RequestHandle(request_id, tokenized.text, token_ids, requests)
        self._handles[request_id] = handle
        self._owners |= {sequence.request.request_id: handle for sequence in handle.sequences}
        return handle

    @uninterrupted()
    def abort_request(self, request_id: str) -> RequestOutput | None:
        """Withdraw a prompt and return what it has; an unknown or finished id gives None."""
        handle = self._handles.pop(request_id, None)
        if handle is None:
            return None
        self._withdraw(handle, FinishReason.ABORT)
        if not self.has_requests:
            self._drain()
        return handle.snapshot()

    def shutdown(self) -> None:
        """Withdraw every request and let go of the devices; no step may follow."""
        for request_id in list(self._handles):
            self.abort_request(request_id)
        self.executor.shutdown()

    def _withdraw(self, handle: RequestHandle, reason: FinishReason) -> None:
        """End those of a prompt's sequences that have not ended."""
        for sequence in handle.sequences:
            request = sequence.request
            if self._owners.pop(request.request_id, None) is not None:
                self._scheduler.abort(request.request_id, reason)
                handle.withdraw(request, reason)

    def step(self) -> list[RequestOutput]:
        """Run one step; return the prompts that got a token or failed, as they then stand.

        Raises:
            QuireError: nothing was scheduled though requests wait, so no step ever will.
        """
        return [handle.snapshot() for handle in self.advance()]

    @property
    def is_ahead(self) -> bool:
        """Whether the next step's tokens are known already, so that nobody waits for them."""
        return bool(self._in_flight) and self._in_flight[0][0].is_done

    def queue_steps(self) -> None:
        """Schedule and queue as many steps as may be in flight."""
        while self._may_schedule():
            begin = time.perf_counter()
            scheduled = self._scheduler.schedule()
            if self._controller is not None:
                batch = requests_ahead(scheduled, self.config, lambda: self.unfinished)
                most = self._controller.choose(scheduled, batch)
                scheduled = self._scheduler.guess(scheduled, most)
            with self._retracting(scheduled):
                self._in_flight.append((self.executor.execute(scheduled), begin))
            if not scheduled.entries:
                break

    @uninterrupted()
    def advance(self) -> list[RequestHandle]:
        """Run one step; return the prompts that got a token or failed, uncopied."""
        self.queue_steps()
        pending, begin = self._in_flight.popleft()
        scheduled = pending.output
        with self._retracting(scheduled):
            result = pending.wait()
        failed = self._fail(result.failures)
        advanced = self._scheduler.update(scheduled, result)
        end = time.perf_counter()
        if self._controller is not None:
            since = begin if self._last_end is None else self._last_end
            self._controller.observe(scheduled, result, end - since)
        queued = [scheduled, *(step.output for step, _ in self._in_flight)]
        if self.has_requests and not any(output.entries for output in queued):
            raise QuireError(
                f"{type(self._scheduler).__name__} scheduled nothing while "
                f"{len(self._owners)} requests wait: the KV cache has no room for the next "
                "one, or the scheduler has lost them"
            )
        if self.trace is not None:
            self.trace.record(scheduled, result, begin, end)
        grown = failed + self._collect(advanced, result, end)
        self._last_end = end if self.has_requests else None
        if not self.has_requests:
            self._drain()
        return grown

    def _may_schedule(self) -> bool:
        """Whether the next step can be scheduled before those in flight have been waited for.

        Not behind one that verifies guesses of the host or awaits new ones: it reads the tokens.
        """
        if len(self._in_flight) >= self.config.max_in_flight:
            return False
        speculation = self.config.speculation
        return (speculation is None or speculation.guesses_on_device) or not any(
            step.output.num_guesses != 0 or any(e.num_draft_tokens for e in step.output.entries)
            for step, _ in self._in_flight
            if step.output.entries
        )

    @contextmanager
    def _retracting(self, scheduled: SchedulerOutput) -> Iterator[None]:
        """An error or interrupt loses a step; every request in it must compute it again."""
        try:
            yield
        except BaseException:
            self._scheduler.retract(scheduled)
            self.executor.settle(pending for pending, _ in self._in_flight)
            raise

    def _drain(self) -> None:
        """Wait for steps that were queued for requests which have ended meanwhile."""
        while self._in_flight:
            pending, _ = self._in_flight.popleft()
            self._scheduler.update(pending.output, pending.wait())

    def _fail(self, failures: dict[str, str]) -> list[RequestHandle]:
        """End the prompts that have no next token, and them alone.

        A request that has ended or was withdrawn since loses nothing by it.
        """
        failed = []
        for request_id, reason in failures.items():
            handle = self._owners.get(request_id)
            if handle is not None:
                handle.error = QuireError(reason)
                self._withdraw(handle, FinishReason.ERROR)
                del self._handles[handle.request_id]
                failed.append(handle)
        return failed

    def _collect(
        self, advanced: list[Request], result: StepResult, now: float
    ) -> list[RequestHandle]:
        """Give each request what a step brought it; return the handles of those that grew."""
        for request_id, scores in result.prompt_logprobs.items():
            handle = self._owners.get(request_id)
            if handle is not None:
                rows = self._readable(handle.sequences[0].request, scores.rows)
                handle.add_prompt_logprobs(request_id, replace(scores, rows=rows))
        grown: dict[str, RequestHandle] = {}
        for request in advanced:
            handle = self._owners.get(request.request_id)
            if handle is None:  # withdrawn since
                continue
            rows = self._readable(request, result.logprobs.get(request.request_id, ()))
            handle.take(request, rows, now)
            if request.finish_reason is not None:
                del self._owners[request.request_id]
                if handle.finished:
                    del self._handles[handle.request_id]
            grown[handle.request_id] = handle
        return list(grown.values())

    def _readable(
        self, request: Request, rows: Sequence[dict[int, Logprob]]
    ) -> list[dict[int, Logprob]]:
        """Return log-probabilities with the tokens' texts, if the request's caller reads text."""
        if self.tokenizer is None or not request.sampling_params.detokenize:
            return list(rows)
        return self.tokenizer.with_texts(rows)


def _check_labels(
    request_id: object, priority: object, client_id: object, cache_salt: object
) -> None:
    """Refuse what schedulers and caches could not sort or name by, before anything is changed."""
    for name, value in (("request_id", request_id), ("client_id", client_id)):
        if not isinstance(value, str):
            raise InvalidRequestError(f"{name}={value!r}: must be a string")
    if not isinstance(cache_salt, str | None):
        raise InvalidRequestError(f"cache_salt={cache_salt!r}: must be a string, or None")
    number = isinstance(priority, int | float) and not isinstance(priority, bool)
    if not number or priority != priority:
        raise InvalidRequestError(f"priority={priority!r}: must be a number; lower runs first")


def seed_of_sample(params: SamplingParams, index: int) -> int:
    """Return the seed of sample `index`: its own, so that no two samples draw alike.

    Sample 0 keeps the seed that the caller gave. An odd step walks through all 64-bit values
    before it repeats one.
    """
    if params.seed is None:
        return secrets.randbits(63)
    return (params.seed + index * 0x9E37_79B9_7F4A_7C15 + 2**63) % 2**64 - 2**63
