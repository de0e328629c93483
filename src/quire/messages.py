"""What the scheduler says to the runner, and what the runner answers.

Plain dataclasses of ids and counts: they can be recorded (`quire.trace`), replayed, and
sent to another process. Their order is the scheduler's, the same on every rank.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from quire.sampling.params import SamplingParams


@dataclass(frozen=True)
class NewRequest:
    """What the runner must know of a request when it is given a row.

    A request that was preempted comes back as a new one: `token_ids` then holds its outputs
    as well.
    """

    request_id: str
    row: int
    token_ids: list[int]  # prompt, and outputs of a resumed request
    num_prompt_tokens: int
    sampling_params: SamplingParams
    seed: int  # of every draw: whoever carries the message out draws the same tokens


@dataclass(slots=True)  # not frozen: that takes four times as long, a request and step
class ScheduledEntry:
    """Compute positions [start, start + num_tokens) of one request in this step.

    Where steps ahead of it still judge drafts of the request, it begins behind the last token
    that is known by then: as many positions before `start` as drafts are rejected.
    """

    request_id: str
    row: int  # the request's row in the runner's tables, its own until it ends
    start: int
    num_tokens: int
    samples: bool  # its last known token is computed, so the step chooses the next
    new_block_ids: tuple[tuple[int, ...], ...] = ()  # per KV group, appended to its table
    num_draft_tokens: int = 0  # of its positions, the last ones: drafts, to be verified
    num_unverified: int = 0  # drafts before `start` that steps ahead of it judge
    # Outputs at its last positions, where the rank that embeds them did not choose them.
    token_ids: tuple[int, ...] = ()

    @property
    def chosen_positions(self) -> range:
        """Positions of the tokens that the step chooses, if it chooses any.

        That is the one behind the entry's last, and each draft's: the model says there what
        it would have chosen.
        """
        end = self.start + self.num_tokens
        return range(end - self.num_draft_tokens, end + 1)


@dataclass(frozen=True)
class Transfer:
    """Copy a block between the cache and host memory (`quire.kv.host`)."""

    group: int  # KV group
    kind: Literal["save", "load"]
    source: int  # save: the block; load: the host's slot
    target: int  # the other one


@dataclass(frozen=True)
class SchedulerOutput:
    """One step's work, and what the scheduler decided on the way."""

    step: int
    entries: tuple[ScheduledEntry, ...]
    new_requests: tuple[NewRequest, ...] = ()
    block_copies: tuple[tuple[tuple[int, int], ...], ...] = ()  # per KV group: (from, to)
    finished_ids: tuple[str, ...] = ()  # ended since the last step: their rows are free
    preempted_ids: tuple[str, ...] = ()  # lost their row and blocks in this step
    hit_tokens: dict[str, int] = field(default_factory=dict)  # of new requests: found cached
    num_free_blocks: int = 0  # after this step's reservations, in the fullest KV group
    finish_reasons: dict[str, str] = field(default_factory=dict)  # of `finished_ids`
    transfers: tuple[Transfer, ...] = ()  # carried out in order, before all else of the step
    num_guesses: int | None = None  # to make behind each request's tokens; None: all there may be

    @property
    def num_tokens(self) -> int:
        """Positions computed in this step."""
        return sum(entry.num_tokens for entry in self.entries)


@dataclass(frozen=True)
class Logprob:
    """Log-probability of one token and its rank, 1 being the most probable."""

    logprob: float
    rank: int
    decoded_token: str | None = None  # the token's text alone; None where nobody reads text


@dataclass(frozen=True)
class PromptLogprobs:
    """Log-probabilities of the prompt's tokens from position `start` on."""

    start: int
    rows: list[dict[int, Logprob]]


@dataclass(frozen=True)
class StepResult:
    """What a step computed, by request id.

    A request whose entry held d drafts gets 1 … 1 + d tokens: the drafts that were right, in
    order, and the token that the model chose behind them.
    """

    step: int
    token_ids: dict[str, list[int]]
    logprobs: dict[str, list[dict[int, Logprob]]] = field(default_factory=dict)  # one a token
    prompt_logprobs: dict[str, PromptLogprobs] = field(default_factory=dict)
    # Requests that have no next token, and why: their logits held none.
    failures: dict[str, str] = field(default_factory=dict)
    # Where the host guesses: drafts in the request's row behind these tokens, for its next step.
    num_draft_tokens: dict[str, int] = field(default_factory=dict)
