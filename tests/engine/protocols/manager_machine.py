"""Random requests on a small cache; whatever is computed must be there to be read."""

from __future__ import annotations

import hypothesis.strategies as st
from desk import BLOCK, Desk, MakeManager
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from quire.request import Request

CHOICE = st.integers(0, 99)


class ManagerMachine(RuleBasedStateMachine):
    """Requests over two tokens begin alike more often than not."""

    def __init__(self, make: MakeManager) -> None:
        super().__init__()
        self.make = make
        self.running: list[Request] = []
        self.preempted: list[Request] = []

    @initialize(num_blocks=st.integers(2, 14), prefix_caching=st.booleans())
    def open(self, num_blocks: int, prefix_caching: bool) -> None:
        self.desk = Desk(self.make, num_blocks, prefix_caching)
        self.num_blocks = num_blocks

    @rule(
        blocks=st.lists(st.integers(1, 2), max_size=4),
        rest=st.integers(0, BLOCK),
        salt=st.sampled_from([(), (), ("salt",)]),
    )
    def start(self, blocks: list[int], rest: int, salt: tuple[str, ...]) -> None:
        tokens = [number for number in blocks for _ in range(BLOCK)] + [1] * rest
        request = self.desk.request(tokens or [1], salt)
        self.desk.start(request)
        self.running.append(request)

    @rule(choice=CHOICE, chunk=st.integers(1, 2 * BLOCK))
    @precondition(lambda self: self.running)
    def compute(self, choice: int, chunk: int) -> None:
        request = self.choose(choice)
        left = request.num_tokens - request.num_computed_tokens
        if left == 0:
            request.output_token_ids.append(1 + choice % 2)
            left = 1
        before = self.desk.kv.num_free_blocks
        if not self.desk.compute(request, min(left, chunk)):
            assert self.desk.kv.num_free_blocks == before
        self.desk.kv.commit(request)

    @rule(choice=CHOICE, num_drafts=st.integers(1, BLOCK + 1), num_kept=st.integers(0, BLOCK))
    @precondition(lambda self: self.running)
    def draft(self, choice: int, num_drafts: int, num_kept: int) -> None:
        """Compute guessed tokens, keep the first few, give the other blocks back."""
        request = self.choose(choice)
        if request.num_computed_tokens < request.num_tokens:
            return
        request.output_token_ids += [2] * num_drafts
        if self.desk.compute(request, num_drafts):
            request.num_computed_tokens -= max(num_drafts - num_kept, 0)
            self.desk.kv.rollback(request, request.num_computed_tokens)
        del request.output_token_ids[request.num_computed_tokens - len(request.prompt_token_ids) :]

    @rule(choice=CHOICE, share=CHOICE)
    @precondition(lambda self: self.running)
    def fork(self, choice: int, share: int) -> None:
        parent = self.choose(choice)
        if parent.num_computed_tokens == 0:
            return
        tokens = parent.prompt_token_ids + parent.output_token_ids
        num_shared = share % (parent.num_computed_tokens + 1)
        child = self.desk.request(tokens[: num_shared + 1], parent.extra_keys)
        self.desk.kv.fork(parent, child, num_shared)
        child.num_computed_tokens = num_shared
        self.desk.verify(child)
        if num_shared == child.num_tokens:
            child.output_token_ids.append(1)
        if self.desk.compute(child):  # at once, as the scheduler does
            self.running.append(child)
        else:
            self.desk.end(child)

    @rule(choice=CHOICE, finishes=st.booleans())
    @precondition(lambda self: self.running)
    def stop(self, choice: int, finishes: bool) -> None:
        request = self.choose(choice)
        self.running.remove(request)
        if finishes:
            self.desk.end(request)
        else:
            self.desk.kv.free(request)
            request.num_computed_tokens = 0
            self.preempted.append(request)

    @rule()
    @precondition(lambda self: self.preempted)
    def resume(self) -> None:
        request = self.preempted.pop()
        self.desk.start(request)
        self.running.append(request)

    def choose(self, choice: int) -> Request:
        # Not `remove` by value: two requests may be equal but for their id.
        return self.running[choice % len(self.running)]

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "desk"):
            self.desk.kv.check()
            for request in self.running:
                self.desk.verify(request)

    def teardown(self) -> None:
        if hasattr(self, "desk"):
            for request in self.running:
                self.desk.end(request)
            assert self.desk.kv.num_free_blocks == self.num_blocks
            for pool in self.desk.pools:
                assert pool.num_free == self.num_blocks
