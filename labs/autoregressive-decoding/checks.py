"""The public checks: a few fixed cases whose answers fit in a line.

Expected values are written out, or follow from a property that needs no solution.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from labkit.reader.subject import Subject

NEUTRAL: dict[str, Any] = {
    "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "allowed": None, "quota": None,
    "span": 0,
}  # fmt: skip
NO_PENALTY: dict[str, Any] = {"repetition": 1.0, "presence": 0.0, "frequency": 0.0, "window": 0}


# ---- decode-step


def _one_layer(head_size: int = 2) -> tuple[dict[str, Any], dict[str, Any]]:
    """A decoder whose numbers can be followed by hand: every matrix is an identity or zero."""
    one, zero = np.eye(2), np.zeros((2, 2))
    layer = {
        "attn_norm": np.ones(2), "q": one, "k": one, "v": one, "o": one,
        "mlp_norm": np.ones(2), "gate": zero, "up": zero, "down": zero,
    }  # fmt: skip
    weights = {"embed": np.array([[1.0, 1.0], [1.0, -1.0], [3.0, 0.0]]), "norm": np.ones(2)}
    config = {"num_heads": 1, "num_kv_heads": 1, "head_size": head_size, "sinks": 1, "window": 2}
    return weights | {"layers": [layer]}, config


def _cache(value: float = 0.0) -> dict[str, np.ndarray[Any, Any]]:
    return {"k": np.full((1, 3, 1, 2), value), "v": np.full((1, 3, 1, 2), value)}


def first_token(student: Subject, variant: str) -> None:
    """The first token attends to itself, whatever lies in the other slots."""
    weights, config = _one_layer()
    want = np.array([2.0, 0.0, 3.0])
    for stale in (0.0, 50.0):
        student.expect(
            "decode_step", weights, config, _cache(stale), 0, 0,
            want=want, tolerance=1e-4, because="x = [2, 2], and its norm gives [1, 1]",
        )  # fmt: skip


def slots(student: Subject, variant: str) -> None:
    """Positions 0 to 5 go to slots 0, 1, 2, 1, 2, 1 when sinks=1 and window=2."""
    weights, config = _one_layer()
    for position, slot in enumerate((0, 1, 2, 1, 2, 1)):
        cache = _cache(7.0)
        _, (after,) = student.call_returning(
            [2], "decode_step", weights, config, cache, 1, position
        )
        want = np.array([[7.0, 7.0]] * 3)
        want[slot] = [1.0, -1.0]
        for name in ("k", "v"):
            said = student.said("decode_step", weights, config, cache, 1, position)
            call = f"{said}; then cache[{name!r}][0, :, 0]"
            student.compare(
                call, np.asarray(after[name])[0, :, 0], want, 1e-4,
                f"slot {slot} holds the new {name}, before rotation; the others stay",
            )  # fmt: skip


def unreached(student: Subject, variant: str) -> None:
    """A slot that this text has not reached holds another request's numbers and does not count."""
    weights, config = _one_layer()
    for stale in (0.0, 50.0):
        cache = _cache(stale)
        cache["k"][0, 0, 0] = cache["v"][0, 0, 0] = [1.0, 1.0]
        # Token 1 sees token 0 and itself, whose values are equal.
        student.expect(
            "decode_step", weights, config, cache, 0, 1, want=np.array([2.0, 0.0, 3.0]),
            tolerance=1e-4, because="slots 0 and 1 are written, slot 2 is not",
        )  # fmt: skip


def heads(student: Subject, variant: str) -> None:
    """Query head h reads KV head h // (num_heads // num_kv_heads)."""
    weights, config = _one_layer()
    (layer,) = weights["layers"]
    of_four = {
        # Queries of 200 and -200: heads 0 and 1 see the token before alone, 2 and 3 the new one.
        "q": np.array([[100.0, 100], [0, 0]] * 2 + [[-100, -100], [0, 0]] * 2),
        "k": np.zeros((4, 2)),
        "v": np.array([[0.5, 0.5], [0, 0], [1, 1], [0, 0]]),  # new values: 1 and 2
        "o": np.array([[0.0, 0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0, 0]]),  # heads 1 and 2
    }
    weights["layers"] = [layer | of_four]
    config |= {"num_heads": 4, "num_kv_heads": 2}
    cache = {name: np.zeros((1, 3, 2, 2)) for name in ("k", "v")}
    cache["k"][0, 0], cache["v"][0, 0] = [[9, 0], [9, 0]], [[10, 0], [20, 0]]
    x = np.array([11.0, 3.0])  # 1 + the old value of KV head 0, 1 + the new one of KV head 1
    want = weights["embed"] @ (x / np.sqrt((x * x).mean()))
    student.expect(
        "decode_step", weights, config, cache, 0, 1, want=want, tolerance=1e-4,
        because="heads 0 and 1 read KV head 0, heads 2 and 3 read KV head 1",
    )  # fmt: skip


