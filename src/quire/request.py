"""`Request`: one sequence on its way through the engine, and the counters that drive it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from quire.detokenizer import Detokenizer
from quire.errors import QuireError
from quire.sampling.params import SamplingParams


class FinishReason(StrEnum):
    """Why a request ended, in the words of the OpenAI API."""

    STOP = "stop"  # an end-of-sequence or stop token, or a stop string
    LENGTH = "length"  # max_tokens, or the model's longest sequence
    ABORT = "abort"  # withdrawn by the caller
    ERROR = "error"  # a step found no token for it; whoever asked for it gets the error


# docs: request begin
@dataclass
class Request:
    """One sequence. Positions are counted from the start of its prompt.

    Invariant: `0 <= num_computed_tokens <= num_tokens + num_placeholders + num_unverified`.
    The keys and values of positions [0, num_computed_tokens) are in the cache, or a step that
    is already queued on the device puts them there; the rest is still to be scheduled.
    Prefill and decode differ in nothing but how many those are.
    """

    request_id: str
    prompt_token_ids: list[int]
    sampling_params: SamplingParams
    eos_token_ids: tuple[int, ...] = ()
    arrival_time: float = field(default_factory=time.perf_counter)  # seconds
    priority: int = 0  # lower runs first, where the policy looks at it
    client_id: str = ""  # whom a fair policy counts the tokens for
    extra_keys: tuple[str, ...] = ()  # cached blocks are shared only among equal ones
    parent_id: str | None = None  # sample 0 of the same prompt, whose blocks it may share
    seed: int = 0  # of its draws; the engine gives one to a request that asked for none
    output_token_ids: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_placeholders: int = 0  # sampled by queued steps; the host does not know them yet
    num_draft_tokens: int = 0  # proposed for the positions that follow; no step has them yet
    num_unverified: int = 0  # drafts in queued steps, which say how many of them are true
    num_judged_drafts: int = 0  # in all steps so far, and how many of them became output
    num_accepted_drafts: int = 0
    finish_reason: FinishReason | None = None
    detokenizer: Detokenizer | None = None  # its text as it grows; None: nobody reads it

    @property
    def num_tokens(self) -> int:
        """Tokens known so far: prompt and output."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def num_unscheduled_tokens(self) -> int:
        """Positions that no step computes yet, if all drafts in queued steps are true."""
        return self.num_known_unscheduled + self.num_draft_tokens

    @property
    def num_known_unscheduled(self) -> int:
        """Of the positions that no step computes yet, those that hold no drafts."""
        num_said = self.num_tokens + self.num_placeholders + self.num_unverified
        return num_said - self.num_computed_tokens

    # docs: request end

    def forget_computed(self) -> None:
        """Begin anew: what was computed is lost, what was said is not."""
        self.num_computed_tokens = self.num_placeholders = 0
        self.num_draft_tokens = self.num_unverified = 0

    def accept(self, token_ids: Sequence[int], num_drafts: int, max_model_len: int) -> None:
        """Take what a step that held `num_drafts` drafts chose: 1 … 1 + num_drafts tokens.

        The end may lie among them. The step computed a position for each draft: those of
        rejected ones, and those behind the end, count as computed no more.

        Raises:
            QuireError: there are no tokens, or more than the step had positions for.
        """
        if not 1 <= len(token_ids) <= 1 + num_drafts:
            raise QuireError(
                f"a step gave {len(token_ids)} tokens for request {self.request_id!r}, whose "
                f"entry held {num_drafts} drafts: it must give 1 to {1 + num_drafts}"
            )
        self.num_placeholders -= 1
        self.num_unverified -= num_drafts
        self.num_judged_drafts += num_drafts
        if self.sampling_params.output_limit == 0:  # only its prompt was to be scored
            self.finish_reason = FinishReason.LENGTH
        num_kept = 0
        while num_kept < len(token_ids) and self.finish_reason is None:
            self.append_output(token_ids[num_kept], max_model_len)
            num_kept += 1
        self.num_accepted_drafts += min(num_kept, len(token_ids) - 1)
        self.num_computed_tokens -= 1 + num_drafts - num_kept

    def append_output(self, token_id: int, max_model_len: int) -> None:
        """Add a chosen token and find out whether it is the last.

        A stop string counts before the length: the token that fills the one may complete the
        other.
        """
        self.output_token_ids.append(token_id)
        params = self.sampling_params
        ends = () if params.ignore_eos else self.eos_token_ids
        if token_id in ends or token_id in params.stop_token_ids:
            self.finish_reason = FinishReason.STOP
        elif len(self.output_token_ids) >= params.output_limit or self.num_tokens >= max_model_len:
            self.finish_reason = FinishReason.LENGTH
        if self.detokenizer is not None:
            self._extend_text(self.detokenizer, token_id)

    def _extend_text(self, detokenizer: Detokenizer, token_id: int) -> None:
        # The token that ended the output is returned as an id but not as text, unless asked for.
        with_stop = self.sampling_params.include_stop_str_in_output
        if with_stop or self.finish_reason is not FinishReason.STOP:
            detokenizer.append(token_id)
        if self.finish_reason is not None:
            detokenizer.finish()
        if detokenizer.stopped_by is not None:
            self.finish_reason = FinishReason.STOP
