"""`NaiveScheduler`: the protocol in the plainest way, lists that are sorted every step.

It differs from quire's where the protocol leaves room: a prompt gets blocks chunk by chunk.
"""

from __future__ import annotations

from dataclasses import replace

from quire.config import EngineConfig
from quire.errors import InvalidRequestError
from quire.kv.kv_cache_manager import KVCacheManager
from quire.messages import NewRequest, ScheduledEntry, SchedulerOutput, StepResult
from quire.policy import make_policy
from quire.request import FinishReason, Request


class NaiveScheduler:
    """`alive` are the requests in order of arrival; those with a row run."""

    def __init__(self, config: EngineConfig, kv: KVCacheManager) -> None:
        self.config, self.kv = config, kv
        self.policy = make_policy(config.scheduling.policy)
        self.alive: list[Request] = []
        self.arrivals: dict[str, int] = {}
        self.num_arrived = 0
        self.rows: dict[str, int] = {}  # in order of admission
        self.admitted_in: dict[str, int] = {}
        self.ended: dict[str, str] = {}
        self.step = 0

    @property
    def has_requests(self) -> bool:
        return len(self.alive) > 0

    def limit(self, request: Request) -> int:
        prompt, wanted = len(request.prompt_token_ids), request.sampling_params.output_limit
        most = min(prompt + wanted, self.config.model.max_model_len)
        return most if wanted else prompt + 1  # all of a prompt that is only scored is computed

    def find(self, request_id: str | None) -> Request | None:
        return next((r for r in self.alive if r.request_id == request_id), None)

    def add(self, request: Request) -> None:
        if self.find(request.request_id):
            raise InvalidRequestError(f"request_id={request.request_id!r} has not ended")
        if self.limit(request) - 1 > self.kv.num_blocks * self.kv.block_size:
            raise InvalidRequestError(
                f"{len(request.prompt_token_ids)} tokens can need more than all "
                f"{self.kv.num_blocks} blocks: shorten the prompt or lower max_tokens"
            )
        self.alive.append(request)
        self.arrivals[request.request_id] = self.num_arrived
        self.num_arrived += 1
        self.policy.arrived(request)

    def abort(self, request_id: str, reason: FinishReason = FinishReason.ABORT) -> None:
        request = self.find(request_id)
        if request:
            request.finish_reason = reason
            self.end(request)

    def end(self, request: Request) -> None:
        self.kv.free(request)
        self.rows.pop(request.request_id, None)
        self.alive = [other for other in self.alive if other is not request]
        self.ended[request.request_id] = str(request.finish_reason)
        self.policy.ended(request)

    def order(self, request: Request) -> tuple[float, int]:
        return self.policy.rank(request), self.arrivals[request.request_id]

    def send_back(self, request: Request) -> None:
        self.kv.free(request)
        del self.rows[request.request_id]
        request.num_computed_tokens = request.num_placeholders = 0
        request.num_draft_tokens = request.num_unverified = 0

    def schedule(self) -> SchedulerOutput:
        self.step += 1
        self.entries: list[ScheduledEntry] = []
        self.computed_before = {r.request_id: r.num_computed_tokens for r in self.alive}
        preempted: list[str] = []
        for request_id in list(self.rows):
            request = self.find(request_id)
            while request is not None and request_id in self.rows and not self.try_entry(request):
                running = [r for r in self.alive if r.request_id in self.rows]
                victim = max(running, key=self.order)
                self.entries = [e for e in self.entries if e.request_id != victim.request_id]
                self.send_back(victim)
                preempted.append(victim.request_id)
        new, hits, copies = [], {}, [[] for _ in range(99)]
        waiting = sorted((r for r in self.alive if r.request_id not in self.rows), key=self.order)
        for request in waiting if not preempted else ():
            if len(self.rows) == self.config.scheduling.max_num_seqs or self.budget() == 0:
                break
            parent = None if request.output_token_ids else self.find(request.parent_id)
            shared = len(request.prompt_token_ids) - 1
            if parent is not None and (
                parent.request_id not in self.rows
                or self.computed_before[parent.request_id] < shared
            ):
                continue
            if parent is not None:
                self.kv.fork(parent, request, shared)
                request.num_computed_tokens = shared
            elif request.sampling_params.prompt_logprobs is None:
                request.num_computed_tokens = self.kv.match_prefix(request)
            hit = request.num_computed_tokens
            size = self.kv.block_size
            needed = -(-request.num_tokens // size) - hit // size
            spare = int(self.config.scheduling.watermark * self.kv.num_blocks) if self.rows else 0
            first = len(self.rows) == 0
            if self.kv.num_free_blocks - needed < spare and not first:
                self.kv.free(request)
                request.num_computed_tokens = 0
                break
            free = set(range(self.config.scheduling.max_num_seqs)) - set(self.rows.values())
            self.rows[request.request_id] = min(free)
            self.admitted_in[request.request_id] = self.step
            if not self.try_entry(request, copies):
                self.send_back(request)
                break
            hits[request.request_id] = hit
            new.append(
                NewRequest(
                    request.request_id,
                    self.rows[request.request_id],
                    request.prompt_token_ids + request.output_token_ids,
                    len(request.prompt_token_ids),
                    request.sampling_params,
                    request.seed,
                )
            )
        self.policy.scheduled(self.entries)
        ended, self.ended = self.ended, {}
        return SchedulerOutput(
            self.step,
            tuple(self.entries),
            tuple(new),
            tuple(tuple(pairs) for pairs in copies if pairs),
            tuple(ended),
            tuple(preempted),
            hits,
            self.kv.num_free_blocks,
            ended,
        )

    def budget(self) -> int:
        taken = sum(entry.num_tokens for entry in self.entries)
        return self.config.scheduling.max_num_batched_tokens - taken

    def try_entry(
        self, request: Request, copies: list[list[tuple[int, int]]] | None = None
    ) -> bool:
        """Give a request what it can have; False if the cache has no room for it."""
        start = request.num_computed_tokens
        known = request.num_tokens + request.num_placeholders
        most = min(self.limit(request) - 1, start + self.budget())
        end = min(known + request.num_draft_tokens, most)
        if end <= start or request.num_unverified:
            return True
        reservation = self.kv.reserve(request, end - start)
        if reservation is None:
            end = min(known, most)
            reservation = self.kv.reserve(request, end - start)
        if reservation is None:
            return False
        blocks = reservation.new_block_ids
        if copies is not None:
            blocks = self.kv.block_ids(request)
            for pairs, more in zip(copies, reservation.copies, strict=False):
                pairs += more
        row, samples, drafts = self.rows[request.request_id], end >= known, max(0, end - known)
        self.entries.append(
            ScheduledEntry(request.request_id, row, start, end - start, samples, blocks, drafts)
        )
        request.num_computed_tokens = end
        request.num_placeholders += samples
        request.num_unverified = drafts
        request.num_draft_tokens = 0
        return True

    def is_current(self, output: SchedulerOutput, entry: ScheduledEntry) -> bool:
        in_time = output.step >= self.admitted_in.get(entry.request_id, 0)
        return entry.request_id in self.rows and in_time

    def guess(self, output: SchedulerOutput, most: int) -> SchedulerOutput:
        return replace(output, num_guesses=most)

    def update(self, output: SchedulerOutput, result: StepResult) -> list[Request]:
        advanced = []
        for entry in output.entries:
            request = self.find(entry.request_id)
            if request is None or not self.is_current(output, entry):
                continue
            if entry.samples:
                request.num_placeholders -= 1
                request.num_computed_tokens -= request.num_unverified
                request.num_unverified = 0
                if request.sampling_params.output_limit == 0:
                    request.finish_reason = FinishReason.LENGTH
                for i, token in enumerate(result.token_ids[entry.request_id]):
                    if request.finish_reason is None:
                        request.num_computed_tokens += i > 0
                        request.append_output(token, self.config.model.max_model_len)
                if not request.num_placeholders:
                    drafts = result.num_draft_tokens.get(entry.request_id, 0)
                    request.num_draft_tokens = drafts
                advanced.append(request)
            self.kv.commit(request)
            if request.finish_reason:
                self.end(request)
        return advanced

    def retract(self, output: SchedulerOutput) -> None:
        for entry in output.entries:
            request = self.find(entry.request_id)
            if request is not None and self.is_current(output, entry):
                self.send_back(request)
