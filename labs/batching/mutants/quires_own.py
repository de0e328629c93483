# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# What quire does, brought into the shape that the lab asks for.


# %% task="static"
# task: static
class StaticScheduler:
    """quire knows no static batch: requests join and are answered one by one."""

    def __init__(self, num_seats: int) -> None:
        self._num_seats, self._waiting, self._running = num_seats, {}, {}

    def add(self, request: str, prompt: int, output: int) -> None:
        if request in self._waiting or request in self._running:
            raise ValueError(f"request_id={request!r} has not ended yet")
        self._waiting[request] = (prompt, output)

    def schedule(self) -> dict:
        while self._waiting and len(self._running) < self._num_seats:
            request = next(iter(self._waiting))
            prompt, output = self._waiting.pop(request)
            self._running[request] = [0, prompt, output]
        entries = [[name, start, count] for name, (start, count, _) in self._running.items()]
        return {"entries": entries, "padding": 0}

    def update(self, ended: list[str]) -> list[str]:
        finished = []
        for name, (start, count, left) in list(self._running.items()):
            self._running[name] = [start + count, 1, left - 1]
            if left == 1 or name in ended:
                del self._running[name]
                finished.append(name)
        return finished


# %% task="continuous"
# task: continuous
class Scheduler:
    """`TokenBudgetScheduler` of policy "priority", with a budget that never ends."""

    def __init__(self, num_seats: int, per_client: int, patience: int) -> None:
        self._tracked, self._running, self._waiting = {}, {}, []
        self._free_rows = list(range(num_seats - 1, -1, -1))
        self._num_arrived = self._num_steps = 0
        self._outputs = {}  # by step: {request: [tracked, tokens, samples]}

    def add(
        self, request: str, client: str, priority: int, prompt: int, output: int, cached: int
    ) -> None:
        if request in self._tracked:
            raise ValueError(f"request_id={request!r} has not ended yet")
        self._tracked[request] = tracked = {
            "id": request, "rank": (priority, self._num_arrived), "cached": cached,
            "tokens": prompt, "last": prompt + output - 1, "computed": 0, "placeholders": 0,
            "row": None, "admitted": 0,
        }  # fmt: skip
        self._num_arrived += 1
        self._waiting.append(tracked)

    def abort(self, request: str) -> None:
        if request in self._tracked:
            self._end(self._tracked[request])

    def schedule(self) -> list[list]:
        self._num_steps += 1
        self._outputs[self._num_steps] = {}
        entries = []
        for tracked in self._running.values():
            self._catch_up(tracked, entries)
        while self._waiting and self._free_rows:
            tracked = min(self._waiting, key=lambda t: t["rank"])
            self._waiting.remove(tracked)
            tracked["row"], tracked["admitted"] = self._free_rows.pop(), self._num_steps
            tracked["computed"] = min(tracked["cached"], tracked["tokens"] - 1)
            self._running[tracked["id"]] = tracked
            self._catch_up(tracked, entries)
        return entries

    def _catch_up(self, tracked, entries):
        known = tracked["tokens"] + tracked["placeholders"]
        start, count = tracked["computed"], min(known, tracked["last"]) - tracked["computed"]
        if count > 0:
            samples = start + count == known
            entries.append([tracked["id"], tracked["row"], start, count])
            self._outputs[self._num_steps][tracked["id"]] = [tracked, count, samples]
            tracked["computed"] += count
            tracked["placeholders"] += samples

    def trim(self, request: str, count: int) -> None:
        entry = self._outputs.get(self._num_steps, {}).get(request)
        if entry is None or entry[0]["row"] is None or count > entry[1]:
            raise ValueError(request)
        if count < entry[1]:
            entry[0]["computed"] -= entry[1] - count
            entry[0]["placeholders"] -= entry[2]
            entry[1:] = [count, False]

    def preempt(self, request: str) -> None:
        if request not in self._running:
            raise ValueError(request)
        tracked = self._running[request]
        self._stop_running(tracked)
        tracked.update(computed=0, placeholders=0, cached=0)
        self._waiting.append(tracked)

    def update(self, step: int, ended: list[str]) -> list[str]:
        finished = []
        for request, (_, _, samples) in self._outputs.pop(step).items():
            tracked = self._running.get(request)
            if tracked is None or step < tracked["admitted"] or not samples:
                continue
            tracked["placeholders"] -= 1
            tracked["tokens"] += 1
            if request in ended or tracked["tokens"] > tracked["last"]:
                self._end(tracked)
                finished.append(request)
        return finished

    def _end(self, tracked):
        if tracked["row"] is None:
            self._waiting.remove(tracked)
        else:
            self._stop_running(tracked)
        del self._tracked[tracked["id"]]

    def _stop_running(self, tracked):
        self._free_rows.append(tracked["row"])
        tracked["row"] = None
        del self._running[tracked["id"]]


# %% task="chunked"
# task: chunked
def pack(budget: int, pairs: int, block: int, wishes: list[dict], now: int) -> list[int]:
    """In order of admission, each as far as the budget goes."""
    given = []
    for wish in wishes:
        given.append(min(wish["count"], budget))
        budget -= given[-1]
    return given


# %% task="engine"
# task: engine
class Memory:
    """Blocks as quire's scheduler and cache manager count them."""

    def __init__(self, num_blocks: int, block_size: int, spare: int) -> None:
        self._num_blocks, self._block_size, self._watermark = num_blocks, block_size, spare
        self._tables = {}  # blocks by request, in order of admission

    def num_free(self) -> int:
        return self._num_blocks - sum(self._tables.values())

    def fits(self, prompt: int, output: int) -> bool:
        return -(-(prompt + output - 1) // self._block_size) <= self._num_blocks

    def place(self, entries: list[list]) -> list[str]:
        preempted = []
        for request, _, start, count in entries:
            needed = -(-(start + count) // self._block_size)
            if request in preempted:
                continue
            if request in self._tables:
                while needed - self._tables.get(request, 0) > self.num_free():
                    victim = list(self._tables)[-1]
                    del self._tables[victim]
                    preempted.append(victim)
                    if victim == request:
                        break
                else:
                    self._tables[request] = max(needed, self._tables[request])
                continue
            watermark = self._watermark if self._tables else 0
            if preempted or self.num_free() - needed < watermark:
                preempted.append(request)
            else:
                self._tables[request] = needed
        return preempted

    def free(self, request: str) -> None:
        self._tables.pop(request, None)
