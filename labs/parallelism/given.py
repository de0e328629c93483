import copy
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np


@dataclass
class Send:
    """Hand `x` to rank `to`. The answer is None, and comes once that rank has received it."""

    to: int
    x: np.ndarray


@dataclass
class Receive:
    """Wait for what rank `source` sends, an array of the given shape. The answer is the array."""

    source: int
    shape: tuple


@dataclass
class AllReduce:
    """The answer is the sum of all ranks' `x`. All ranks ask for it, with arrays of one shape."""

    x: np.ndarray


@dataclass
class AllGather:
    """The answer is the list of all ranks' `value`, by rank. All ranks ask for it."""

    value: object


class Rank:
    """A rank's generator, which runs from one wish to the next."""

    def __init__(self, name, *args):
        self.args = args
        self.generator: Generator = globals()[name](*args)

    def step(self, answer):
        """Answer the latest wish, None at the start; return the next, or the end, as a list."""
        if not hasattr(self.generator, "send"):
            raise TypeError("a rank is a generator: the function needs a `yield`")
        try:
            wish = self.generator.send(answer)
        except StopIteration as end:
            self.value = end.value
            return ["Return", end.value]
        if not isinstance(wish, Send | Receive | AllReduce | AllGather):
            raise TypeError(f"a rank asked for {wish!r}: Send, Receive, AllReduce, AllGather exist")
        return [type(wish).__name__, *vars(wish).values()]

    def argument(self, place):
        """An argument of the function, as it is by now."""
        return self.args[place]

    def is_argument(self):
        """Whether the array that was returned lies in the memory of an argument."""
        arrays = [one for one in self.args if isinstance(one, np.ndarray)]
        return any(np.shares_memory(self.value, one) for one in arrays)


class Stuck(Exception):
    """Ranks that wait for what will never come, or whose wishes do not fit together."""


def network(ranks):
    """Let ranks work until all have returned; return their values, and what was carried out.

    All ranks that are not waiting run, then what can be carried out is, and so on. An event is
    ("Send", source, to, x), or the name of a collective and the list of what each rank gave.
    """
    wishes, answers, events = [[]] * len(ranks), dict.fromkeys(range(len(ranks))), []
    while answers:
        for rank, answer in answers.items():
            wishes[rank] = ranks[rank].step(answer)
        answers = _carried_out(wishes, events)
        if len(events) > 20_000:
            raise Stuck("more than 20,000 events: does this end?")
    if any(wish[0] != "Return" for wish in wishes):
        raise Stuck("nobody can go on: " + _words(wishes))
    return [wish[1] for wish in wishes], events


def _carried_out(wishes, events):
    """The answers to those wishes that fit together."""
    kinds, found = {wish[0] for wish in wishes}, {}
    if kinds == {"AllReduce"}:
        if len({np.shape(wish[1]) for wish in wishes}) > 1:
            raise Stuck("all_reduce of unlike shapes: " + _words(wishes))
        found = {rank: sum(wish[1] for wish in wishes) for rank in range(len(wishes))}
    elif kinds == {"AllGather"}:
        values = [wish[1] for wish in wishes]
        found = {rank: copy.deepcopy(values) for rank in range(len(wishes))}
    elif kinds <= {"AllReduce", "AllGather"}:
        raise Stuck("ranks ask for unlike things: " + _words(wishes))
    if found:
        events.append((wishes[0][0], [wish[1] for wish in wishes]))
    for source, wish in enumerate(wishes):
        if wish[0] == "Send" and 0 <= wish[1] < len(wishes):
            other = wishes[wish[1]]
            if other[:2] == ["Receive", source]:
                if list(other[2]) != list(np.shape(wish[2])):
                    raise Stuck("a shape that the receiver does not expect: " + _words(wishes))
                events.append(("Send", source, wish[1], np.array(wish[2])))
                found[source], found[wish[1]] = None, np.array(wish[2])
    return found


def _words(wishes):
    """What each rank waits for, in words."""
    words = {
        "Return": lambda value: "has returned",
        "Send": lambda to, x: f"sends {np.shape(x)} to rank {to}",
        "Receive": lambda source, shape: f"waits for {tuple(shape)} from rank {source}",
        "AllReduce": lambda x: f"is in AllReduce with {np.shape(x)}",
        "AllGather": lambda value: "is in AllGather",
    }
    said = [f"rank {rank} {words[kind](*rest)}" for rank, (kind, *rest) in enumerate(wishes)]
    return "; ".join(said)


def run(name, calls):
    """Run a generator function on a rank for each of `calls`; see `network`."""
    return network([Rank(name, *args) for args in calls])


def within(part):
    """The numbers of the things in a part `[begin, size]`, as a range."""
    return range(part[0], sum(part))


def numbers(units, width=1):
    """The rows of units that have `width` rows each: `numbers([0, 2], 2)` is 0 1 4 5, int64."""
    return np.add.outer(np.array(units, np.int64) * width, np.arange(width)).reshape(-1)


def check_weight(name, weight, model):
    """Raise ValueError for a name without a weight, and for a weight of another shape."""
    q, k = (model[key] * model["head_size"] for key in ("heads", "kv_heads"))
    hidden, middle, norm = model["hidden"], 2 * model["ffn"], [model["hidden"]]
    shapes = {
        "qkv_proj": [q + 2 * k, hidden], "qkv_bias": [q + 2 * k], "o_proj": [hidden, q],
        "gate_up_proj": [middle, hidden], "gate_up_bias": [middle],
        "down_proj": [hidden, middle // 2], "embedding": [model["vocab"], hidden],
        "query_norm": [q], "key_norm": [k], "head_norm": [model["head_size"]],
        "o_bias": norm, "down_bias": norm, "layer_norm": norm,
    }  # fmt: skip
    if name not in shapes:
        raise ValueError(f"{name!r} is none of the weights {', '.join(shapes)}")
    if list(weight.shape) != shapes[name]:
        raise ValueError(f"{name} has the shape {shapes[name]} in this model, not {weight.shape}")
