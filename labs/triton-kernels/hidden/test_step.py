"""Hidden tests of `ledger`, and a step of quire on the reader's kernels."""

from __future__ import annotations

import random

from .driving import judge_gemv, judge_norm, judge_product
from .in_quire import SPLITS, Judged, engine

NAMES = ["add_norm", "gemv", "partial", "combine"]


def _launches(rng, count):
    return [
        {
            "kernel": rng.choice(NAMES), "programs": rng.randint(1, 300),
            "read": {name: rng.randrange(9000) for name in rng.sample("xwyz", rng.randint(1, 3))},
            "written": {name: rng.randrange(400) for name in rng.sample("xwyz", 1)},
        }
        for _ in range(count)
    ]  # fmt: skip


def _moved(one):
    return sum(one["read"].values()) + sum(one["written"].values())


def _want(launches, processors, bandwidth, overhead):
    times = [(_moved(one) / bandwidth, overhead) for one in launches]
    seconds = sum(max(pair) for pair in times)
    by_bytes = sum(taken for taken, least in times if taken > least)
    names = [one["kernel"] for one in launches if one["programs"] < processors]
    return {
        "read": sum(sum(one["read"].values()) for one in launches),
        "written": sum(sum(one["written"].values()) for one in launches),
        "by_kernel": {
            name: sum(_moved(one) for one in launches if one["kernel"] == name)
            for name in dict.fromkeys(one["kernel"] for one in launches)
        },
        "idle": list(dict.fromkeys(names)),
        "seconds": float(seconds),
        "bound": "bytes" if by_bytes > seconds / 2 else "launches",
    }  # fmt: skip


def _judge(student, launches, processors, bandwidth, overhead, keys, because=""):
    args = launches, processors, bandwidth, overhead
    got, want = student.call("ledger", *args), _want(*args)
    if type(got) is not dict or set(got) != set(want):
        student.compare(student.said("ledger", *args), got, want)
    for key in keys:
        words = f"{student.said('ledger', *args)}[{key!r}]"
        student.compare(words, got[key], want[key], 1e-9, because)


def test_bytes(student, variant, seed):
    """Bytes of all launches, and of those of each kernel."""
    rng = random.Random(seed)
    for count in (1, 7, 20):
        launches = _launches(rng, count)
        _judge(student, launches, 132, 1000.0, 1.0, ("read", "written", "by_kernel"))
    _judge(student, [], 132, 1000.0, 1.0, ("read", "written", "by_kernel"), "no launches")


def test_idle(student, variant, seed):
    """Kernels with fewer programs than processors, as many as there are, and more."""
    rng = random.Random(seed)
    for processors in (1, 132, 150, 400):
        launches = _launches(rng, 12)
        launches[3]["programs"] = launches[7]["programs"] = processors
        _judge(student, launches, processors, 1000.0, 1.0, ("idle",))


def test_seconds(student, variant, seed):
    """Times at least the overhead's, and which of the two bounds more than half of them."""
    rng = random.Random(seed)
    for overhead in (0.5, 2.0, 5.0, 9.0):
        for _ in range(3):
            _judge(student, _launches(rng, 9), 132, 2000.0, overhead, ("seconds", "bound"))
    one = {"kernel": "gemv", "programs": 1, "read": {"x": 2000}, "written": {"y": 0}}
    other = {**one, "read": {"x": 10}}
    why = "half of the seconds are of a launch that is bound by its bytes, which is not more"
    _judge(student, [one, other], 1, 1000.0, 2.0, ("seconds", "bound"))
    _judge(student, [{**one, "read": {"x": 2000}}, other], 1, 1000.0, 1.0, ("seconds", "bound"))
    _judge(student, [one, other, other], 1, 1000.0, 1.0, ("seconds", "bound"), why)
    why = "the bytes of most launches take exactly the overhead, which is not longer"
    _judge(student, [one], 1, 1000.0, 2.0, ("seconds", "bound"), why)
    _judge(student, [one, other, one], 1, 1000.0, 2.0, ("seconds", "bound"), why)
    _judge(student, [], 1, 1000.0, 1.0, ("seconds", "bound"), "no launches")


def test_whole_notebook(student, variant, seed):
    """A decode step of quire-mini-draft: norms, two products and the head on your own kernels."""

    def run(name, *args):
        because = "in a step of quire-mini-draft"
        if name == "norm":
            judge_norm(student, variant, *args, order=seed, because=because)
        elif name == "gemv":
            judge_gemv(student, variant, *args, order=seed, because=because)
        else:
            judge_product(student, *args, SPLITS, order=seed, because=because, names="y")

    found = engine(variant).tokens(Judged(student, variant, seed, run), seed)
    assert len(found) == 2
    student.call("ledger", [], 132, 1.0, 1.0)
