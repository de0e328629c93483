"""What `LLM.generate` and `LLM.stream` return; the shapes and names are vLLM's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, TypeVar, overload

from quire.messages import Logprob

T = TypeVar("T")


class Prefix(Sequence[T], Generic[T]):
    """The entries of a list that only grows, as they were when this was made.

    Making one copies nothing, however long the list is: a stream of n tokens hands out n
    outputs. It equals a list of the same entries, and its slices, sums and pickles are lists;
    `list(prefix)` is a copy, for what wants a list itself (`json.dumps`).
    """

    __slots__ = ("_entries", "_length")
    __hash__ = None  # type: ignore[assignment]  # as a list

    def __init__(self, entries: list[T]) -> None:
        """Take all of `entries`; nobody may change or remove them afterwards."""
        self._entries, self._length = entries, len(entries)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        places = range(self._length)[index]
        if isinstance(places, range):
            return [self._entries[place] for place in places]
        return self._entries[places]

    def __iter__(self) -> Iterator[T]:
        return islice(self._entries, self._length)

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, list | Prefix) else NotImplemented

    def __add__(self, other: Sequence[T]) -> list[T]:
        return [*self, *other]

    def __radd__(self, other: Sequence[T]) -> list[T]:
        return [*other, *self]

    def __repr__(self) -> str:
        return repr(list(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


@dataclass
class CompletionOutput:
    """One completion of a prompt.

    `logprobs[i]` maps token ids to the log-probabilities asked for at output token i. While the
    completion grows, `token_ids` and `logprobs` are `Prefix`es; of one that has ended, lists.
    """

    index: int
    text: str
    token_ids: Sequence[int]
    finish_reason: str | None = None  # "stop", "length", "abort", "error"; None: it runs
    stop_reason: int | str | None = None  # the stop string or token id that ended it
    cumulative_logprob: float | None = None  # nats, with logprobs only
    logprobs: Sequence[dict[int, Logprob]] | None = None


@dataclass
class RequestMetrics:
    """When things happened to a request, in seconds of `time.perf_counter`; what was guessed."""

    arrival_time: float
    token_times: Sequence[float] = field(default_factory=list)  # when each token was known
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

    `prompt_logprobs[0]` is None: nothing predicts the first token. `prompt_token_ids` and
    `prompt_logprobs` are `Prefix`es until all completions have ended, lists then.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: Sequence[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: Sequence[dict[int, Logprob] | None] | None = None
    metrics: RequestMetrics | None = None  # of the first completion
