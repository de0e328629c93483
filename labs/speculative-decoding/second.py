# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# An independent second solution, written from the notebook's text. It must earn full points too.


# %% task="propose"
# task: propose
from collections import Counter


def propose(tokens: list[int], longest: int, shortest: int, separator: int, k: int) -> list[int]:
    """Return 0 … k drafts of what follows `tokens`."""
    index = {}  # end: what followed it, in the order of the places
    for after in range(len(tokens)):
        for size in range(shortest, min(longest, after) + 1):
            index.setdefault(tuple(tokens[after - size : after]), []).append(tokens[after])
    tail = list(tokens)
    for _ in range(k):
        found = []
        size = longest
        while size >= shortest and not found:
            end = tuple(tail[-size:])
            if len(end) == size and separator not in end:
                found = index.get(end, [])
            size -= 1
        if not found:
            break
        # A Counter keeps the order of first sight, so the latest is put in first.
        token = Counter(reversed(found)).most_common(1)[0][0]
        if token == separator:
            break
        tail.append(token)
    return tail[len(tokens) :]


# %% task="verify"
# task: verify
class Request:
    """One request, which says a token after the other."""

    def __init__(self, fields: dict) -> None:
        """Take what `verify` was given of it."""
        self.f = fields
        self.said = []
        self.rows = []
        self.end = None
        self.state = fields.get("state")

    def may_say(self, token: int) -> bool:
        """Whether a token takes part in the race."""
        too_early = token in self.f["stops"] and len(self.said) + 1 <= self.f["least"]
        ### BEGIN VARIANT grammar
        too_early = too_early or self.f["grammar"][self.state][token] is None
        ### END VARIANT
        return not too_early

    def say(self, row: int) -> int:
        """Choose from a row."""
        best = None
        for token, weight in enumerate(self.f["weights"][row]):
            if weight == 0 or not self.may_say(token):
                continue
            if self.f["seed"] is None:
                time = -weight
            else:
                time = noise(self.f["seed"], self.f["position"] + len(self.said), token) / weight
            if best is None or time < best[0]:
                best = (time, token)
        token = best[1]
        self.rows.append(row)
        self.said.append(token)
        ### BEGIN VARIANT grammar
        self.state = self.f["grammar"][self.state][token]
        ### END VARIANT
        if token in self.f["stops"]:
            self.end = "stop"
        elif len(self.said) >= self.f["left"]:
            self.end = "length"
        return token

    def answer(self) -> dict:
        """What `verify` says of it."""
        answer = {"tokens": self.said, "rows": self.rows, "end": self.end}
        ### BEGIN VARIANT grammar
        answer["state"] = self.state
        ### END VARIANT
        return answer


def verify(requests: list[dict]) -> list[dict]:
    """Return for each request of a step its new tokens, their rows and why it ends."""
    answers = []
    ### BEGIN VARIANT quota
    left = {}
    for fields in requests:
        left[fields["client"]] = fields["quota"]
    ### END VARIANT
    for fields in requests:
        request = Request(fields)
        token = request.say(0)
        for place, drafted in enumerate(fields["drafts"]):
            if request.end is not None:
                break
            ### BEGIN VARIANT pair
            first, second = drafted
            if token == first:
                token = request.say(1 + 2 * place)
            elif token == second:
                request.say(2 + 2 * place)
                break
            else:
                break
            ### END VARIANT
            ### BEGIN VARIANT grammar
            if token != drafted:
                break
            token = request.say(place + 1)
            ### END VARIANT
            ### BEGIN VARIANT quota
            if token != drafted or left[fields["client"]] == 0:
                break
            left[fields["client"]] -= 1
            token = request.say(place + 1)
            ### END VARIANT
        answers.append(request.answer())
    return answers


