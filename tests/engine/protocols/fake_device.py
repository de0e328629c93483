"""`FakeDevice`: a runner without a model, which notices whatever a real one would trip over.

A position's "keys and values" are a hash of its token and of what the cache holds at the
position before, and the next token is a hash of the last position: a request's output comes
out right only if every position was computed, once, in its own blocks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fake_cache import FakeCache

from quire.config import EngineConfig
from quire.messages import NewRequest, ScheduledEntry, SchedulerOutput, StepResult
from quire.request import FinishReason, Request
from quire.sampling.params import SamplingParams

EOS = 0
VOCAB_SIZE = 12


@dataclass
class Row:
    """What the device keeps of a request."""

    request_id: str
    token_ids: list[int]
    params: SamplingParams
    limit: int  # tokens it may have
    tables: list[list[int]]
    num_computed: int
    drafts: list[int] = field(default_factory=list)  # proposed behind `token_ids`
    num_places: int = 0  # where a model guesses: positions in its blocks when it did so last


class FakeDevice:
    """Carries out steps in the order they were scheduled, as a device's queue does.

    It proposes up to `most_drafts` drafts a request and step, some right and some wrong, and
    verifies those that the next step has room for. Where a model guesses, by the config, it makes
    as many as a step asks for, and says nothing of them.
    """

    def __init__(self, config: EngineConfig, num_groups: int, most_drafts: int = 0) -> None:
        self.config = config
        self.most_drafts = most_drafts
        self.guesses = config.speculation is not None and config.speculation.guesses_on_device
        self.num_groups = num_groups
        self.cache = FakeCache(num_groups, config.cache.block_size)
        self.rows: dict[int, Row] = {}
        self.last_step = 0

    def execute(self, output: SchedulerOutput) -> StepResult:
        """Check a step, carry it out, and return what it sampled."""
        self.begin(output)
        entries = output.entries
        assert len({entry.request_id for entry in entries}) == len(entries)
        assert output.num_tokens <= self.config.scheduling.max_num_batched_tokens
        assert not (output.preempted_ids and output.new_requests), "nobody is let into a full cache"
        assert {new.request_id for new in output.new_requests} <= {e.request_id for e in entries}
        for new in output.new_requests:
            self.add(new, output.hit_tokens[new.request_id])
        for entry in entries:
            self.extend(entry)
        self.cache.copy(output.block_copies)
        for entry in entries:
            self.write(entry)
        tokens = {entry.request_id: self.sample(entry) for entry in entries if entry.samples}
        drafts = {e.request_id: len(self.rows[e.row].drafts) for e in entries if e.samples}
        if self.guesses:
            drafts = {}
            for entry in entries:
                if entry.samples:
                    self.guess(self.rows[entry.row], output.num_guesses)
        return StepResult(output.step, tokens, num_draft_tokens=drafts)

    def fail(self, output: SchedulerOutput) -> None:
        """Lose a step: the rows of its requests hold nothing of use."""
        self.begin(output)
        self.release(entry.request_id for entry in output.entries)

    def begin(self, output: SchedulerOutput) -> None:
        assert output.step == self.last_step + 1
        self.last_step = output.step
        assert tuple(output.finish_reasons) == output.finished_ids
        self.release((*output.finished_ids, *output.preempted_ids))

    def release(self, request_ids: Iterable[str]) -> None:
        gone = set(request_ids)
        self.rows = {i: row for i, row in self.rows.items() if row.request_id not in gone}

    def add(self, new: NewRequest, num_cached: int) -> None:
        assert 0 <= new.row < self.config.scheduling.max_num_seqs
        assert new.row not in self.rows, f"row {new.row} is not free"
        assert 0 <= num_cached < len(new.token_ids)
        # One that asks for no output samples a token all the same, which is dropped.
        most = new.num_prompt_tokens + max(1, new.sampling_params.output_limit)
        limit = max(min(most, self.config.model.max_model_len), new.num_prompt_tokens + 1)
        tables: list[list[int]] = [[] for _ in range(self.num_groups)]
        self.rows[new.row] = Row(
            new.request_id, list(new.token_ids), new.sampling_params, limit, tables, num_cached
        )

    def extend(self, entry: ScheduledEntry) -> None:
        row = self.rows[entry.row]
        assert row.request_id == entry.request_id, f"row {entry.row} is {row.request_id}'s"
        # It begins where the verdicts of the steps before it say.
        assert 0 <= entry.start - row.num_computed <= entry.num_unverified * self.guesses
        assert entry.num_tokens >= 1, "a query of length zero"
        end = row.num_computed + entry.num_tokens
        num_known = end - entry.num_draft_tokens
        assert num_known <= len(row.token_ids), "a token that nobody has chosen"
        assert entry.samples == (num_known == len(row.token_ids))
        assert 0 <= entry.num_draft_tokens <= len(row.drafts), "drafts that nobody proposed"
        assert entry.samples or entry.num_draft_tokens == 0
        if self.guesses and entry.num_draft_tokens > 0:
            last = len(row.token_ids) - 1 + entry.num_draft_tokens
            assert last <= row.num_places, "a guess that was made without places"
        del row.drafts[entry.num_draft_tokens :]
        assert len(entry.new_block_ids) in (0, self.num_groups)
        for table, ids in zip(row.tables, entry.new_block_ids, strict=False):
            table.extend(ids)
        row.num_computed = end

    def write(self, entry: ScheduledEntry) -> None:
        row = self.rows[entry.row]
        start = row.num_computed - entry.num_tokens
        content = self.cache.read(row.tables, start)[-1] if start else 0
        tokens = row.token_ids + row.drafts
        for position in range(start, row.num_computed):
            content = hash((content, tokens[position]))
            self.cache.write(row.tables, position, content)

    def sample(self, entry: ScheduledEntry) -> list[int]:
        """Return the drafts that are right and the token behind them; propose new ones."""
        row = self.rows[entry.row]
        known = len(row.token_ids)
        contents = contents_of(row.token_ids + row.drafts)
        found = self.cache.read(row.tables, row.num_computed)
        assert found == contents, f"{row.request_id} reads what is not its own"
        chosen = []
        for content, draft in zip(contents[known - 1 :], [*row.drafts, None], strict=True):
            chosen.append(next_token(content, row.params))
            if chosen[-1] != draft:
                break
        row.num_computed -= 1 + len(row.drafts) - len(chosen)
        row.token_ids += chosen
        assert len(row.token_ids) <= row.limit, "sampled behind the last token"
        content = contents_of(row.token_ids)[-1]
        row.drafts = self.propose(row, content % (1 + self.most_drafts))
        return chosen

    def guess(self, row: Row, number: int | None) -> None:
        """Guess where the tokens are; the step's own blocks are those that there are."""
        most = self.most_drafts if number is None else number
        row.drafts = self.propose(row, most if row.params.speculate else 0)
        row.num_places = len(row.tables[0]) * self.config.cache.block_size

    def propose(self, row: Row, number: int) -> list[int]:
        drafts: list[int] = []
        content = contents_of(row.token_ids)[-1]
        for _ in range(number):
            token = next_token(content, row.params)
            if content % 7 < 2:  # a guess that is wrong, and what follows from it
                token = (token + 1) % VOCAB_SIZE
            drafts.append(token)
            content = hash((content, token))
        return drafts