def ranks(student: Subject, variant: str) -> None:
    """The three kept tokens have ranks 0, 1, 2, oldest first, whichever slots they lie in."""
    weights, config = _one_layer()
    # Scores of the three with the query [1, 1] turned by 2: the key [4, 0] at rank 0, the key
    # [0, 4] turned by 1, the key [1, 1] turned by 2.
    q = np.array([np.cos(2) - np.sin(2), np.cos(2) + np.sin(2)])
    keys = np.array([[4.0, 0.0], [-4 * np.sin(1), 4 * np.cos(1)], q])
    shares = np.exp(keys @ q / np.sqrt(2))
    shares /= shares.sum()
    x = np.array([1.0, 1.0]) + shares @ np.array([[9.0, 0.0], [0.0, 9.0], [1.0, 1.0]])
    want = weights["embed"] @ (x / np.sqrt((x * x).mean()))
    # The sink is in slot 0. Position 99 is in slot 1, where 101 goes; 100 in slot 2.
    for position, before in ((100, 1), (101, 2)):
        cache = _cache()
        cache["k"][0, [0, before], 0] = [[4.0, 0.0], [0.0, 4.0]]
        cache["v"][0, [0, before], 0] = [[9.0, 0.0], [0.0, 9.0]]
        student.expect(
            "decode_step", weights, config, cache, 0, position, want=want, tolerance=1e-4,
            because=f"the keys are turned by 0, 1, 2, of which slot {before} has 1; the query by 2",
        )  # fmt: skip


# ---- sampler


def _log(*probabilities: float) -> np.ndarray[Any, Any]:
    return np.log(np.array(probabilities))


def truncation(student: Subject, variant: str) -> None:
    """top_k and top_p keep the right tokens and renormalise."""
    logits = _log(0.5, 0.3, 0.15, 0.05)
    want = np.array([0.625, 0.375, 0.0, 0.0])
    for change in ({"top_k": 2}, {"top_p": 0.75}):
        student.expect(
            "distribution", logits, [], NEUTRAL | change, want=want, tolerance=1e-6,
            because="tokens 0 and 1 stay",
        )  # fmt: skip


def banned(student: Subject, variant: str) -> None:
    """Spent tokens are banned before top_k looks; only the last `span` tokens count."""
    logits = _log(0.5, 0.3, 0.15, 0.05)
    params = NEUTRAL | {"quota": 2, "span": 3, "top_k": 2}
    student.expect(
        "distribution", logits, [0, 1, 0], params, want=np.array([0.0, 2 / 3, 1 / 3, 0.0]),
        tolerance=1e-6, because="token 0 stood twice among the last 3",
    )  # fmt: skip
    student.expect(
        "distribution", logits, [0, 0, 1, 1, 2], params, want=np.array([0.769231, 0, 0.230769, 0]),
        tolerance=1e-5, because="the last 3 are 1, 1, 2: token 1 is spent",
    )  # fmt: skip


def in_this_order(student: Subject, variant: str) -> None:
    """Temperature divides; min_p comes last, and is a share of the most probable one."""

    def expect(
        logits: Any, want: list[float], changes: dict[str, Any], because: str = "", out: Any = ()
    ) -> None:
        student.expect(
            "distribution", logits, list(out), NEUTRAL | changes, want=np.array(want),
            tolerance=1e-4, because=because,
        )  # fmt: skip

    expect(_log(0.8, 0.2), [2 / 3, 1 / 3], {"temperature": 2.0}, "the roots of 0.8 and 0.2")
    even = _log(0.5, 0.3, 0.15, 0.05)
    expect(even, [0.625, 0.375, 0, 0], {"min_p": 0.4}, "0.15 is less than 0.4 times 0.5")
    why = "the root of 0.3 is 0.77 times that of 0.5"
    expect(even, [0.5635, 0.4365, 0, 0], {"temperature": 2.0, "min_p": 0.65}, why)
    why = "0.5 and 0.3 hold 0.84 of what top_k has left"
    expect(even, [0.625, 0.375, 0, 0], {"top_k": 3, "top_p": 0.82}, why)
    expect(
        _log(0.3, 0.2, 0.15, 0.12, 0.1, 0.06, 0.04, 0.03),
        [0.461538, 0.307692, 0.230769, 0, 0, 0, 0, 0], {"top_p": 0.6, "min_p": 0.45},
        "top_p keeps 0.3, 0.2 and 0.15, which are at least 0.45 times 0.3",
    )  # fmt: skip