# %% task="ledger"
# task: ledger
class Ledger:
    """Known tokens, computed positions and published blocks of requests."""

    def __init__(self, block_size: int, max_len: int) -> None:
        """Count blocks of block_size positions; a request holds at most max_len tokens."""
        self.size, self.limit = block_size, max_len
        self.known, self.computed, self.published, self.small = {}, {}, {}, {}
        self.flying = {}  # request: number of its step
        self.steps = {}  # number: (request, start, tokens, drafts, samples)
        self.orphans = set()  # steps whose request is no longer what it was
        self.last = 0

    def must(self, condition: bool) -> None:
        """Refuse unless a condition holds."""
        if not condition:
            raise ValueError("this cannot be")

    def add(self, request: str, tokens: list[int]) -> None:
        """Take a request with its prompt."""
        self.must(request not in self.known)
        self.known[request] = tokens[:]
        self.computed[request] = self.published[request] = self.small[request] = 0

    def state(self, request: str) -> list[int]:
        """Return the numbers of known tokens, computed positions and drafts in flight."""
        self.must(request in self.known)
        drafts = 0
        if request in self.flying:
            drafts = len(self.steps[self.flying[request]][3])
        return [len(self.known[request]), self.computed[request], drafts]

    def behind(self, request: str) -> int:
        """Return how many known tokens the draft model has not computed."""
        self.must(request in self.known)
        return max(len(self.known[request]) - self.small[request], 0)

    def plan(self, request: str, drafts: list[int], budget: int) -> list:
        """Return the next step: [its number, start, tokens, number of drafts, samples or not]."""
        self.must(request in self.known and request not in self.flying)
        known, start = self.known[request], self.computed[request]
        rest = known[start:]
        samples = len(rest) <= budget
        self.must(not samples or len(known) < self.limit)
        if len(drafts) > 0:
            self.small[request] = len(known) + len(drafts) - 1
        fitting = []
        if samples:
            fitting = drafts[: max(0, self.limit - len(known) - 1)][: budget - len(rest)]
        tokens = rest[:budget] + fitting
        self.last += 1
        self.steps[self.last] = (request, start, tokens, fitting, samples)
        self.flying[request] = self.last
        return [self.last, start, tokens, len(fitting), samples]

    def settle(self, step: int, tokens: list[int]) -> list[list]:
        """Learn what a step said; return the blocks that are published now."""
        if step in self.orphans:
            self.orphans.remove(step)
            return []
        self.must(step in self.steps)
        request, start, planned, drafts, samples = self.steps[step]
        if samples:
            self.must(0 < len(tokens) <= len(drafts) + 1)
            self.must(drafts[: len(tokens) - 1] == tokens[:-1])
        else:
            self.must(not tokens)
        del self.steps[step], self.flying[request]
        known = self.known[request]
        if samples:
            wrong = len(drafts) - (len(tokens) - 1)
            self.computed[request] = start + len(planned) - wrong
            self.small[request] = min(self.small[request], len(known) + len(tokens) - 1)
        else:
            self.computed[request] = start + len(planned)
            self.small[request] = min(self.small[request], len(known))
        known.extend(tokens)
        blocks = []
        while self.published[request] + self.size <= self.computed[request]:
            begin = self.published[request]
            blocks.append([begin // self.size, known[begin : begin + self.size]])
            self.published[request] += self.size
        return blocks

    def lose(self, request: str) -> None:
        """Forget the step in flight."""
        self.must(request in self.known)
        if request in self.flying:
            step = self.flying.pop(request)
            del self.steps[step]
            self.orphans.add(step)

    def preempt(self, request: str) -> None:
        """Keep the known tokens of a request and nothing else."""
        self.lose(request)
        self.computed[request] = self.published[request] = self.small[request] = 0

    def end(self, request: str) -> None:
        """Forget a request."""
        self.lose(request)
        del self.known[request]


# %% task="plan"
# task: plan
import heapq
from collections import Counter
from fractions import Fraction


def plan(costs: list[int], requests: list[dict], recent: int) -> list:
    """Return for each request which drafts to compute in the next step."""
    ### BEGIN VARIANT grammar quota
    counts = [0] * len(requests)
    best, answer = None, counts
    ### END VARIANT
    ### BEGIN VARIANT pair
    counts = [[] for _ in requests]
    best, answer = None, counts
    ### END VARIANT
    if not requests:
        return answer
    expected = Fraction(len(requests))
    rows = len(requests)

    def chances(request: dict, place: int) -> list:
        """The chance of a place, or of each rank there."""
        history = request["history"]
        seen = right = 0
        ranks = [0, 0]
        for record in history[max(0, len(history) - recent) :]:
            ### BEGIN VARIANT grammar quota
            if record[0] >= place + 1 and record[1] >= place:
                seen += 1
                right += record[1] != place
            ### END VARIANT
            ### BEGIN VARIANT pair
            if record[0] >= place + 1 and len(record[1]) >= place:
                seen += 1
                for rank in record[1][place : place + 1]:
                    ranks[rank] += 1
            ### END VARIANT
        ### BEGIN VARIANT grammar
        if place in request["forced"]:
            return [Fraction(1)]
        ### END VARIANT
        ### BEGIN VARIANT grammar quota
        return [Fraction(1 + right, 2 + seen)]
        ### END VARIANT
        ### BEGIN VARIANT pair
        return [Fraction(1 + count, 3 + seen) for count in ranks]
        ### END VARIANT

    heap = []  # drafts whose predecessors are taken

    def offer(number: int, name: list, value: Fraction) -> None:
        """Put what stands behind a draft on the heap."""
        if len(name) < requests[number]["most"]:
            for rank, chance in enumerate(chances(requests[number], len(name))):
                longer = [*name, rank]
                heapq.heappush(heap, (-value * chance, number, len(longer), longer))

    for number in range(len(requests)):
        offer(number, [], Fraction(1))
    ### BEGIN VARIANT quota
    given = Counter()
    ### END VARIANT
    while rows < len(costs):
        rate = expected / costs[rows]
        if best is None or rate > best:
            best = rate
            ### BEGIN VARIANT grammar quota
            answer = counts[:]
            ### END VARIANT
            ### BEGIN VARIANT pair
            answer = [names[:] for names in counts]
            ### END VARIANT
        ### BEGIN VARIANT quota
        while heap and given[requests[heap[0][1]]["client"]] >= requests[heap[0][1]]["quota"]:
            heapq.heappop(heap)
        ### END VARIANT
        if not heap:
            break
        value, number, _, name = heapq.heappop(heap)
        ### BEGIN VARIANT quota
        given[requests[number]["client"]] += 1
        ### END VARIANT
        ### BEGIN VARIANT grammar quota
        counts[number] += 1
        ### END VARIANT
        ### BEGIN VARIANT pair
        counts[number].append(name)
        ### END VARIANT
        expected -= value
        rows += 1
        offer(number, name, -value)
    return answer


# %% task="engine"
# task: engine
def draft(
    texts: list[list[int]], longest: int, shortest: int, separator: int, k: int, trials: int
) -> list[list[int]]:
    """Return the drafts of each text, more where drafts were right lately."""

    def most(text):
        """The most drafts of a text."""
        hits = 0
        for known in range(len(text) - 1, max(0, len(text) - 1 - trials), -1):
            if propose(text[:known], longest, shortest, separator, 1) == text[known : known + 1]:
                hits += 1
        return hits * k // trials

    return [propose(text, longest, shortest, separator, most(text)) for text in texts]


def tally(records: list[list]) -> dict:
    """Count steps, tokens, and drafts by place: drafted, judged, kept."""
    total = {"records": 0, "tokens": 0, "drafted": [], "judged": [], "kept": []}
    for drafts, said in records:
        total["records"] += 1
        total["tokens"] += len(said)
        while len(total["drafted"]) < len(drafts):
            for name in ("drafted", "judged", "kept"):
                total[name].append(0)
        for i in range(len(drafts)):
            total["drafted"][i] += 1
            if i < len(said):
                total["judged"][i] += 1
                if said[i] == drafts[i]:
                    total["kept"][i] += 1
    return total