def contents_of(token_ids: list[int]) -> list[int]:
    """Return what the cache should hold of a sequence."""
    contents = [0]
    for token_id in token_ids:
        contents.append(hash((contents[-1], token_id)))
    return contents[1:]


def next_token(content: int, params: SamplingParams) -> int:
    """Choose by everything before, and the request's own seed."""
    return hash((content, params.seed or 0)) % VOCAB_SIZE


def expected_output(request: Request, max_model_len: int) -> Request:
    """Return the request as it ends when it is computed alone."""
    alone = Request(
        request.request_id,
        request.prompt_token_ids,
        request.sampling_params,
        request.eos_token_ids,
    )
    content = contents_of(alone.prompt_token_ids)[-1]
    while alone.finish_reason is None:
        token_id = next_token(content, alone.sampling_params)
        content = hash((content, token_id))
        alone.append_output(token_id, max_model_len)
    return alone


def assert_as_alone(request: Request, max_model_len: int) -> None:
    """A request's output does not depend on its company; an aborted one's is its beginning."""
    alone = expected_output(request, max_model_len)
    tokens = request.output_token_ids
    if request.finish_reason is FinishReason.ABORT:
        assert tokens == alone.output_token_ids[: len(tokens)]
    else:
        assert (tokens, request.finish_reason) == (alone.output_token_ids, alone.finish_reason)