def edges(student: Subject, variant: str) -> None:
    """Equal logits by their ids; a set that reaches top_p is complete; a quota may be lifted."""
    flat, even = np.zeros(4), _log(0.4, 0.3, 0.2, 0.1)
    for change in ({"top_k": 2}, {"top_p": 0.5}):
        student.expect(
            "distribution", flat, [], NEUTRAL | change, want=np.array([0.5, 0.5, 0.0, 0.0]),
            tolerance=1e-6, because="tokens 0 and 1 come first and hold exactly 0.5",
        )  # fmt: skip
    student.expect(
        "distribution", even, [1, 2], NEUTRAL | {"allowed": [1, 2], "quota": 1, "span": 4},
        want=np.array([0.0, 0.6, 0.4, 0.0]), tolerance=1e-6,
        because="both that are allowed are spent: the quota is lifted, `allowed` is not",
    )  # fmt: skip
    student.expect(
        "distribution", even, [0, 0], NEUTRAL | {"quota": 1, "span": 0},
        want=np.array([0.4, 0.3, 0.2, 0.1]), tolerance=1e-6, because="span 0: no token counts",
    )  # fmt: skip


def greedy(student: Subject, variant: str) -> None:
    """Temperature 0 gives the best allowed token probability 1."""
    params = NEUTRAL | {"temperature": 0, "allowed": [2, 1]}
    student.expect(
        "distribution", _log(0.5, 0.2, 0.2, 0.1), [], params, want=np.array([0.0, 1.0, 0.0, 0.0]),
        tolerance=1e-9, because="tokens 1 and 2 are allowed and equal: the smaller id",
    )  # fmt: skip


def draws(student: Subject, variant: str) -> None:
    """draw walks along the cumulative probabilities and skips impossible tokens."""
    probabilities = np.array([0.0, 0.25, 0.0, 0.75])
    for u, want in ((0.0, 1), (0.24, 1), (0.25, 3), (0.999, 3)):
        student.expect("draw", probabilities, u, want=want)
    short = np.array([0.5, 0.4999, 0.0])
    student.expect("draw", short, 0.99995, want=1, because="the sum is below u, and 2 impossible")


# ---- stream


def penalties(student: Subject, variant: str) -> None:
    """The window reaches over output and prompt; frequency counts output only."""
    params = NO_PENALTY | {"repetition": 2.0, "frequency": 0.5, "window": 4}
    student.expect(
        "penalise", np.array([2.0, -2.0, 1.0, 1.0]), [2, 1], [3, 0, 0], params,
        want=np.array([0.0, -4.0, 1.0, 0.0]), tolerance=1e-9,
        because="the window holds 1 | 3, 0, 0; token 2 lies before it",
    )  # fmt: skip
    student.expect(
        "penalise", np.array([2.0, -2.0, 1.0, 1.0]), [2, 1], [3, 0, 0],
        NO_PENALTY | {"presence": 0.5, "window": 4}, want=np.array([1.5, -2.0, 1.0, 0.5]),
        tolerance=1e-9, because="presence is subtracted once, and for output tokens alone",
    )  # fmt: skip
    student.expect(
        "penalise", np.array([2.0, -2.0]), [0], [1], NO_PENALTY | {"repetition": 2.0},
        want=np.array([2.0, -2.0]), tolerance=1e-9, because="no token lies in a window of 0",
    )  # fmt: skip


def characters(student: Subject, variant: str) -> None:
    """A character is shown when its last byte has come."""
    stream = student.new("TextStream", [])
    stream.expect("push", b"d\xc3", want="d")
    stream.expect("push", b"\xa9", want="é")
    stream.expect("push", b"\xe2\x82", want="")
    stream.expect("finish", want="\ufffd", because="the rest of the character never came")


def stops(student: Subject, variant: str) -> None:
    """A stop string is found across tokens, and only what may begin one is held back."""
    stream = student.new("TextStream", [b"\n\n", b"END"])
    stream.expect("push", b"a\n", want="a", because="a second newline may follow")
    stream.expect("push", b"bE", want="\nb")
    stream.expect("push", b"N", want="")
    stream.expect_attribute("stopped_by", None)
    stream.expect("push", b"D!", want="", because="the text ends before END")
    stream.expect_attribute("stopped_by", b"END")
    stream.expect("finish", want="")


