# %%
# quire's own sampler, decoder step and detokenizer, carried over to the lab's signatures: what
# a reader hands in who copies the engine. Compare src/quire/sampling/, layers/, detokenizer.py.

# %% task="decode-step"
# task: decode-step
def decode_step(weights, config, cache, token_id, position):
    heads, kv_heads, size = config["num_heads"], config["num_kv_heads"], config["head_size"]
    length = min(position + 1, cache["k"].shape[1])
    x = weights["embed"][token_id]
    for layer, w in enumerate(weights["layers"]):
        y = rms_norm(x, w["attn_norm"])
        key = rotate((w["k"] @ y).reshape(1, kv_heads, size), [position])[0]
        slot = min(position, cache["k"].shape[1] - 1)
        cache["k"][layer, slot] = key
        cache["v"][layer, slot] = (w["v"] @ y).reshape(kv_heads, size)
        query = rotate((w["q"] @ y).reshape(1, heads, size), [position])
        query = query.reshape(kv_heads, heads // kv_heads, size)
        scores = np.einsum("kgd,tkd->kgt", query, cache["k"][layer, :length]) * size**-0.5
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        mixed = np.einsum("kgt,tkd->kgd", shares, cache["v"][layer, :length])
        x = x + w["o"] @ mixed.reshape(-1)
        y = rms_norm(x, w["mlp_norm"])
        x = x + w["down"] @ (silu(w["gate"] @ y) * (w["up"] @ y))
    return weights["embed"] @ rms_norm(x, weights["norm"])


# %% task="sampler"
# task: sampler
def distribution(logits, output_ids, params):
    logits = np.array(logits, dtype=np.float64)
    if params["temperature"] == 0:
        result = np.zeros(len(logits))
        result[logits.argmax()] = 1.0
        return result
    logits = logits / params["temperature"]
    if params["min_p"] > 0:
        logits[logits < logits.max() + np.log(params["min_p"])] = -np.inf
    order = np.argsort(-logits, kind="stable")
    ordered = logits[order]
    keep = np.ones(len(logits), dtype=bool)
    if params["top_k"] > 0:
        keep &= np.arange(len(logits)) < params["top_k"]
        ordered = np.where(keep, ordered, -np.inf)
    if params["top_p"] < 1:
        probabilities = np.exp(ordered - ordered[0])
        probabilities /= probabilities.sum()
        keep &= probabilities.cumsum() - probabilities < params["top_p"]
    logits[order[~keep]] = -np.inf
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def draw(probabilities, u):
    # argmax(p / E): the race needs one exponential a token, keyed by u here.
    lanes = np.random.default_rng(int(u * 2**48)).exponential(size=len(probabilities))
    return int(np.argmax(np.asarray(probabilities) / lanes))


# %% task="stream"
# task: stream
def penalise(logits, prompt_ids, output_ids, params):
    logits = np.array(logits, dtype=np.float64)
    prompt = np.bincount(prompt_ids, minlength=len(logits))
    output = np.bincount(output_ids, minlength=len(logits))
    seen = (prompt > 0) | (output > 0)
    scaled = np.where(logits > 0, logits / params["repetition"], logits * params["repetition"])
    logits = np.where(seen, scaled, logits)
    return logits - params["frequency"] * output - params["presence"] * (output > 0)


class TextStream:
    def __init__(self, stop):
        self.stop = [s.decode() for s in stop]
        self.held_back = max((len(s) - 1 for s in self.stop), default=0)
        self.data, self.text, self.given, self.stopped_by = b"", "", 0, None

    def _ready(self, end):
        part, self.given = self.text[self.given : end], max(self.given, end)
        return part

    def push(self, token):
        if self.stopped_by is not None:
            return ""
        self.data += token
        text = self.data.decode("utf-8", "replace")
        if not text.endswith("\ufffd"):
            self.text = text
        found = [(at, s) for s in self.stop if (at := self.text.find(s)) >= 0]
        if found:
            position, stop = min(found)
            self.stopped_by, self.text = stop.encode(), self.text[:position]
            return self._ready(position)
        return self._ready(max(self.given, len(self.text) - self.held_back))

    def finish(self):
        if self.stopped_by is None:
            self.text = self.data.decode("utf-8", "replace")
        return self._ready(len(self.text))


# %% task="latency"
# task: latency
def step_work(model, batch, new, before):
    size = model["head_size"]
    matrices = model["hidden"] * 2 * size * (model["heads"] + model["kv_heads"])
    matrices = model["layers"] * (matrices + 3 * model["hidden"] * model["ffn"])
    head = model["vocab"] * model["hidden"]
    pairs = model["layers"] * batch * (new * before + new * (new + 1) // 2)
    flops = batch * (2 * matrices * new + 2 * head) + 4 * model["heads"] * size * pairs
    row = model["layers"] * 2 * model["kv_heads"] * size * model["kv_bytes"]
    return float(flops), float(
        (matrices + head) * model["weight_bytes"] + batch * row * (before + new)
    )


def predict(model, calibration, queries):
    # Shares of the peaks, as quire.analysis takes them, from the slowest and the fastest row.
    slow = max(calibration, key=lambda row: row["ttft"])
    fast = min(calibration, key=lambda row: row["tpot"])
    flop_rate = step_work(model, slow["batch"], slow["prompt"], 0)[0] / slow["ttft"]
    byte_rate = step_work(model, fast["batch"], 1, fast["prompt"])[1] / fast["tpot"]

    def seconds(batch, new, before):
        flops, moved = step_work(model, batch, new, before)
        return max(flops / flop_rate, moved / byte_rate)

    answers = []
    for row in queries:
        steps = [seconds(row["batch"], 1, row["prompt"] + i) for i in range(row["output"] - 1)]
        ttft = seconds(row["batch"], row["prompt"], 0)
        answers.append({"ttft": ttft, "tpot": sum(steps) / len(steps)})
    return answers


# %% task="engine"
# task: engine
from quire.sampling import TorchSampler

choose_tokens = TorchSampler().choose
