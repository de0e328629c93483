"""`LLMEngine`: the step loop. Requests go in, `RequestOutput`s come out.

Request → Scheduler.schedule() → SchedulerOutput → ModelRunner.execute() → PendingStep
        → .wait() → StepResult → Scheduler.update() → RequestOutput

With overlap, a step is scheduled and queued before the one ahead of it is waited for: the
device never waits for the host. Waiting at once is the same loop with one step in flight.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from quire.config import EngineConfig
from quire.detokenizer import Detokenizer, Tokenizer
from quire.errors import InvalidRequestError, QuireError
from quire.messages import Logprob, PromptLogprobs, SchedulerOutput, StepResult
from quire.models.config import ModelConfig
from quire.outputs import CompletionOutput, RequestMetrics, RequestOutput
from quire.prompts import Prompt, PromptReader
from quire.request import FinishReason, Request
from quire.runner.model_runner import ModelRunner
from quire.runner.pending import PendingStep
from quire.sampling.params import SamplingParams
from quire.sampling.resolve import resolve
from quire.scheduler import Scheduler
from quire.trace import Trace


@dataclass
class _Sequence:
    """A request with what its caller sees of it."""

    request: Request
    completion: CompletionOutput
    metrics: RequestMetrics
    detokenizer: Detokenizer | None


@dataclass
class _Parent:
    """What a caller submitted: a prompt and its n sequences."""

    output: RequestOutput
    sequences: list[_Sequence] = field(default_factory=list)


class LLMEngine:
    """Drives scheduler and runner, and turns tokens into text.

    It holds no tensors and makes no decision; those belong to the runner and the
    scheduler.
    """

    def __init__(
        self,
        config: EngineConfig,
        model_config: ModelConfig,
        scheduler: Scheduler,
        runner: ModelRunner,
        tokenizer: Tokenizer | None,
        trace: Trace | None = None,
    ) -> None:
        """`tokenizer` may be None: the engine then speaks token ids only."""
        self.config = config
        self.model_config = model_config
        self.tokenizer = tokenizer
        self._prompts = PromptReader(tokenizer, model_config, config.max_model_len)
        self.trace = trace
        self._scheduler = scheduler
        self._runner = runner
        self._parents: dict[str, _Parent] = {}  # by parent id
        self._sequences: dict[str, tuple[_Parent, _Sequence]] = {}  # by request id
        self._in_flight: deque[tuple[PendingStep, float]] = deque()  # with when it was scheduled

    @property
    def has_requests(self) -> bool:
        """Whether there is work left."""
        return bool(self._parents)

    def add_request(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        *,
        priority: int = 0,
        client_id: str = "",
        cache_salt: str | None = None,
    ) -> RequestOutput:
        """Submit a prompt (`quire.prompts.Prompt`); return its output, which steps let grow.

        Args:
            priority: lower runs first, under the policy "priority".
            client_id: whom the policy "fair" counts the work for.
            cache_salt: share cached blocks only with requests of the same salt.

        Raises:
            InvalidRequestError: the prompt is empty, too long, or has a token id outside
                the vocabulary; text was given, or a stop string, without a tokenizer; a
                parameter that this model cannot serve; a request of that id still runs.
        """
        if request_id in self._parents:
            raise InvalidRequestError(f"request_id={request_id!r} still runs: choose another")
        tokenized = self._prompts.read(prompt, params)
        token_ids = tokenized.token_ids
        params = resolve(
            params,
            self.tokenizer,
            num_prompt_tokens=len(token_ids),
            max_model_len=self.config.max_model_len,
            vocab_size=self.model_config.vocab_size,
        )
        parent = _Parent(
            RequestOutput(
                request_id,
                tokenized.text,
                token_ids,
                outputs=[],
                finished=False,
                prompt_logprobs=None if params.prompt_logprobs is None else [None] * len(token_ids),
            )
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
            self._scheduler.add(request)
        self._parents[request_id] = parent
        for index, request in enumerate(requests):
            completion = CompletionOutput(index, "", request.output_token_ids)
            if params.logprobs is not None:
                completion.logprobs, completion.cumulative_logprob = [], 0.0
            detokenizer = None
            if self.tokenizer is not None:
                detokenizer = Detokenizer(self.tokenizer, params, token_ids)
            sequence = _Sequence(
                request, completion, RequestMetrics(request.arrival_time), detokenizer
            )
            parent.sequences.append(sequence)
            parent.output.outputs.append(completion)
            self._sequences[request.request_id] = (parent, sequence)
        parent.output.metrics = parent.sequences[0].metrics
        return parent.output

    def abort_request(self, request_id: str) -> RequestOutput | None:
        """Withdraw a prompt and return what it has; an unknown or finished id gives None."""
        parent = self._parents.pop(request_id, None)
        if parent is None:
            return None
        for sequence in parent.sequences:
            if self._sequences.pop(sequence.request.request_id, None) is not None:
                self._scheduler.abort(sequence.request.request_id)
                sequence.completion.finish_reason = FinishReason.ABORT
        parent.output.finished = True
        if not self.has_requests:
            self._drain()
        return parent.output

    def step(self) -> list[RequestOutput]:
        """Run one step; return the prompts that got a token, as they now stand.

        Raises:
            QuireError: nothing was scheduled though requests wait, so no step ever will.
        """
        while len(self._in_flight) < self.config.max_in_flight:
            begin = time.perf_counter()
            scheduled = self._scheduler.schedule()
            with self._retracting(scheduled):
                self._in_flight.append((self._runner.execute(scheduled), begin))
            if not scheduled.entries:
                break
        pending, begin = self._in_flight.popleft()
        scheduled = pending.output
        with self._retracting(scheduled):
            result = pending.wait()
        advanced = self._scheduler.update(scheduled, result)
        end = time.perf_counter()
        queued = [scheduled, *(step.output for step, _ in self._in_flight)]
        if self.has_requests and not any(output.entries for output in queued):
            raise QuireError(
                f"{type(self._scheduler).__name__} scheduled nothing while "
                f"{len(self._sequences)} requests wait: the KV cache has no room for the next "
                "one, or the scheduler has lost them"
            )
        if self.trace is not None:
            self.trace.record(scheduled, result, begin, end)
        outputs = self._collect(advanced, result, end)
        if not self.has_requests:
            self._drain()
        return outputs

    @contextmanager
    def _retracting(self, scheduled: SchedulerOutput) -> Iterator[None]:
        """An error or interrupt loses a step; every request in it must compute it again."""
        try:
            yield
        except BaseException:
            self._scheduler.retract(scheduled)
            self._runner.settle(pending for pending, _ in self._in_flight)
            raise

    def _drain(self) -> None:
        """Wait for steps that were queued for requests which have ended meanwhile."""
        while self._in_flight:
            pending, _ = self._in_flight.popleft()
            self._scheduler.update(pending.output, pending.wait())

    def _collect(
        self, advanced: list[Request], result: StepResult, now: float
    ) -> list[RequestOutput]:
        for request_id, scores in result.prompt_logprobs.items():
            self._add_prompt_logprobs(request_id, scores)
        changed: dict[str, RequestOutput] = {}
        for request in advanced:
            if request.request_id not in self._sequences:
                continue
            parent, sequence = self._sequences[request.request_id]
            num_new = len(result.token_ids.get(request.request_id, ()))
            self._extend(sequence, result.logprobs.get(request.request_id, []))
            sequence.metrics.token_times += [now] * num_new
            if request.finish_reason is not None:
                self._finish(parent, sequence)
            changed[parent.output.request_id] = parent.output
        return list(changed.values())

    def _extend(self, sequence: _Sequence, logprobs: list[dict[int, Logprob]]) -> None:
        """Add a step's tokens to the text and the log-probabilities of a completion."""
        request, completion = sequence.request, sequence.completion
        detokenizer = sequence.detokenizer
        if completion.logprobs is not None:
            completion.logprobs += logprobs
            chosen = request.output_token_ids[-len(logprobs) :]
            total = sum(row[i].logprob for row, i in zip(logprobs, chosen, strict=True))
            completion.cumulative_logprob = (completion.cumulative_logprob or 0.0) + total
        if detokenizer is None:
            return
        token_id = request.output_token_ids[-1]
        # The token that ended the output is returned as an id but not as text.
        if request.finish_reason is not FinishReason.STOP:
            detokenizer.append(token_id)
        if request.finish_reason is not None:
            detokenizer.finish()
        if detokenizer.stopped_by is not None:
            self._scheduler.abort(request.request_id, FinishReason.STOP)
            request.finish_reason = FinishReason.STOP
            completion.stop_reason = detokenizer.stopped_by
        completion.text = detokenizer.ready

    def _finish(self, parent: _Parent, sequence: _Sequence) -> None:
        request, completion = sequence.request, sequence.completion
        completion.finish_reason = str(request.finish_reason)
        last = request.output_token_ids[-1]
        if completion.stop_reason is None and last in request.sampling_params.stop_token_ids:
            completion.stop_reason = last
        del self._sequences[request.request_id]
        if all(s.completion.finish_reason is not None for s in parent.sequences):
            parent.output.finished = True
            del self._parents[parent.output.request_id]

    def _add_prompt_logprobs(self, request_id: str, scores: PromptLogprobs) -> None:
        """Fill in what a step scored; a request that was preempted scores positions twice."""
        if request_id not in self._sequences:
            return
        parent, sequence = self._sequences[request_id]
        rows = parent.output.prompt_logprobs
        if sequence.completion.index == 0 and rows is not None:
            rows[scores.start : scores.start + len(scores.rows)] = scores.rows


def seed_of_sample(params: SamplingParams, index: int) -> int:
    """Return the seed of sample `index`: its own, so that no two samples draw alike.

    Sample 0 keeps the seed that the caller gave. An odd step walks through all 64-bit values
    before it repeats one.
    """
    if params.seed is None:
        return secrets.randbits(63)
    return (params.seed + index * 0x9E37_79B9_7F4A_7C15 + 2**63) % 2**64 - 2**63