def held_and_partial(student: Subject, variant: str) -> None:
    """A held byte is shown before a character that is not whole, and cuts off one before it."""
    stream = student.new("TextStream", [b"()"])
    stream.expect("push", b"a(", want="a", because="a closing bracket may follow")
    stream.expect("push", b"\xc3", want="(", because="no stop string begins so; the byte waits")
    stream.expect("push", b"\xa9", want="é")
    stream.expect("push", b"\xe2\x82(", want="", because="the bracket is held, so not text yet")
    stream.expect(
        "push", b"x", want="\ufffd(x", because="the bracket is text: the character is cut"
    )


def stops_that_overlap(student: Subject, variant: str) -> None:
    """A stop string that begins inside a false start; two that one byte completes; a cut one."""
    stream = student.new("TextStream", [b"aab"])
    stream.expect("push", b"aaab", want="a", because="aab begins at the second a")
    stream.expect_attribute("stopped_by", b"aab")
    stream.expect("push", b"more", want="", because="nothing is shown behind a stop string")
    stream = student.new("TextStream", [b"ab", b"bab"])
    stream.expect("push", b"xbab", want="x", because="one byte completes both: the longer counts")
    stream.expect_attribute("stopped_by", b"bab")
    stream = student.new("TextStream", [b"END"])
    why = "the stop string cuts the character off from its third byte"
    stream.expect("push", b"a\xe2\x82END", want="a\ufffd", because=why)


# ---- latency

TINY = {
    "layers": 2, "hidden": 4, "heads": 2, "kv_heads": 1, "head_size": 2, "ffn": 8, "vocab": 10,
    "weight_bytes": 2, "kv_bytes": 2,
}  # fmt: skip
OFF = {
    "window": {"window": 1 << 30},
    "quantized": {"recent": 1 << 30, "scale_bytes": 2},
    "shared": {"shared": 0},
}
# (special part, new, before, FLOPs, bytes, why) with batch 2: 144 weights a layer, 40 in the head.
SPECIAL = {
    "window": (
        {"window": 3}, 2, 4, 2 * 144 * 2 * 4 + 2 * 40 * 2 + 16 * 2 * (11 + 6),
        656 + 8 * 2 * (4 + 2 + 2 * 2),
        "layer 0 sees 5 + 6 tokens, layer 1 sees 3 + 3 and reads 2 of the cache",
    ),
    "quantized": (
        {"recent": 3, "scale_bytes": 2}, 2, 4, 2 * 144 * 2 * 4 + 2 * 40 * 2 + 16 * 2 * (11 + 11),
        656 + 2 * 2 * (3 * 8 + 1 * 8 + 2 * 8 + 2 * 8),
        "a layer reads 3 tokens of 8 bytes and 1 old one of 4 + 4, writes 2 and rewrites 2",
    ),
    "shared": (
        {"shared": 5}, 2, 4, 2 * 144 * 2 * 3 + 2 * 40 * 2 + 16 * 2 * (5 + 2 * 6),
        656 + 8 * 2 * (4 + 3),
        "position 4 is computed once, position 5 twice",
    ),
}  # fmt: skip


def plain_step(student: Subject, variant: str) -> None:
    """A decode step with nothing special, counted by hand."""
    flops, moved = 2 * (2 * 144 + 40) * 3 + 16 * 3 * 6 * 2, 656 + 8 * 3 * (5 + 1) * 2
    student.expect(
        "step_work", TINY | OFF[variant], 3, 1, 5, want=[float(flops), float(moved)],
        tolerance=1e-9, because="3 sequences, 1 new token each, 5 before",
    )  # fmt: skip


def special_step(student: Subject, variant: str) -> None:
    """A step with your model's special part, counted by hand."""
    special, new, before, flops, moved, why = SPECIAL[variant]
    student.expect(
        "step_work", TINY | special, 2, new, before, want=[float(flops), float(moved)],
        tolerance=1e-9, because=why,
    )  # fmt: skip


LARGER = TINY | {
    "hidden": 256, "heads": 4, "kv_heads": 4, "head_size": 64, "ffn": 1024, "vocab": 8000,
    "layers": 4,
}  # fmt: skip
OVERHEAD, RATE, BYTES = 1e-3, 1e11, 1e10  # s, FLOP/s, bytes/s


