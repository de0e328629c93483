"""`PendingStep`: a step that was queued on the device, and how its tokens come back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import accumulate, takewhile

import torch
from torch import Tensor

from quire.kernels.sampling import NO_TOKEN
from quire.messages import Logprob, PromptLogprobs, ScheduledEntry, SchedulerOutput, StepResult
from quire.sampling.sampler import SamplerOutput, TokenLogprobs
from quire.speculation.drafting import Drafting


@dataclass
class PromptScores:
    """Log-probabilities of prompt tokens [start, start + n) of one request, on the device."""

    start: int
    values: TokenLogprobs
    token_ids: Tensor  # int64 [n]
    num_top: int


@dataclass
class PendingStep:
    """What a queued step will have computed. `wait` is where host and device meet."""

    output: SchedulerOutput
    sampling: list[ScheduledEntry] = field(default_factory=list)  # who chose a token, in order
    sampled: SamplerOutput | None = None  # on the host once `done` has passed
    check: Callable[[SamplerOutput], None] = lambda sampled: None  # raises for impossible values
    drafting: Drafting | None = None  # guesses what follows, once the tokens are known
    num_logprobs: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)  # why a request has no token
    prompt_scores: dict[str, PromptScores] = field(default_factory=dict)
    done: torch.cuda.Event | None = None  # None on a CPU

    @property
    def first_rows(self) -> list[int]:
        """Where each request's rows of logits begin, and after them all: R + 1 numbers."""
        counts = [1 + entry.num_draft_tokens for entry in self.sampling]
        return [0, *accumulate(counts)]

    @property
    def is_done(self) -> bool:
        """Whether the device has got so far."""
        return self.done is None or self.done.query()

    def keep(self) -> None:
        """Copy the tokens of a step that is done out of the buffer that steps take in turn."""
        if self.sampled is not None:
            counts = self.sampled.num_accepted
            self.sampled = replace(
                self.sampled,
                tokens=self.sampled.tokens.clone(),
                num_accepted=None if counts is None else counts.clone(),
            )

    def wait(self) -> StepResult:
        """Block until the step is done and return what it chose.

        Raises:
            QuireError: the sampler's numbers are impossible (`check_values`).
        """
        if self.done is not None:
            self.done.synchronize()
        token_ids: dict[str, list[int]] = {}
        logprobs: dict[str, list[dict[int, Logprob]]] = {}
        failures: dict[str, str] = {}
        if self.sampled is not None:
            self.check(self.sampled)
            tokens = self.sampled.tokens.tolist()
            accepted = self.sampled.num_accepted
            counts = [1] * len(tokens) if accepted is None else accepted.tolist()
            for entry, row, count in zip(self.sampling, tokens, counts, strict=True):
                chosen = list(takewhile(lambda token: token != NO_TOKEN, row[:count]))
                token_ids[entry.request_id] = chosen
                # A row without a token behind others may lie behind the text's end; if it does
                # not, it is the first of the next step.
                if not chosen:
                    failures[entry.request_id] = self.reasons.get(
                        entry.request_id, _no_token(entry.request_id, self.output.step)
                    )
            if self.sampled.logprobs is not None:
                logprobs = self._read_logprobs(self.sampled.logprobs, token_ids)
        prompt_logprobs = {}
        for request_id, scores in self.prompt_scores.items():
            prompt_logprobs[request_id] = _read_scores(scores)
            if any(math.isnan(value) for value in scores.values.chosen.tolist()):
                failures[request_id] = _no_scores(request_id, self.output.step, scores.start)
        drafting, most = self.drafting, self.output.num_guesses
        drafts = {} if drafting is None else drafting.propose(self.sampling, token_ids, most)
        return StepResult(self.output.step, token_ids, logprobs, prompt_logprobs, failures, drafts)

    def _read_logprobs(
        self, values: TokenLogprobs, token_ids: dict[str, list[int]]
    ) -> dict[str, list[dict[int, Logprob]]]:
        """Return a row a token of each request that asked for them."""
        chosen: list[int] = []  # of each row of logits; nothing was chosen of a rejected draft's
        for entry in self.sampling:
            own = token_ids[entry.request_id]
            chosen += own + [0] * (1 + entry.num_draft_tokens - len(own))
        rows = _logprob_rows(values, chosen)
        return {
            entry.request_id: [
                _first(row, self.num_logprobs[entry.request_id])
                for row in rows[begin : begin + len(token_ids[entry.request_id])]
            ]
            for entry, begin in zip(self.sampling, self.first_rows, strict=False)
            if entry.request_id in self.num_logprobs
        }


_REMEDY = (
    "In float16 a model may overflow: load it with dtype='bfloat16' or 'float32'. Otherwise look "
    "for NaN in the checkpoint"
)


def _no_token(request_id: str, step: int) -> str:
    return (
        f"request {request_id!r} has no next token in step {step}: its logits hold NaN or "
        f"infinity, or every token is forbidden. {_REMEDY}, or allow more tokens "
        "(allowed_token_ids, bad_words, min_tokens, logits_processors)"
    )


def _no_scores(request_id: str, step: int, start: int) -> str:
    return (
        f"request {request_id!r} has no log-probabilities for its prompt from position {start} on "
        f"in step {step}: the logits hold NaN or infinity. {_REMEDY}"
    )


def _read_scores(scores: PromptScores) -> PromptLogprobs:
    rows = _logprob_rows(scores.values, scores.token_ids.tolist())
    return PromptLogprobs(scores.start, [_first(row, scores.num_top) for row in rows])


def _logprob_rows(values: TokenLogprobs, token_ids: list[int]) -> list[dict[int, Logprob]]:
    """Return a dict a row: the chosen token first, then the most probable ones by rank."""
    chosen, ranks = values.chosen.tolist(), values.rank.tolist()
    top_ids, top_values = values.top_ids.tolist(), values.top_values.tolist()
    rows = []
    for i, token_id in enumerate(token_ids):
        row = {token_id: Logprob(chosen[i], ranks[i])}
        for rank, (other, value) in enumerate(zip(top_ids[i], top_values[i], strict=True), 1):
            row.setdefault(other, Logprob(value, rank))
        rows.append(row)
    return rows


def _first(row: dict[int, Logprob], num_top: int) -> dict[int, Logprob]:
    """Keep the chosen token and the `num_top` most probable ones."""
    chosen = next(iter(row))
    return {k: v for k, v in row.items() if k == chosen or v.rank <= num_top}
