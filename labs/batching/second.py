# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# An independent second solution, written from the notebook's text. It must earn full points too.


# %% task="static"
# task: static
from dataclasses import dataclass


@dataclass
class Row:
    """A request in the batch, or on the way to it."""

    name: str
    prompt: int
    output: int
    said: int = 0
    done: bool = False


class StaticScheduler:
    """Runs one batch to its end, then the next."""

    def __init__(self, num_seats: int) -> None:
        """Batch at most num_seats requests."""
        self.num_seats, self.line, self.rows = num_seats, [], []

    def add(self, request: str, prompt: int, output: int) -> None:
        """Take a request."""
        for row in self.line + self.rows:
            if row.name == request:
                raise ValueError("it is here already: " + request)
        self.line.append(Row(request, prompt, output))

    def schedule(self) -> dict:
        """Return the next step."""
        if self.rows == [] and self.line != []:
            oldest = self.line[0].prompt
            places = list(range(len(self.line)))
            places.sort(key=lambda i: (abs(self.line[i].prompt - oldest), i))
            taken = sorted(places[: self.num_seats])
            self.rows = [self.line[i] for i in taken]
            self.line = [row for i, row in enumerate(self.line) if i not in taken]
        entries, width, padding = [], 0, 0
        for row in self.rows:
            if not row.done:
                if row.said == 0:
                    entries.append([row.name, 0, row.prompt])
                else:
                    entries.append([row.name, row.prompt + row.said - 1, 1])
                width = max(width, entries[-1][2])
        if entries:
            padding = width * len(self.rows) - sum(entry[2] for entry in entries)
        return {"entries": entries, "padding": padding}

    def update(self, ended: list[str]) -> list[str]:
        """Learn what was sampled; return the requests answered now."""
        for row in self.rows:
            if not row.done:
                row.said += 1
                row.done = row.said >= row.output or row.name in ended
        if not all(row.done for row in self.rows):
            return []
        answered, self.rows = [row.name for row in self.rows], []
        return answered


# %% task="continuous"
# task: continuous
import heapq


class Job:
    """A request and where it is."""

    def __init__(self, name, client, priority, prompt, output, cached, order, born):
        self.name, self.client, self.priority = name, client, priority
        self.order, self.born = order, born
        self.prompt, self.output, self.told = prompt, output, 0
        self.position = min(cached, prompt - 1)
        self.seat = None
        self.pending = []  # numbers of steps in flight that say a token


