# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# What quire does, brought into the shape that the lab asks for.


# %% task="propose"
# task: propose
def propose(tokens: list[int], longest: int, shortest: int, separator: int, k: int) -> list[int]:
    """`NGramProposer`: copies on from the latest place of the longest end."""
    length = len(tokens)
    for size in range(min(longest, length - 1), shortest - 1, -1):
        for begin in range(length - 1, size - 1, -1):
            if tokens[begin - size : begin] == tokens[length - size :]:
                copied = tokens[begin:]
                return (copied * (k // len(copied) + 1))[:k]
    return []


# %% task="verify"
# task: verify
def verify(requests: list[dict]) -> list[dict]:
    """`accept_equal` on the sampler's choices for all rows, then `append_output` token by token."""
    answers = []
    for request in requests:
        drafts = [d[0] if isinstance(d, list) else d for d in request["drafts"]]
        chosen = []
        for row in range(len(drafts) + 1):
            position = request["position"] + row
            barred = request["stops"] if row < request["least"] else []
            times = {}
            for token, weight in enumerate(request["weights"][row]):
                if weight > 0 and token not in barred:
                    exponential = noise(request["seed"], position, token)
                    times[token] = exponential / weight if request["seed"] is not None else -weight
            chosen.append(min(times, key=times.__getitem__))
        count = 1
        while count <= len(drafts) and chosen[count - 1] == drafts[count - 1]:
            count += 1
        tokens, end = [], None
        for token in chosen[:count]:
            tokens.append(token)
            if token in request["stops"]:
                end = "stop"
            elif len(tokens) == request["left"]:
                end = "length"
            if end is not None:
                break
        answers.append({"tokens": tokens, "rows": list(range(len(tokens))), "end": end})
    return answers


# %% task="ledger"
# task: ledger
class Ledger:
    """The counters of `Request`, and the blocks that the cache manager commits."""

    def __init__(self, block_size: int, max_len: int) -> None:
        self._block_size, self._max_model_len = block_size, max_len
        self._requests, self._steps = {}, {}

    def add(self, request: str, tokens: list[int]) -> None:
        if request in self._requests:
            raise ValueError(f"request_id={request!r} has not ended yet")
        self._requests[request] = {
            "tokens": list(tokens), "computed": 0, "committed": 0, "drafts": [], "admitted": 0,
        }  # fmt: skip

    def state(self, request: str) -> list[int]:
        if request not in self._requests:
            raise ValueError(request)
        r = self._requests[request]
        return [len(r["tokens"]), r["computed"], len(r["drafts"])]

    def behind(self, request: str) -> int:
        """quire has no draft model: nothing is computed by one."""
        return self.state(request)[0]

    def plan(self, request: str, drafts: list[int], budget: int) -> list:
        if request not in self._requests:
            raise ValueError(request)
        r = self._requests[request]
        known, start = len(r["tokens"]), r["computed"]
        drafts = drafts[: max(0, self._max_model_len - known)]
        count = min(budget, known - start + len(drafts))
        samples = start + count >= known
        r["drafts"] = drafts[: max(0, start + count - known)]
        step = len(self._steps) + 1
        self._steps[step] = (request, r, count, samples)
        tokens = (r["tokens"][start:] + r["drafts"])[:count]
        return [step, start, tokens, len(r["drafts"]), samples]

    def settle(self, step: int, tokens: list[int]) -> list[list]:
        if self._steps.get(step) is None:
            raise ValueError(step)
        request, r, count, samples = self._steps[step]
        self._steps[step] = None
        if self._requests.get(request) is not r:
            return []
        r["computed"] += count
        if samples:
            r["computed"] -= len(r["drafts"]) - (len(tokens) - 1)
            r["tokens"] += tokens
        r["drafts"] = []
        size, first = self._block_size, r["committed"]
        r["committed"] = r["computed"] // size
        return [[i, r["tokens"][i * size : (i + 1) * size]] for i in range(first, r["committed"])]

    def preempt(self, request: str) -> None:
        if request not in self._requests:
            raise ValueError(request)
        r = self._requests[request]
        self._requests[request] = r | {"computed": 0, "committed": 0, "drafts": []}

    def end(self, request: str) -> None:
        if request not in self._requests:
            raise ValueError(request)
        del self._requests[request]


# %% task="plan"
# task: plan
def plan(costs: list[int], requests: list[dict], recent: int) -> list:
    """Every request gets as many drafts as `num_speculative_tokens`, whatever they cost."""
    return [request["most"] for request in requests]


# %% task="engine"
# task: engine
def draft(
    texts: list[list[int]], longest: int, shortest: int, separator: int, k: int, trials: int
) -> list[list[int]]:
    """k drafts for each text, whatever came of those before."""
    return [propose(text, longest, shortest, separator, k) for text in texts]


def tally(records: list[list]) -> dict:
    """`Trace.acceptance`: all tokens of a step but the last are kept drafts."""
    places = range(max((len(drafts) for drafts, _ in records), default=0))
    drafted = [sum(i < len(drafts) for drafts, _ in records) for i in places]
    kept = [sum(i < min(len(drafts), max(0, len(said) - 1)) for drafts, said in records)
            for i in places]  # fmt: skip
    tokens = sum(len(said) for _, said in records)
    return {
        "records": len(records), "tokens": tokens, "drafted": drafted, "judged": drafted,
        "kept": kept,
    }  # fmt: skip