def _seconds(batch: int, new: int, before: int) -> float:
    """The time of a step of LARGER, with nothing special, on the made-up machine."""
    weights, head = 4 * 256 * (2 * 64 * 8 + 3 * 1024), 8000 * 256
    pairs = new * before + new * (new + 1) // 2
    flops = batch * (2 * weights * new + 2 * head + 4 * 4 * 64 * 4 * pairs)
    moved = 2 * (weights + head) + 2 * 4 * 2 * 4 * 64 * batch * (new + before)
    return OVERHEAD + max(flops / RATE, moved / BYTES)


def _measured(batch: int, prompt: int, output: int) -> dict[str, float]:
    steps = [_seconds(batch, 1, prompt + i) for i in range(output - 1)]
    ttft, tpot = _seconds(batch, prompt, 0), sum(steps) / len(steps)
    return {"batch": batch, "prompt": prompt, "output": output, "ttft": ttft, "tpot": tpot}


def _predicts(
    student: Subject, variant: str, noise: float, worst: float, *queries: tuple[int, int, int]
) -> None:
    """Expect predictions as a share of the truth."""
    model = LARGER | OFF[variant]
    rows = [
        _measured(batch, prompt, output)
        for batch in (1, 8, 64)
        for prompt, output in ((8, 2), (60, 30), (500, 9), (4000, 4))
    ]
    for i, row in enumerate(rows):  # now too long, now too short
        row["ttft"] *= 1 + noise * (-1) ** (i + 1)
        row["tpot"] *= 1 + noise * (-1) ** (i // 2)
    asked = [dict(zip(("batch", "prompt", "output"), query, strict=True)) for query in queries]
    got = student.call("predict", model, rows, asked)
    want = [{"ttft": 1.0, "tpot": 1.0}] * len(queries)
    if type(got) is list and len(got) == len(queries) and all(type(one) is dict for one in got):
        truths = [_measured(*query) for query in queries]
        got = [
            {key: one.get(key, 0) / truth[key] for key in want[0]}
            for one, truth in zip(got, truths, strict=True)
        ]
    said = student.said("predict", model, rows, asked)
    student.compare(f"{said}: each prediction / the truth", got, want, worst)


def prediction(student: Subject, variant: str) -> None:
    """Rows of a made-up machine, 1 ms a step, 1e11 FLOP/s, 1e10 bytes/s: others are predicted."""
    _predicts(student, variant, 0.0, 0.03, (1, 8, 2), (1, 1500, 2), (16, 200, 20))


def growing_cache(student: Subject, variant: str) -> None:
    """Each decode step has one token more in its cache."""
    _predicts(student, variant, 0.0, 0.03, (64, 8, 300), (64, 100, 200))


def noisy_rows(student: Subject, variant: str) -> None:
    """Rows that are 4 % too long and too short: a short step is fitted as well as a long one."""
    _predicts(student, variant, 0.04, 0.09, (1, 8, 2), (2, 30, 9), (16, 200, 20))


# ---- engine


def _row(seed: int, position: int, **changes: Any) -> dict[str, Any]:
    return {
        "logits": _log(0.4, 0.3, 0.2, 0.1), "seed": seed, "position": position,
        "prompt_ids": [0], "output_ids": [0, 0, 1], "params": NEUTRAL | NO_PENALTY | changes,
    }  # fmt: skip


def rows(student: Subject, variant: str) -> None:
    """Each row gets its own token, in any order."""
    cases = [
        _row(1, 5, temperature=0),
        _row(1, 5, temperature=0, quota=2, span=3),
        _row(7, 9, temperature=0, repetition=3.0, window=3),
    ]
    student.expect("choose_tokens", cases, want=[0, 1, 2], because="greedy, quota, penalties")
    student.expect("choose_tokens", cases[::-1], want=[2, 1, 0], because="the rows reversed")


def keyed_noise(student: Subject, variant: str) -> None:
    """The draw is keyed by seed and position."""
    cases = [_row(seed, position) for seed, position in ((1, 6), (3, 9), (7, 9), (2, 5))]
    want = [0, 1, 2, 0]  # the noise is 0.384, 0.502, 0.808, 0.161
    student.expect("choose_tokens", cases, want=want, because="noise(seed, position) decides")


CHECKS = {
    "decode-step": [first_token, unreached, slots, heads, ranks],
    "sampler": [truncation, banned, in_this_order, edges, greedy, draws],
    "stream": [penalties, characters, stops, held_and_partial, stops_that_overlap],
    "latency": [plain_step, special_step, prediction, growing_cache, noisy_rows],
    "engine": [rows, keyed_noise],
}