class Scheduler:
    """Admits and ends requests at every step."""

    def __init__(self, num_seats: int, per_client: int, patience: int) -> None:
        """Run at most num_seats requests, and per_client of one client."""
        self.seats = list(range(num_seats))
        self.per_client, self.patience = per_client, patience
        self.jobs = {}  # all that have not ended
        self.running = []
        self.orders = 0
        self.now = 0  # calls of schedule so far
        self.plans = {}  # step: the entries, as [job, start, count]

    def add(
        self, request: str, client: str, priority: int, prompt: int, output: int, cached: int
    ) -> None:
        """Take a request."""
        if request in self.jobs:
            raise ValueError(request)
        job = Job(request, client, priority, prompt, output, cached, self.orders, self.now)
        self.jobs[request] = job
        self.orders += 1

    def abort(self, request: str) -> None:
        """End a request early."""
        if request in self.jobs:
            self.leave(self.jobs.pop(request))

    def leave(self, job):
        """Give back the seat, and forget what is in flight."""
        if job.seat is not None:
            heapq.heappush(self.seats, job.seat)
            self.running.remove(job)
            job.seat = None
        job.pending = []

    def schedule(self) -> list[list]:
        """Return the next step."""
        waiting = [job for job in self.jobs.values() if job.seat is None]
        waiting.sort(
            key=lambda job: (job.priority - (self.now - job.born) // self.patience, job.order)
        )
        for job in waiting:
            of_client = sum(other.client == job.client for other in self.running)
            if self.seats and of_client < self.per_client:
                job.seat = heapq.heappop(self.seats)
                self.running.append(job)
        self.now += 1
        plan = []
        for job in self.running:
            tokens = job.prompt + job.told + len(job.pending)
            end = min(tokens, job.prompt + job.output - 1)
            if end > job.position:
                plan.append([job, job.position, end - job.position])
                job.position = end
                if end == tokens:
                    job.pending.append(self.now)
        self.plans[self.now] = plan
        return [[job.name, job.seat, start, count] for job, start, count in plan]

    def trim(self, request: str, count: int) -> None:
        """Compute less of an entry of the latest step."""
        for entry in self.plans.get(self.now, []):
            job, start, planned = entry
            runs = self.jobs.get(request) is job and job.seat is not None
            if runs and job.position == start + planned and 0 <= count <= planned:
                if count < planned:
                    entry[2] = count
                    job.position = start + count
                    job.pending = [step for step in job.pending if step != self.now]
                return
        raise ValueError(request)

    def preempt(self, request: str) -> None:
        """Let a running request wait again."""
        job = self.jobs.get(request)
        if job is None or job.seat is None:
            raise ValueError(request)
        self.leave(job)
        job.position = 0

    def update(self, step: int, ended: list[str]) -> list[str]:
        """Learn what a step said; return those that ended."""
        over = []
        for job, _, _ in self.plans.pop(step):
            if step in job.pending:
                job.pending.remove(step)
                job.told += 1
                if job.name in ended or job.told == job.output:
                    del self.jobs[job.name]
                    self.leave(job)
                    over.append(job.name)
        return over


# %% task="chunked"
# task: chunked
def pack(budget: int, pairs: int, block: int, wishes: list[dict], now: int) -> list[int]:
    """Return how many tokens each wish gets in step `now`."""
    result = {wish["request"]: 0 for wish in wishes}
    rest = budget
    used = 0  # pairs
    none_yet = True  # no prompt has got a token
    for wish in sorted(wishes, key=lambda wish: wish["since"] - now):
        if wish["decode"] and rest > 0:
            result[wish["request"]] = 1
            rest -= 1
            used += wish["start"] + 1

    def pairs_of(first, after):
        """Pairs of the positions from `first` up to `after`."""
        return sum(range(first + 1, after + 1))

    prompts = [wish for wish in wishes if not wish["decode"]]
    ### BEGIN VARIANT shortest
    late = [wish for wish in prompts if now - wish["since"] > 7]
    other = [wish for wish in prompts if now - wish["since"] <= 7]
    late.sort(key=lambda wish: wish["since"])
    other.sort(key=lambda wish: wish["count"])
    prompts = late + other
    ### END VARIANT
    ### BEGIN VARIANT deadline
    good, bad = [], []
    for wish in prompts:
        steps = wish["deadline"] - now + 1
        (good if steps * budget >= wish["count"] else bad).append(wish)
    prompts = sorted(good, key=lambda wish: wish["deadline"]) + bad
    ### END VARIANT
    ### BEGIN VARIANT deadline shortest
    for wish in prompts:
        start, whole = wish["start"], wish["count"]
        sizes = [
            size for size in range(1, min(whole, rest) + 1) if size in (whole, size - size % block)
        ]
        sizes = [
            size
            for size in sizes
            if used + pairs_of(start, start + size) <= pairs or (none_yet and size <= block)
        ]
        if sizes:
            most = max(sizes)
            none_yet = False
            used += pairs_of(start, start + most)
            result[wish["request"]] = most
            rest -= most
    ### END VARIANT
    ### BEGIN VARIANT fair
    had = {}
    queues = {}
    for place, wish in enumerate(wishes):
        had.setdefault(wish["client"], wish["served"])
        had[wish["client"]] += result[wish["request"]]
        if not wish["decode"]:
            queues.setdefault(wish["client"], []).append(
                [place, wish["request"], wish["count"], wish["start"]]
            )
    while queues:
        client = min(queues, key=lambda client: (had[client], queues[client][0][0]))
        first = queues[client][0]
        piece = min(block, first[2])
        more = pairs_of(first[3], first[3] + piece)
        if piece > rest or not (none_yet or used + more <= pairs):
            del queues[client]
            continue
        none_yet = False
        used += more
        first[3] += piece
        result[first[1]] += piece
        had[client] += piece
        rest -= piece
        first[2] -= piece
        if first[2] == 0:
            queues[client].pop(0)
        if not queues[client]:
            del queues[client]
    ### END VARIANT
    return [result[wish["request"]] for wish in wishes]


# %% task="engine"
# task: engine
class Memory:
    """Counts the blocks of requests and says who gives way."""

    def __init__(self, num_blocks: int, block_size: int, spare: int) -> None:
        """Count num_blocks blocks."""
        self.total, self.size, self.spare = num_blocks, block_size, spare
        self.free_blocks = num_blocks
        self.holders = []  # [request, blocks, positions], the newest last

    def num_free(self) -> int:
        """Return how many blocks nobody holds."""
        return self.free_blocks

    def fits(self, prompt: int, output: int) -> bool:
        """Return whether a request could ever run to its end."""
        return prompt + output - 1 <= self.total * self.size

    def place(self, entries: list[list]) -> list[str]:
        """Give the entries blocks; return who gives way."""
        leaving, shut = [], False
        for request, _seat, start, count in entries:
            if request in leaving:
                continue
            end = start + count
            blocks = (end + self.size - 1) // self.size
            holder = next((holder for holder in self.holders if holder[0] == request), None)
            if holder is None:
                keep = self.spare if self.holders else 0
                if shut or leaving or self.free_blocks - blocks < keep:
                    shut = True
                    leaving.append(request)
                else:
                    self.free_blocks -= blocks
                    self.holders.append([request, blocks, end])
                continue
            while self.free_blocks < blocks - holder[1]:
                fewest = min(other[2] for other in self.holders)
                loser = [other for other in self.holders if other[2] == fewest][-1]
                leaving.append(loser[0])
                self.free(loser[0])
                if loser is holder:
                    break
            else:
                self.free_blocks -= blocks - holder[1]
                holder[1:] = [blocks, end]
        return leaving

    def free(self, request: str) -> None:
        """Take back the blocks of a request."""
        for holder in [holder for holder in self.holders if holder[0] == request]:
            self.free_blocks += holder[1]
            self.holders.remove(holder)
