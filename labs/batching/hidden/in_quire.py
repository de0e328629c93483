"""quire with a scheduler that speaks plain values to whoever is given: two `Twin`s.

The adapter does what the notebook's own does; every answer is compared before the engine
sees it.
"""

from __future__ import annotations

import functools
from typing import Any

from labkit.grading.twin import Twin

BLOCK_SIZE, MAX_STEPS, MAX_LEN = 8, 400, 96
TEXTS = ["def fibonacci(n):", "class Stack:\n", "import os\n\ndef walk(", "for i in range("]


class Delegate:
    """Stands where quire's scheduler stands; `inner` is made anew for every run."""

    def __init__(self, config: Any, kv: Any) -> None:
        self.config, self.kv = config, kv
        self.inner: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class WithParts:
    """quire's protocol around a `Scheduler` and a `Memory`."""

    def __init__(
        self, delegate: Delegate, scheduler: Twin, memory: Twin, limit: int | None
    ) -> None:
        self.kv, self.scheduler, self.memory = delegate.kv, scheduler, memory
        self.limit = limit  # of positions in an entry, or None
        self.requests: dict[str, Any] = {}
        self.running: dict[str, int] = {}  # the step of its admission
        self.finished: dict[str, str] = {}
        self.steps = 0

    @property
    def has_requests(self) -> bool:
        """Whether any has not ended."""
        return bool(self.requests)

    def add(self, request: Any) -> None:
        """Take a request."""
        prompt, output = len(request.prompt_token_ids), request.sampling_params.max_tokens
        assert self.memory.call("fits", prompt, output)
        name, client, priority = request.request_id, request.client_id, request.priority
        self.scheduler.call("add", name, client, priority, prompt, output, 0)
        self.requests[name] = request

    def abort(self, name: str, reason: Any = None) -> None:
        """End one early."""
        if name in self.requests:
            self.scheduler.call("abort", name)
            self._end(name, reason)

    def schedule(self) -> Any:
        """The next step."""
        from quire.step_builder import StepBuilder

        self.steps += 1
        step = StepBuilder(self.steps, 1 << 30)
        entries = self.scheduler.call("schedule")
        for name in self.memory.call("place", entries):
            self._preempt(name, step)
        for name, seat, start, count in entries:
            if name in step.preempted_ids:
                continue
            if self.limit is not None and count > self.limit:
                count = self.limit
                self.scheduler.call("trim", name, count)
            request = self.requests[name]
            if name not in self.running:
                request.num_computed_tokens = start
                step.admit(request, seat, ())
                self.running[name] = self.steps
            reservation = self.kv.reserve(request, count)
            assert reservation is not None
            step.schedule(request, seat, count, reservation.new_block_ids)
        finished, self.finished = self.finished, {}
        return step.build(finished, self.kv.num_free_blocks)

    def _preempt(self, name: str, step: Any) -> None:
        self.scheduler.call("preempt", name)
        request = self.requests[name]
        if self.running.pop(name, None) is not None:
            self.kv.free(request)
            request.num_computed_tokens = request.num_placeholders = 0
        step.preempt(request)

    def update(self, output: Any, result: Any) -> list[Any]:
        """A step's tokens."""
        advanced, ended = [], []
        for entry in output.entries:
            name = entry.request_id
            if entry.samples and self.running.get(name, output.step + 1) <= output.step:
                request = self.requests[name]
                request.num_placeholders -= 1
                request.append_output(result.token_ids[name][0], MAX_LEN)
                advanced.append(request)
                if request.finish_reason is not None:
                    ended.append(name)
        self.scheduler.call("update", output.step, ended)
        for name in ended:
            self._end(name, self.requests[name].finish_reason)
        return advanced

    def retract(self, output: Any) -> None:
        """A run that is broken off is not gone on with."""

    def _end(self, name: str, reason: Any) -> None:
        request = self.requests.pop(name)
        request.finish_reason = self.finished[name] = reason
        self.running.pop(name, None)
        self.memory.call("free", name)
        self.kv.free(request)


@functools.cache
def engine(own: bool, overlap: bool) -> tuple[Any, list[Delegate]]:
    """quire with its `own` scheduler or a delegate; made once for all submissions.

    On the smaller model, since who computes what does not depend on it.
    """
    from quire import LLM, Components

    made: list[Delegate] = []

    def delegate(config: Any, kv: Any) -> Delegate:
        made.append(Delegate(config, kv))
        return made[0]

    llm = LLM(
        "quire-mini-draft", device="cpu", dtype="float32", block_size=BLOCK_SIZE,
        max_model_len=MAX_LEN, max_num_seqs=4, num_blocks=100 if own else 13,
        enable_prefix_caching=False, overlap=overlap,
        components=Components(scheduler=None if own else delegate),
    )  # fmt: skip
    return llm, made


def _serve(llm: Any, count: int, first: int) -> list[list[int]]:
    """Serve requests that come one step after another; some end before they have said all."""
    import torch

    from quire import SamplingParams

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small products: threads would wait for one another
    handles = []
    try:
        for step in range(MAX_STEPS):
            if step < count:
                i = first + step
                params = SamplingParams(max_tokens=6 + 9 * (i % 4), temperature=0)
                prompt = TEXTS[i % 4] + f"  # {i % 7}"
                client, priority = ("ada", "bob")[i % 3 == 0], i % 2
                handles.append(
                    llm.engine.add_request(
                        f"r{step}", prompt, params, client_id=client, priority=priority
                    )
                )
            elif not llm.engine.has_requests:
                break
            llm.engine.step()
    finally:
        torch.set_num_threads(threads)
    return [handle.snapshot().outputs[0].token_ids for handle in handles]


@functools.cache
def own_tokens(count: int, first: int) -> list[list[int]]:
    """What quire's own scheduler gives."""
    return _serve(engine(own=True, overlap=False)[0], count, first)


def run(
    make_scheduler: Any, make_memory: Any, count: int, first: int, overlap: bool, limit: int | None
) -> list[list[int]]:
    """Serve with the parts that the two factories make, given seats and blocks."""
    llm, (delegate,) = engine(own=False, overlap=overlap)
    blocks = delegate.kv.num_blocks
    delegate.inner = WithParts(delegate, make_scheduler(4), make_memory(blocks), limit)
    try:
        return _serve(llm, count, first)
    except BaseException:
        engine.cache_clear()  # requests are left in it
        raise
