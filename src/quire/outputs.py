"""What `LLM.generate` and `LLM.stream` return; the shapes and names are vLLM's."""

from __future__ import annotations

from dataclasses import dataclass, field

from quire.messages import Logprob


@dataclass
class CompletionOutput:
    """One completion of a prompt.

    `logprobs[i]` maps token ids to the log-probabilities asked for at output token i.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None = None  # "stop", "length", "abort", "error"; None: it runs
    stop_reason: int | str | None = None  # the stop string or token id that ended it
    cumulative_logprob: float | None = None  # nats, with logprobs only
    logprobs: list[dict[int, Logprob]] | None = None


@dataclass
class RequestMetrics:
    """When things happened to a request, in seconds of `time.perf_counter`; what was guessed."""

    arrival_time: float
    token_times: list[float] = field(default_factory=list)  # when each output token was known
    num_draft_tokens: int = 0  # guesses of its tokens that steps have judged (`quire.speculation`)
    num_accepted_tokens: int = 0  # those of them that stood, none behind the output's end

    @property
    def ttft(self) -> float | None:
        """Time to first token, in seconds."""
        return self.token_times[0] - self.arrival_time if self.token_times else None

    @property
    def tpot(self) -> float | None:
        """Mean time per output token after the first, in seconds."""
        if len(self.token_times) < 2:
            return None
        return (self.token_times[-1] - self.token_times[0]) / (len(self.token_times) - 1)

    @property
    def inter_token_latencies(self) -> list[float]:
        """Gaps between successive output tokens, in seconds."""
        return [b - a for a, b in zip(self.token_times, self.token_times[1:], strict=False)]


@dataclass
class RequestOutput:
    """A prompt with its `n` completions.

    `prompt_logprobs[0]` is None: nothing predicts the first token.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    metrics: RequestMetrics | None = None  # of the first completion
