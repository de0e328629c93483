"""`RequestHandle`: a submitted prompt while it runs, and what it has said at any moment.

A `RequestOutput` never changes once it is given away: a reader who is slow, or in another
thread, finds in it what was true when it was made. What grows is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from quire.errors import QuireError
from quire.messages import Logprob, PromptLogprobs
from quire.outputs import CompletionOutput, Prefix, RequestMetrics, RequestOutput
from quire.request import FinishReason, Request


@dataclass
class SequenceProgress:
    """One of a prompt's n sequences: the request, and what its steps brought beside tokens.

    `token_times` and, where log-probabilities were asked for, `logprobs` have an entry for
    each of the request's output tokens.
    """

    index: int
    request: Request
    logprobs: list[dict[int, Logprob]] | None
    cumulative_logprob: float = 0.0
    token_times: list[float] = field(default_factory=list)
    last: CompletionOutput | None = None  # once it has ended

    def take(self, logprobs: Sequence[dict[int, Logprob]], now: float) -> None:
        """Note what belongs to the tokens that the request got in a step at time `now`.

        The step may have chosen more tokens than the request kept: its end lay among them.
        """
        new = self.request.output_token_ids[len(self.token_times) :]
        self.token_times += [now] * len(new)
        if self.logprobs is not None:
            kept = logprobs[: len(new)]
            self.logprobs += kept
            for row, token_id in zip(kept, new, strict=True):  # in turn: the sum rounds alike
                self.cumulative_logprob += row[token_id].logprob

    def snapshot(self) -> CompletionOutput:
        """Return what the sequence has said; only one that has ended is copied, once."""
        if self.last is not None:
            return self.last
        request, detokenizer = self.request, self.request.detokenizer
        reason = request.finish_reason
        taken = Prefix if reason is None else list
        completion = CompletionOutput(
            index=self.index,
            text="" if detokenizer is None else detokenizer.ready,
            token_ids=taken(request.output_token_ids),
            finish_reason=None if reason is None else str(reason),
            stop_reason=_stop_reason(request),
            cumulative_logprob=None if self.logprobs is None else self.cumulative_logprob,
            logprobs=None if self.logprobs is None else taken(self.logprobs),
        )
        if reason is not None:
            self.last = completion
        return completion


class RequestHandle:
    """What `LLMEngine.add_request` returns: a prompt with its sequences, as steps let them grow."""

    def __init__(
        self,
        request_id: str,
        prompt: str | None,
        prompt_token_ids: list[int],
        requests: Sequence[Request],
    ) -> None:
        """`requests` are the prompt's n sequences, in order."""
        self.request_id = request_id
        self.sequences = [
            SequenceProgress(
                index, request, None if request.sampling_params.logprobs is None else []
            )
            for index, request in enumerate(requests)
        ]
        self.error: QuireError | None = None  # why it ended, if a step found no token for it
        self._by_request = {s.request.request_id: s for s in self.sequences}
        self._num_running = len(self.sequences)
        self._prompt = prompt
        self._prompt_token_ids = list(prompt_token_ids)  # the requests read their own
        wanted = requests[0].sampling_params.prompt_logprobs is not None
        self._prompt_logprobs: list[dict[int, Logprob] | None] | None = (
            [None] * len(prompt_token_ids) if wanted else None
        )

    @property
    def finished(self) -> bool:
        """Whether every sequence has ended."""
        return self._num_running == 0

    @property
    def num_output_tokens(self) -> int:
        """Tokens that all sequences have so far."""
        return sum(len(s.request.output_token_ids) for s in self.sequences)

    def take(self, request: Request, logprobs: Sequence[dict[int, Logprob]], now: float) -> None:
        """Note what a step at time `now` brought one of the sequences beside its tokens."""
        self._by_request[request.request_id].take(logprobs, now)
        self._num_running -= request.finish_reason is not None

    def withdraw(self, request: Request, reason: FinishReason) -> None:
        """End a sequence early; what it has said is all it says."""
        request.finish_reason = reason
        if request.detokenizer is not None:
            request.detokenizer.finish()
        self._num_running -= 1

    def add_prompt_logprobs(self, request_id: str, scores: PromptLogprobs) -> None:
        """Fill in what a step scored; a request that was preempted scores positions twice."""
        is_first = self.sequences[0].request.request_id == request_id
        if self._prompt_logprobs is not None and is_first:
            rows = list(self._prompt_logprobs)  # snapshots have the old list
            rows[scores.start : scores.start + len(scores.rows)] = scores.rows
            self._prompt_logprobs = rows

    def snapshot(self) -> RequestOutput:
        """Return what the prompt's sequences have said so far; later steps do not change it."""
        first = self.sequences[0]
        taken = list if self.finished else Prefix
        return RequestOutput(
            request_id=self.request_id,
            prompt=self._prompt,
            prompt_token_ids=taken(self._prompt_token_ids),
            outputs=[sequence.snapshot() for sequence in self.sequences],
            finished=self.finished,
            prompt_logprobs=self._prompt_logprobs and taken(self._prompt_logprobs),
            metrics=RequestMetrics(
                first.request.arrival_time,
                taken(first.token_times),
                first.request.num_judged_drafts,
                first.request.num_accepted_drafts,
            ),
        )


def _stop_reason(request: Request) -> int | str | None:
    """Return the stop string or stop token that ended a request, if one did."""
    if request.finish_reason is not FinishReason.STOP:
        return None
    if request.detokenizer is not None and request.detokenizer.stopped_by is not None:
        return request.detokenizer.stopped_by
    last = request.output_token_ids[-1]
    return last if last in request.sampling_params.stop_token_ids else None
