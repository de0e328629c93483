# %%
# An independent second solution: other algorithms, no line shared with the master. It shows
# that the hidden tests judge the specification and not one way of writing it.

# %% task="decode-step"
# task: decode-step
def decode_step(weights, config, cache, token_id, position):
    sinks, window, size = config["sinks"], config["window"], config["head_size"]
    group = config["num_heads"] // config["num_kv_heads"]
    total = sinks + window

    # Which position each slot holds now: the largest p <= position that maps to it.
    holds = []
    for slot in range(total):
        if slot < sinks:
            holds.append(slot if slot <= position else -1)
        else:
            turns = (position - slot) // window
            holds.append(slot + turns * window if position >= slot else -1)
    valid = [slot for slot in range(total) if holds[slot] >= 0]
    rank = {slot: sum(holds[other] < holds[slot] for other in valid) for slot in valid}
    mine = next(slot for slot in valid if holds[slot] == position)

    x = np.array(weights["embed"][token_id], dtype=np.float64)
    for index, layer in enumerate(weights["layers"]):
        normed = rms_norm(x, layer["attn_norm"])
        cache["k"][index][mine] = np.dot(layer["k"], normed).reshape(-1, size)
        cache["v"][index][mine] = np.dot(layer["v"], normed).reshape(-1, size)
        queries = np.dot(layer["q"], normed).reshape(-1, size)
        queries = rotate(queries[None], [rank[mine]])[0]
        turned = {s: rotate(cache["k"][index][s][None], [rank[s]])[0] for s in valid}
        output = np.zeros_like(queries)
        for head, query in enumerate(queries):
            scores = np.array([query @ turned[s][head // group] for s in valid]) / size**0.5
            weight = np.exp(scores - np.logaddexp.reduce(scores))
            for share, s in zip(weight, valid, strict=True):
                output[head] += share * cache["v"][index][s][head // group]
        x = x + layer["o"] @ output.ravel()
        normed = rms_norm(x, layer["mlp_norm"])
        x = x + layer["down"] @ (silu(layer["gate"] @ normed) * (layer["up"] @ normed))
    return rms_norm(x, weights["norm"]) @ weights["embed"].T


# %% task="sampler"
# task: sampler
import math
from bisect import bisect_right
from collections import Counter
from itertools import accumulate


def distribution(logits, output_ids, params):
    vocab = len(logits)
    pool = range(vocab) if params["allowed"] is None else set(params["allowed"])
    if params["quota"]:
        first = max(0, len(output_ids) - params["span"])
        times = Counter(output_ids[first:])
        pool = [i for i in pool if times[i] < params["quota"]] or pool
    line = sorted(pool, key=lambda i: (-float(logits[i]), i))
    if params["temperature"] == 0:
        line, mass = line[:1], [1.0]
    else:
        best = float(logits[line[0]])
        mass = [math.exp((float(logits[i]) - best) / params["temperature"]) for i in line]
    if params["temperature"] != 0:
        mass = mass[: params["top_k"] or vocab]
        if params["top_p"] < 1:
            ends = list(accumulate(mass))
            target = params["top_p"] * ends[-1]
            mass = mass[: 1 + sum(end < target for end in ends)]
        mass = [m for m in mass if m >= params["min_p"] * mass[0]]
    whole = math.fsum(mass)
    result = np.zeros(vocab)
    for i, m in zip(line, mass, strict=False):
        result[i] = m / whole
    return result


def draw(probabilities, u):
    ends = list(accumulate(float(p) for p in probabilities))
    index = bisect_right(ends, u)
    while index >= len(ends) or probabilities[index] == 0:
        index = index - 1 if index >= len(ends) or u >= ends[-1] else index + 1
    return index


# %% task="stream"
# task: stream
def penalise(logits, prompt_ids, output_ids, params):
    result = [float(x) for x in logits]
    both = [(token, 0) for token in prompt_ids] + [(token, 1) for token in output_ids]
    both = list(reversed(both))[: params["window"]]
    counts = {}
    for token, from_output in both:
        counts[token] = counts.get(token, 0) + from_output
    for token, count in counts.items():
        value = result[token]
        value = value / params["repetition"] if value > 0 else value * params["repetition"]
        result[token] = value - count * params["frequency"] - min(count, 1) * params["presence"]
    return np.array(result)


class TextStream:
    def __init__(self, stop):
        self.stop, self.stopped_by = stop, None
        self.data, self.shown = b"", 0  # all bytes so far; characters returned so far

    def _text(self, end, final):
        """Characters of data[:end]; without `final`, those whose bytes are all there."""
        waiting = [n for n in (1, 2, 3) if n <= end and self._may_grow(self.data[end - n : end])]
        if waiting and not final:
            end -= waiting[0]
        return self.data[:end].decode("utf-8", "replace")

    @staticmethod
    def _may_grow(tail):
        """Whether bytes can be completed to one character."""
        if not tail:
            return False
        try:
            tail.decode("utf-8")
        except UnicodeDecodeError as error:
            return error.reason == "unexpected end of data" and error.start == 0
        return False

    def _give(self, end, final):
        text = self._text(end, final)
        new, self.shown = text[self.shown :], max(self.shown, len(text))
        return new

    def push(self, token):
        if self.stopped_by is not None:
            return ""
        for value in token:
            self.data += bytes((value,))
            hits = sorted((s for s in self.stop if self.data.endswith(s)), key=len)
            if hits:
                self.stopped_by = hits[-1]
                return self._give(len(self.data) - len(hits[-1]), True)
        start = next(
            (
                at
                for at in range(len(self.data))
                if any(s.startswith(self.data[at:]) for s in self.stop)
            ),
            len(self.data),
        )
        return self._give(start, False)

    def finish(self):
        return "" if self.stopped_by is not None else self._give(len(self.data), True)


# %% task="latency"
# task: latency
def step_work(model, batch, new, before):
    size, layers, kv = model["head_size"], model["layers"], model["kv_heads"]
    attention = model["hidden"] * size * (2 * model["heads"] + 2 * kv)
    weights = layers * (attention + 3 * model["hidden"] * model["ffn"])
    head = model["hidden"] * model["vocab"]
    full = 2 * kv * size * model["kv_bytes"]
    computed, pairs, moved = batch * new, 0, 0
    ### BEGIN VARIANT window
    for layer in range(layers):
        span = model["window"] if layer % 2 else before + new
        full_width = max(0, new - max(0, span - before))  # new tokens that see `span` tokens
        growing = new - full_width
        pairs += batch * (growing * (2 * before + growing + 1) // 2 + full_width * span)
        moved += batch * full * (max(0, min(before, span - 1)) + new)
    ### END VARIANT
    ### BEGIN VARIANT quantized
    pairs = batch * layers * sum(before + i + 1 for i in range(new))
    small = 2 * kv * (size + model["scale_bytes"])
    for token in range(before + new):
        was_old, is_old = token < before - model["recent"], token < before + new - model["recent"]
        moved += (small if was_old else full) if token < before else full
        moved += small if is_old and not was_old else 0
    moved *= batch * layers
    ### END VARIANT
    ### BEGIN VARIANT shared
    computed = 0
    for token in range(before, before + new):
        copies = 1 if token < model["shared"] else batch
        computed += copies
        pairs += layers * copies * (token + 1)
    in_prefix = min(before, model["shared"])
    moved = layers * full * (in_prefix + batch * (before - in_prefix) + computed)
    ### END VARIANT
    flops = 2 * weights * computed + 2 * head * batch + 4 * model["heads"] * size * pairs
    return flops, (weights + head) * model["weight_bytes"] + moved


def predict(model, calibration, queries):
    """Nonlinear least squares in the logarithms of overhead, 1/F and 1/B."""

    def split(row):
        decode = [
            step_work(model, row["batch"], 1, row["prompt"] + i) for i in range(row["output"] - 1)
        ]
        return np.array([step_work(model, row["batch"], row["prompt"], 0)]), np.array(decode)

    known = [part for row in calibration for part in split(row)]
    seconds = np.array([value for row in calibration for value in (row["ttft"], row["tpot"])])
    starts = np.cumsum([0, *(len(part) for part in known)])[:-1]
    sizes = np.array([len(part) for part in known])
    stacked = np.concatenate(known)

    def residuals(point):
        overhead, flop_time, byte_time = np.exp(point)
        steps = overhead + np.maximum(stacked[:, 0] * flop_time, stacked[:, 1] * byte_time)
        return np.log(np.add.reduceat(steps, starts) / sizes / seconds)

    def descend(point):
        """Levenberg and Marquardt's steps, with a numeric Jacobian."""
        damping, current = 1.0, residuals(point)
        for _ in range(60):
            moved = [residuals(point + 1e-6 * np.eye(3)[i]) for i in range(3)]
            slope = (np.array(moved).T - current[:, None]) / 1e-6
            normal = slope.T @ slope + damping * np.eye(3)
            trial = point - np.linalg.solve(normal, slope.T @ current)
            after = residuals(np.maximum(trial, -60))
            if after @ after < current @ current:
                point, current, damping = np.maximum(trial, -60), after, damping / 4
            else:
                damping *= 3
        return current @ current, point

    floor, flop_time = seconds.min(), seconds.max() / stacked[:, 0].max()
    tries = [
        descend(np.log([floor * part, flop_time, flop_time * intensity]))
        for part in (0.01, 0.5)
        for intensity in (1, 10, 100, 1000)
    ]
    overhead, flop_time, byte_time = np.exp(min(tries, key=lambda pair: pair[0])[1])

    def mean(part):
        return float(np.mean(overhead + np.maximum(part[:, 0] * flop_time, part[:, 1] * byte_time)))

    return [dict(zip(("ttft", "tpot"), map(mean, split(row)), strict=True)) for row in queries]


# %% task="engine"
# task: engine
def choose_tokens(rows):
    def one(row):
        pressed = penalise(row["logits"], row["prompt_ids"], row["output_ids"], row["params"])
        shares = distribution(pressed, row["output_ids"], row["params"])
        return draw(shares, noise(row["seed"], row["position"]))

    return [one(row) for row in rows]
