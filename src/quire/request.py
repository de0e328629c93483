"""`Request`: one sequence on its way through the engine, and the counters that drive it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import StrEnum

from quire.sampling.params import SamplingParams


class FinishReason(StrEnum):
    """Why a request ended, in the words of the OpenAI API."""

    STOP = "stop"  # an end-of-sequence or stop token, or a stop string
    LENGTH = "length"  # max_tokens, or the model's longest sequence
    ABORT = "abort"  # withdrawn by the caller


# docs: request begin
@dataclass
class Request:
    """One sequence. Positions are counted from the start of its prompt.

    Invariant: `0 <= num_computed_tokens <= num_tokens + num_placeholders`. The keys and
    values of positions [0, num_computed_tokens) are in the cache, or a step that is already
    queued on the device puts them there; the rest is still to be scheduled. Prefill and
    decode differ in nothing but how many those are.
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
    num_placeholders: int = 0  # sampled by a queued step; the host does not know them yet
    finish_reason: FinishReason | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens known so far: prompt and output."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def num_unscheduled_tokens(self) -> int:
        """Positions that no step computes yet."""
        return self.num_tokens + self.num_placeholders - self.num_computed_tokens

    # docs: request end

    def append_output(self, token_id: int, max_model_len: int) -> None:
        """Add a sampled token and find out whether it is the last."""
        self.output_token_ids.append(token_id)
        params = self.sampling_params
        ends = () if params.ignore_eos else self.eos_token_ids
        if token_id in ends or token_id in params.stop_token_ids:
            self.finish_reason = FinishReason.STOP
        elif len(self.output_token_ids) >= params.max_tokens or self.num_tokens >= max_model_len:
            self.finish_reason = FinishReason.LENGTH
