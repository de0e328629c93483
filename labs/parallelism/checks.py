"""The public checks: a few fixed cases whose answers can be found with a pencil."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from labkit.reader.subject import Subject, Wrong, answer_of
from labkit.reader.values import describe

from . import given

Array = np.ndarray[Any, Any]
Events = list[tuple[Any, ...]]
Calls = Sequence[Sequence[Any]]


class Steps:
    """A rank beyond the pipe, whose wishes are looked at before anybody grants them."""

    def __init__(self, student: Subject, rank: Any) -> None:
        """`rank` is an instance of `given.py`'s `Rank`."""
        self._student, self._rank = student, rank

    def step(self, answer: Any) -> list[Any]:
        """Answer the latest wish and return the next.

        Raises:
            Wrong: the rank raised, or its wish is none.
        """
        wish = self._rank.call("step", answer)
        if not _is_wish(wish):
            self._student.fail(f"called a rank's generator\nexpected a wish\ngot {wish!r:.200}")
        if wish[0] in ("Send", "AllReduce"):
            wish[-1] = np.asarray(wish[-1])
        return wish  # type: ignore[no-any-return]


def _is_wish(wish: Any) -> bool:
    if type(wish) is not list or not wish or type(wish[0]) is not str:
        return False
    kind, *rest = wish
    if kind in ("Return", "AllGather"):
        return len(rest) == 1
    if kind == "AllReduce":
        return len(rest) == 1 and _is_numbers(rest[0])
    if kind == "Send":
        return len(rest) == 2 and type(rest[0]) is int and _is_numbers(rest[1])
    if kind == "Receive" and len(rest) == 2 and type(rest[0]) is int and type(rest[1]) is list:
        return all(type(one) is int for one in rest[1])
    return False


def _is_numbers(value: Any) -> bool:
    return isinstance(value, np.ndarray) or type(value) in (int, float)


def words_of(student: Subject, name: str, calls: Calls) -> str:
    """A run in words."""
    return student.said("run", name, [list(args) for args in calls])


def ran(student: Subject, name: str, calls: Calls, because: str = "") -> tuple[list[Any], Events]:
    """Run a generator on a rank for each call: what they return, and what was carried out.

    Raises:
        Wrong: a rank raised, waits for ever, or has changed an argument.
    """
    ranks = [student.new("Rank", name, *args) for args in calls]
    said = words_of(student, name, calls)
    try:
        values, events = given.network([Steps(student, rank) for rank in ranks])
    except given.Stuck as stuck:
        reason = f"  ({because})" if because else ""
        student.fail(f"called {said}\nexpected every rank to return{reason}\ngot {stuck}")
    for number, args in enumerate(calls):
        for place, passed in enumerate(args):
            kept = ranks[number].call("argument", place)
            words = f"{said}, and looked at argument {place} of rank {number} afterwards"
            student.compare(words, _filled(kept), _filled(passed))
        if isinstance(values[number], np.ndarray) and ranks[number].call("is_argument"):
            student.fail(f"called {said}\nexpected an array of its own from rank {number}\n"
                         "got its argument, or a view of it")  # fmt: skip
    return values, events


def _filled(value: Any) -> Any:
    """A value in which NaN equals NaN."""
    is_float = isinstance(value, np.ndarray) and value.dtype.kind == "f"
    return np.nan_to_num(value) if is_float else value


def expect(
    student: Subject, name: str, calls: Calls, want: Any, because: str = "", tolerance: float = 1e-9
) -> Events:
    """Run a generator on ranks and compare what they return; the events are returned."""
    values, events = ran(student, name, calls, because)
    said = words_of(student, name, calls)
    student.compare(f"{said}, what the ranks returned", values, want, tolerance, because)
    return events


def asked(student: Subject, events: Events, kinds: list[str], words: str) -> None:
    """Complain unless exactly these things were carried out, in this order."""
    got = [event[0] for event in events]
    if got != kinds:
        student.fail(f"called {words}\nexpected {kinds} to be carried out\ngot {got!r:.200}")


def messages(student: Subject, events: Events, words: str) -> list[tuple[int, int, Any]]:
    """(source, to, array) of each message; complain of collectives, which are not asked for."""
    others = sorted({event[0] for event in events} - {"Send"})
    if others:
        student.fail(f"called {words}\nexpected Send and Receive alone\ngot {', '.join(others)}")
    return [(source, to, x) for _, source, to, x in events]


def sent_by(sent: list[tuple[int, int, Any]], rank: int) -> list[list[Any]]:
    """What a rank sent, [to, array], in order."""
    return [[to, x] for source, to, x in sent if source == rank]


def refuses(student: Subject, name: str, *args: Any, because: str) -> None:
    """Start a generator and expect ValueError before its first wish."""
    try:
        got = describe(student.new("Rank", name, *args).call("step", None))
    except Wrong as wrong:
        got = answer_of(wrong)
    student.require_error("ValueError", lambda: words_of(student, name, [args]), got, because)


def pure(student: Subject, name: str, *args: Any, want: Any, because: str = "") -> None:
    """Call a function: it gives `want`, and no argument changes."""
    student.expect_pure(name, *args, want=want, tolerance=1e-9, because=because)


def count(value: Any) -> int:
    """Numbers in lists, dicts and arrays."""
    if isinstance(value, np.ndarray):
        return int(value.size)
    if isinstance(value, dict):
        return sum(count(one) for one in value.values())
    return sum(map(count, value)) if isinstance(value, list) else 1


def _array(*rows: Any) -> Array:
    return np.array(rows)


def _stays(student: Subject, name: str, *args: Any) -> None:
    _, after = student.call_returning(range(len(args)), name, *args)
    for place, (left, passed) in enumerate(zip(after, args, strict=True)):
        student.compare(f"{name}, and looked at argument {place} afterwards", left, passed)


# ---- shards


def table_of_remainders(student: Subject, variant: str) -> None:
    """The table's parts, one rank, and ranks that get nothing."""
    for total, ratio, want, why in (
        (7, [5, 2, 1], [[0, 4], [4, 2], [6, 1]], "the table"),
        (9, [4], [[0, 9]], "one rank"),
        (8, [3, 1], [[0, 6], [6, 2]], "nothing is left over"),
        (5, [0, 3, 0, 1], [[0, 0], [0, 4], [4, 0], [4, 1]], "exact shares 15/4 and 5/4"),
        (1, [1, 1, 5], [[0, 0], [0, 0], [0, 1]], "5/7 is the largest remainder"),
        (0, [1, 1], [[0, 0], [0, 0]], "there is nothing"),
        (13, [9, 2, 2], [[0, 9], [9, 2], [11, 2]], "nothing is left over"),
    ):
        student.expect("split", total, ratio, want=want, because=why)


def equal_remainders(student: Subject, variant: str) -> None:
    """Ranks with equal remainders, in the order of your variant."""
    wants: dict[str, list[list[int]]] = {
        "experts": [[2, 1, 1], [1, 1], [2, 0, 0], [1, 2, 3]],
        "ring": [[1, 1, 2], [0, 2], [1, 0, 1], [1, 2, 3]],
        "pipeline": [[2, 1, 1], [0, 2], [2, 0, 0], [1, 2, 3]],
    }
    cases: list[tuple[int, list[int], str]] = [
        (4, [1, 1, 1], "4/3 each"), (2, [1, 3], "1/2 and 3/2"),
        (2, [4, 1, 1], "4/3, 1/3 and 1/3: the remainders are equal, as floats they are not"),
        (6, [1, 2, 3], "nothing is left over"),
    ]  # fmt: skip
    for sizes, (total, ratio, why) in zip(wants[variant], cases, strict=True):
        want = [[sum(sizes[:rank]), size] for rank, size in enumerate(sizes)]
        student.expect("split", total, ratio, want=want, because=why)


MODEL = {"hidden": 2, "heads": 4, "kv_heads": 2, "head_size": 2, "ffn": 3, "vocab": 3}
KEPT: list[dict[str, Any]] = [
    {"heads": [0, 3], "kv": [0, 1], "kv_of": [0, 0, 1], "ffn": [0, 2], "vocab": [0, 2]},
    {"heads": [3, 1], "kv": [1], "kv_of": [0], "ffn": [2, 1], "vocab": [2, 1]},
]


def heads_and_copies(student: Subject, variant: str) -> None:
    """KV heads follow the query heads; they are copied, and a rank may have none."""
    why = "rank 0 reads both KV heads, rank 1 the second one"
    student.expect("shards", MODEL, [3, 1], want=KEPT, because=why)
    want = [
        {"heads": [0, 1], "kv": [0], "kv_of": [0], "ffn": [0, 1], "vocab": [0, 1]},
        {"heads": [1, 3], "kv": [0, 1], "kv_of": [0, 1, 1], "ffn": [1, 2], "vocab": [1, 2]},
    ]
    why = "rank 1 has the query heads 1, 2 and 3, which read the KV heads 0, 1 and 1"
    student.expect("shards", MODEL, [1, 3], want=want, because=why)
    model = {**MODEL, "kv_heads": 1}
    want = [
        {"heads": [rank, 1], "kv": [0], "kv_of": [0], "ffn": [3 * rank, 3], "vocab": [rank, 1]}
        for rank in range(4)
    ]
    why = "four ranks have a copy of the only KV head"
    many = {**model, "ffn": 12, "vocab": 4}
    student.expect("shards", many, [1, 1, 1, 1], want=want, because=why)
    none = {"heads": [4, 0], "kv": [], "kv_of": [], "ffn": [3, 0], "vocab": [3, 0]}
    every = {"heads": [0, 4], "kv": [0, 1], "kv_of": [0, 0, 1, 1], "ffn": [0, 3], "vocab": [0, 3]}
    why = "the second rank has nothing"
    student.expect("shards", MODEL, [1, 0], want=[every, none], because=why)
    model = {"hidden": 2, "heads": 6, "kv_heads": 3, "head_size": 2, "ffn": 6, "vocab": 6}
    found = {"heads": [3, 2], "kv": [1, 2], "kv_of": [0, 1], "ffn": [3, 2], "vocab": [3, 2]}
    got = student.call("shards", model, [3, 2, 1])
    said = student.said("shards", model, [3, 2, 1])
    if type(got) is not list or len(got) != 3:
        student.fail(f"called {said}\nexpected a list of 3 dicts\ngot {got!r:.160}")
    why = "its query heads 3 and 4 read the KV heads 1 and 2"
    student.compare(f"{said}, what rank 1 keeps", got[1], found, because=why)


def _weight(*shape: int) -> Array:
    """A weight whose numbers are 0, 1, 2, … in the first column or row."""
    if len(shape) == 1:
        return np.arange(shape[0], dtype=float)
    return np.arange(shape[0])[:, None] + 100.0 * np.arange(shape[1])


def _cut(
    student: Subject, name: str, weight: Array, rows: Any, because: str, axis: int = 0
) -> None:
    for rank, kept in enumerate(rows):
        want = np.take(weight, np.array(kept, np.int64), axis)
        why = f"rank {rank} keeps {['rows', 'columns'][axis]} {kept}: {because}"
        student.expect("cut", name, weight, MODEL, KEPT[rank], want=want, because=why)


def rows_of_weights(student: Subject, variant: str) -> None:
    """Weights that are cut by rows, and biases beside them."""
    rows = [[*range(6), *range(8, 12), *range(12, 16)], [6, 7, 10, 11, 14, 15]]
    why = "queries 0 to 7, keys 8 to 11, values 12 to 15"
    _cut(student, "qkv_proj", _weight(16, 2), rows, why)
    _cut(student, "qkv_bias", _weight(16), rows, why)
    gate_up = {
        "experts": [[0, 1, 3, 4], [2, 5]], "ring": [[0, 2, 1, 3], [4, 5]],
        "pipeline": [[3, 4, 0, 1], [5, 2]],
    }[variant]  # fmt: skip
    why = "its rows of the gate, then its rows of up"
    _cut(student, "gate_up_proj", _weight(6, 2), gate_up, why)
    _cut(student, "gate_up_bias", _weight(6), gate_up, why)
    _cut(student, "embedding", _weight(3, 2), [[0, 1], [2]], "its part of the vocabulary")
    why = "a norm over all heads has a number for each row of them"
    _cut(student, "query_norm", _weight(8), [range(6), [6, 7]], why)
    _cut(student, "key_norm", _weight(4), [range(4), [2, 3]], why)
    _stays(student, "cut", "qkv_proj", _weight(16, 2), MODEL, KEPT[1])


def columns_of_weights(student: Subject, variant: str) -> None:
    """Weights that are cut by columns, also on a rank that has none."""
    columns = [range(6), [6, 7]]
    _cut(student, "o_proj", _weight(2, 8), columns, "those of its query heads", axis=1)
    _cut(student, "down_proj", _weight(2, 3), [[0, 1], [2]], "its part of the middle", axis=1)
    none = {"heads": [4, 0], "kv": [], "kv_of": [], "ffn": [3, 0], "vocab": [3, 0]}
    for name, weight in (("o_proj", _weight(2, 8)), ("down_proj", _weight(2, 3))):
        want = np.zeros((2, 0))
        student.expect("cut", name, weight, MODEL, none, want=want, because="it has no columns")
    want = np.zeros((0, 2))
    why = "it has no rows"
    student.expect("cut", "qkv_proj", _weight(16, 2), MODEL, none, want=want, because=why)


def whole_weights(student: Subject, variant: str) -> None:
    """What every rank needs."""
    for name in ("o_bias", "down_bias", "layer_norm", "head_norm"):
        _cut(student, name, _array(5.0, 7.0), [[0, 1], [0, 1]], "it is kept whole")


def shards_refused(student: Subject, variant: str) -> None:
    """What is refused."""
    for ratio in ([], [0, 0], [2, -1]):
        student.refuses("split", 4, ratio, because=f"the ratio {ratio}")
    why = "there is no such name"
    student.refuses("cut", "o_projection", _weight(2, 8), MODEL, KEPT[0], because=why)
    for name, weight in (
        ("o_proj", _weight(8, 2)), ("o_proj", _weight(3, 8)), ("qkv_proj", _weight(18, 2)),
        ("gate_up_proj", _weight(3, 2)), ("o_bias", _weight(3)), ("embedding", _weight(4, 2)),
        ("head_norm", _weight(4)),
    ):  # fmt: skip
        why = f"{name} does not have the shape {weight.shape}"
        student.refuses("cut", name, weight, MODEL, KEPT[0], because=why)


# ---- ring


def _sends(variant: str, xs: list[Array], parts: list[int]) -> list[list[list[Any]]]:
    """What each rank sends, [to, numbers], all ranks going step by step."""
    n, ends = len(parts), np.cumsum(parts)
    here = [slice(ends[p] - parts[p], ends[p]) for p in range(n)]
    held = [x.copy() for x in xs]
    found: list[list[list[Any]]] = [[] for _ in range(n)]
    by = -1 if variant == "ring" else 1
    for step in range(2 * n - 2):
        first = {"experts": -step, "ring": step, "pipeline": -step - 1}[variant]
        out = [(rank + first) % n for rank in range(n)]
        sent = [held[rank][here[out[rank]]].copy() for rank in range(n)]
        for rank in range(n):
            to = (rank + by) % n
            if len(sent[rank]):
                found[rank].append([to, sent[rank]])
            if step < n - 1:
                held[to][here[out[rank]]] += sent[rank]
            else:
                held[to][here[out[rank]]] = sent[rank]
    return found


def _all_reduce(
    student: Subject, variant: str, xs: list[Array], parts: list[int], because: str
) -> None:
    calls = [(rank, x, parts) for rank, x in enumerate(xs)]
    events = expect(student, "all_reduce", calls, [sum(xs)] * len(xs), because)
    said = student.said("run", "all_reduce", [list(args) for args in calls])
    sent = messages(student, events, said)
    for rank, want in enumerate(_sends(variant, xs, parts)):
        got = sent_by(sent, rank)
        words = f"{said}, and looked at what rank {rank} sends, [to, numbers]"
        student.compare(words, got, want, 1e-9, because)


def table_of_steps(student: Subject, variant: str) -> None:
    """The table's steps with one number a part, and two ranks."""
    xs = [_array(1.0, 10, 100) * factor for factor in (1, 2, 5)]
    _all_reduce(student, variant, xs, [1, 1, 1], "the table")
    xs = [_array(1.0, 2), _array(10.0, 20)]
    _all_reduce(student, variant, xs, [1, 1], "two ranks, two steps")


def uneven_parts(student: Subject, variant: str) -> None:
    """Parts of 3, 1 and 2 numbers; a single rank."""
    xs = [np.arange(6.0) + 10 * rank for rank in range(3)]
    _all_reduce(student, variant, xs, [3, 1, 2], "parts 3, 1 and 2")
    _all_reduce(student, variant, [_array(3.0, 4)], [2], "a single rank has no steps")


def empty_parts(student: Subject, variant: str) -> None:
    """Parts without numbers are not sent."""
    xs = [np.arange(3.0) + 10 * rank for rank in range(3)]
    _all_reduce(student, variant, xs, [0, 3, 0], "two of three parts are empty")
    _all_reduce(student, variant, [np.zeros(0)] * 2, [0, 0], "there is nothing")


def goes_on(student: Subject, variant: str) -> None:
    """Two to seven ranks, none of which waits for ever."""
    for n in range(2, 8):
        xs = [np.arange(2.0 * n) * (rank + 1) for rank in range(n)]
        _all_reduce(student, variant, xs, [2] * n, f"{n} ranks")
        parts = [rank % 2 for rank in range(n)]
        xs = [np.arange(float(sum(parts))) - rank for rank in range(n)]
        _all_reduce(student, variant, xs, parts, f"{n} ranks, every second part is empty")


def parts_refused(student: Subject, variant: str) -> None:
    """Parts that do not add up."""
    for parts in ([1, 1], [2, 2], [4, -1]):
        why = f"parts {parts} of 3 numbers"
        refuses(student, "all_reduce", 0, _array(1.0, 2, 3), parts, because=why)


# ---- router


def chosen(student: Subject, variant: str) -> None:
    """The largest logits first, and equal ones in the order of your variant."""
    want = [[3, 0], [1, 2]]
    _top(student, _array([1.0, 0, -2, 2], [0.0, 5, 4, 1]), 2, want, "the largest two")
    want = {"ring": [[2, 1, 3]]}.get(variant, [[1, 2, 0]])
    _top(student, _array([0.0, 7, 7, 0]), 3, want, "equal logits 7 and equal logits 0")
    for k in (0, 4):
        why = f"k is {k} of 3 experts"
        student.refuses("top", _array([1.0, 2, 3]), k, because=why)


def _top(student: Subject, logits: Array, k: int, want: Any, because: str) -> None:
    got, after = student.call_returning([0], "top", logits, k)
    said = student.said("top", logits, k)
    if type(got) is not list or len(got) != 2:
        student.fail(f"called {said}\nexpected two arrays\ngot {got!r:.160}")
    student.compare(f"{said}, the experts", got[0], np.array(want), because=because)
    if getattr(got[0], "dtype", None) != np.int64:
        student.fail(f"called {said}\nexpected experts of int64\ngot {got[0]!r:.160}")
    student.compare(f"{said}, and looked at its argument afterwards", after[0], logits)


def weights(student: Subject, variant: str) -> None:
    """Weights of the chosen experts, which add up to 1."""
    logits = np.log(_array([6.0, 3, 1, 2]))
    if variant == "pipeline":
        why = "sigmoids 6/7 and 3/4, divided by their sum 45/28"
        want = [[8 / 15, 7 / 15]]
        far, near = _array([-400.0, -500]), [[1.0, 0.0]]
    else:
        want, why = [[2 / 3, 1 / 3]], "softmax 6/12 and 3/12, divided by their sum 9/12"
        far, near = _array([3000.0, 2000]), [[1.0, 0.0]]
    got = student.call("top", logits, 2)
    student.compare(
        f"{student.said('top', logits, 2)}, the weights", got[1], np.array(want), 1e-9, why
    )
    got = student.call("top", far, 2)
    why = "logits far from 0"
    student.compare(
        f"{student.said('top', far, 2)}, the weights", got[1], np.array(near), 1e-9, why
    )
    got = student.call("top", logits, 1)
    why = "a single expert has the weight 1"
    student.compare(
        f"{student.said('top', logits, 1)}, the weights", got[1], _array([1.0]), 1e-9, why
    )


TABLE = [
    [3, 2, 0, 0, 0.25], [3, 4, 0, 0, 0.25], [5, 0, 0, 0, 0.25], [7, 1, 1, 0, 0.5],
    [1, 9, 1, 0, 0.125],
]  # fmt: skip
ORDER = {"experts": [3, 0, 1, 2, 4], "ring": [0, 1, 2, 4, 3], "pipeline": [2, 3, 0, 1, 4]}


def _served(
    student: Subject, variant: str, lists: list[list[Any]], experts: list[list[int]],
    capacity: int, want: list[Any], dropped: list[Any], because: str,
) -> None:  # fmt: skip
    calls = [(own, part, capacity) for own, part in zip(lists, experts, strict=True)]
    wanted = [{"kept": kept, "dropped": dropped} for kept in want]
    events = expect(student, "dispatch", calls, wanted, because)
    said = student.said("run", "dispatch", [list(args) for args in calls])
    asked(student, events, ["AllGather"], said)


def table_of_choices(student: Subject, variant: str) -> None:
    """The table's choices, in one order over both ranks; the rank and the list do not count."""
    rows = [TABLE[i] for i in ORDER[variant]]
    for count in range(1, 6):
        kept = [[r, p, 1.0 if variant == "ring" else w] for r, p, _, _, w in rows[:count]]
        dropped = sorted([r, p, e] for r, p, _, e, _ in rows[count:])
        why = f"the table, with capacity {count}"
        args = [[0, 1], [1, 0]], count, [[kept], []], dropped, why
        _served(student, variant, [[TABLE[1]], [TABLE[3], TABLE[0], TABLE[4], TABLE[2]]], *args)
        _served(student, variant, [[*TABLE[2:]], [TABLE[1], TABLE[0]]], *args)
    for weight, winner in ((0.5, {"pipeline": 2}), (0.75, {"experts": 2, "pipeline": 2})):
        first = winner.get(variant, 4)
        kept = [[first, 0, 1.0 if variant == "ring" else weight if first == 2 else 0.75]]
        other = 6 - first
        lists = [[[2, 0, 1, 0, weight]], [[4, 0, 0, 0, 0.75]]]
        why = f"one position, weights {weight} and 0.75, places 1 and 0"
        args = [[0, 1], [1, 0]], 1, [[kept], []], [[other, 0, 0]], why
        _served(student, variant, lists, *args)


def weights_of_what_is_left(student: Subject, variant: str) -> None:
    """Two choices of a token on two ranks; one is dropped, none, all."""
    mine = [[1, 0, 0, 0, 0.75], [1, 0, 1, 1, 0.25]]
    other = [[0, 0, 0, 1, 0.5], [0, 0, 1, 2, 0.5]]
    one = 1.0 if variant == "ring" else 0.75
    want = [[[[1, 0, one]]], [[[0, 0, 0.5]], [[0, 0, 0.5]]]]
    why = "expert 1 serves request 0 and drops request 1, whose other choice is served on rank 0"
    experts = [[0, 1], [1, 2]]
    _served(student, variant, [mine, other], experts, 1, want, [[1, 0, 1]], why)
    whole = [[[[1, 0, 0.75]]], [[[0, 0, 0.5], [1, 0, 0.25]], [[0, 0, 0.5]]]]
    why = "all are served, so all keep their weights"
    _served(student, variant, [mine, other], experts, 2, whole, [], why)
    none, lost = [[[]], [[], []]], [[0, 0, 1], [0, 0, 2], [1, 0, 0], [1, 0, 1]]
    _served(student, variant, [mine, other], experts, 0, none, lost, "capacity 0: by request first")


def idle(student: Subject, variant: str) -> None:
    """Ranks without choices or experts, and capacity 0."""
    mine = [[4, 2, 0, 1, 1.0]]
    want = [[], [[], [[4, 2, 1.0]]], []]
    experts = [[0, 0], [0, 2], [2, 0]]
    why = "rank 0 has the token and no expert, rank 1 the experts, rank 2 nothing"
    _served(student, variant, [mine, [], []], experts, 1, want, [], why)
    want = [[], [[], []], []]
    _served(student, variant, [mine, [], []], experts, 0, want, [[4, 2, 1]], "capacity 0")
    _served(student, variant, [[], [], []], experts, 3, want, [], "no rank has a choice")


# ---- spread


def _table_of_replicas(student: Subject) -> None:
    loads, slots = _array(12, 3, 9, 6), [4, 2]
    want = [[0, 3, 2, 1], [0, 2]]
    calls = [(loads, slots), (np.zeros(4, np.int64), slots)]
    events = expect(student, "share", calls, [want] * 2, "the table; rank 0 counted everything")
    asked(student, events, ["AllReduce"], student.said("run", "share", [list(c) for c in calls]))
    calls = [(_array(10, 1, 2, 0), slots), (_array(2, 2, 7, 6), slots)]
    expect(student, "share", calls, [want] * 2, "the same loads in all, counted by two ranks")


def shared(student: Subject, variant: str) -> None:
    """What is shared: the table of the text, and other cuts."""
    if variant == "experts":
        _table_of_replicas(student)
        for loads, slots, want, why in (
            ([5, 5, 5], [1, 1, 1], [[0], [1], [2]], "equal loads: smaller numbers first"),
            ([9, 8, 1, 1], [2, 2], [[0, 3], [1, 2]], "expert 2 goes to rank 1: 4 is less than 4.5"),
            ([8, 4, 4], [2, 2], [[0, 1], [0, 2]], "one spare slot"),
            ([8, 8], [2, 1], [[1, 0], [0]], "equal loads: expert 0 gets the replica"),
            ([6, 5, 4, 3, 2, 1], [4, 2], [[0, 2, 3, 5], [1, 4]], "loads a slot are compared"),
            ([4, 1, 1, 1], [1, 3], [[0], [1, 2, 3]], "both ranks are empty, so rank 0 is taken"),
            ([3, 3, 1, 1, 1], [3, 2], [[0, 2, 3], [1, 4]], "4/3 is less than 3/2: all slots count"),
            ([12, 7, 1], [2, 2, 1], [[0, 1], [0, 2], [1]], "6 is less than 7: 1 gets a replica"),
            ([20, 1, 1], [2, 2, 1], [[0, 1], [0, 2], [0]], "three ranks, so three replicas"),
            ([7, 3], [4, 1], [[0, 1, 1], [0]], "two replicas each; rank 1 is full, so 1 is twice"),
        ):
            calls = [(np.array(loads) * (r == 0), slots) for r in range(len(slots))]
            expect(student, "share", calls, [want] * len(slots), why)
    elif variant == "ring":
        for total, ratio, want, why in (
            (10, [2, 1], [[0, 1, 2, 7, 8, 9], [3, 4, 5, 6]], "the table"),
            (8, [1, 1], [[0, 1, 6, 7], [2, 3, 4, 5]], "four chunks of two"),
            (6, [1, 1, 1], [[0, 5], [1, 4], [2, 3]], "six chunks of one"),
            (6, [1, 0, 2], [[0, 5], [], [1, 2, 3, 4]], "rank 1 has nothing"),
            (4, [3], [[0, 1, 2, 3]], "one rank"),
        ):
            arrays = [np.array(positions, np.int64) for positions in want]
            student.expect("share", total, ratio, want=arrays, because=why)
    else:
        for costs, head, speeds, sizes, why in (
            ([1] * 6, 3, [1, 1, 1], [1, 4, 1], "the head is 3 layers; the slowest takes 4"),
            ([1] * 6, 0, [1, 1, 1], [2, 2, 2], "no head"),
            ([1] * 8, 0, [5, 2, 1], [5, 2, 1], "the ratio of the speeds"),
            ([4, 1, 1, 4], 0, [1, 1], [2, 2], "5 and 5"),
            ([2, 2, 9, 1], 0, [1, 1], [2, 2], "the last two take 10, other cuts more"),
            ([1, 1, 1, 9], 0, [3, 1, 1], [1, 2, 1], "9 whatever the others have: fewest first"),
            ([5, 5, 5], 1, [3], [3], "one rank"),
            ([1, 7], 3, [1, 2], [1, 1], "as many layers as ranks"),
        ):
            student.expect("share", costs, head, speeds, want=sizes, because=why)


def _attention(q: Array, k: Array, v: Array, positions: Array, keys: Array) -> tuple[Array, Array]:
    """Plain attention of queries over keys at these positions."""
    scores = q @ k.T / np.sqrt(q.shape[1])
    sees = (keys <= positions[:, None]) & (keys >= 0) & (positions[:, None] >= 0)
    scores = np.where(sees, scores, -np.inf)
    most = np.where(sees.any(1), scores.max(1), 0)
    weights = np.exp(scores - most[:, None])
    sums = weights.sum(1)
    out = weights @ np.where((keys >= 0)[:, None], v, 0) / np.where(sums > 0, sums, 1)[:, None]
    with np.errstate(divide="ignore"):
        return out, most + np.log(sums)


def _ring(
    student: Subject, q: Array, k: Array, v: Array, kept: list[list[int]], because: str,
    padding: tuple[int, ...] = (),
) -> Events:  # fmt: skip
    """Tokens on ranks; those in `padding` have the position -1."""
    at = np.array([-1 if i in padding else i for i in range(len(q))])
    counts = [len(own) for own in kept]
    parts = [np.array(own, np.int64) for own in kept]
    calls = [(r, counts, q[p], k[p], v[p], at[p]) for r, p in enumerate(parts)]
    out, lse = _attention(q, k, v, at, at)
    want = [{"out": out[p], "lse": lse[p]} for p in parts]
    return expect(student, "work", calls, want, because)


def exchanged(student: Subject, variant: str) -> None:
    """What is exchanged: what a rank sends, and to whom."""
    if variant == "experts":
        slots = [2, 1, 0]
        calls = [(np.array(loads), slots) for loads in ([0, 4], [0, 0], [5, 0])]
        events = expect(student, "share", calls, [[[1, 0], [0], []]] * 3, "rank 2 has no slots")
        said = student.said("run", "share", [list(args) for args in calls])
        asked(student, events, ["AllReduce"], said)
        student.compare(f"{said}, what they gave", events[0][1], [c[0] for c in calls])
    elif variant == "ring":
        q, k, v = np.zeros((4, 1)), np.zeros((4, 1)), _array([1.0], [2], [3], [4])
        events = _ring(student, q, k, v, [[0, 3], [1], [2]], "scores of 0: means of 1, 2, 3, 4")
        own = [_array([0.0, 0, 1], [3, 0, 4]), _array([1.0, 0, 2]), _array([2.0, 0, 3])]
        for rank in range(3):
            sent = sent_by(messages(student, events, "work on 3 ranks"), rank)
            want = [[(rank - 1) % 3, own[rank]], [(rank - 1) % 3, own[(rank + 1) % 3]]]
            student.compare(f"work, what rank {rank} sends, [to, block]", sent, want)
        events = _ring(student, q, k, v, [[0, 3], [], [1, 2]], "rank 1 has no tokens")
        sent = messages(student, events, "work on 3 ranks")
        senders = sorted(source for source, _, _ in sent)
        words = "work on three ranks of which rank 1 has no tokens: who sends"
        student.compare(words, senders, [0, 1, 2, 2], because="an empty block is not sent")
        for n in range(2, 7):
            _ring(student, q, k, v, [list(range(r, 4, n)) for r in range(n)], f"{n} ranks")
    else:
        wishes = ["S 0", "S 1", "R 0", "S 2", "R 1", "S 3", "R 2", "R 3"]
        events = _order(student, 3, 2, 2, wishes, "the table")
        table, layers, tokens = _stages(3, 3, 2)
        want = np.tanh(table[tokens[0]] @ layers[0])
        words = "work on 3 ranks: what rank 0 sends first"
        student.compare(words, events[0][3], want, 1e-9, "tanh(x @ layer)")
        sizes = [int(np.size(x)) for _, _, to, x in events if to == 0]
        student.compare("work on 3 ranks: how many numbers rank 0 receives", sizes, [1] * 4)
        wishes = ["S 0", "S 1", "R 0", "S 2", "R 1", "S 3", "R 2", "R 3"]
        _order(student, 3, 4, 1, wishes, "four micro-batches, one step")
        wishes = ["S 0", "R 0", "S 1", "R 1", "S 2", "R 2"]
        _order(student, 2, 3, 1, wishes, "two ranks: the other one is busy with one job")
        _order(student, 4, 1, 3, wishes, "one micro-batch: each job needs the token before it")


def _stages(width: int, size: int, k: int) -> tuple[Array, list[Array], list[int]]:
    """A table of 2 · width tokens, layers that mix its columns, first tokens."""
    table = np.concatenate([np.eye(width), -np.eye(width) * 0.5])
    layers = [np.roll(np.eye(width), rank + 1, 1) * (1.5 if rank % 2 else -1.0)
              for rank in range(size)]  # fmt: skip
    return table, layers, [batch % (2 * width) for batch in range(k)]


def _said(table: Array, layers: list[Array], tokens: list[int], steps: int) -> list[list[int]]:
    """The tokens of each micro-batch, without a pipeline."""
    found = []
    for token in tokens:
        said: list[int] = []
        for _ in range(steps):
            x = table[said[-1] if said else token]
            for layer in layers:
                x = np.tanh(x @ layer)
            said.append(int(np.argmax(table @ x)))
        found.append(said)
    return found


def _flow(student: Subject, size: int, k: int, steps: int, because: str, width: int = 3) -> Events:
    table, layers, tokens = _stages(width, size, k)
    calls = [(r, size, layers[r], table, tokens if r == 0 else [10**6] * k, steps)
             for r in range(size)]  # fmt: skip
    want = [_said(table, layers, tokens, steps), *[None] * (size - 1)]
    return expect(student, "work", calls, want, because)


def _order(
    student: Subject, size: int, k: int, steps: int, wishes: list[str], because: str
) -> Events:
    events = _flow(student, size, k, steps, because)
    got, counts = [], {"S": 0, "R": 0}
    for source, to, _ in messages(student, events, f"work on {size} ranks"):
        if 0 in (source, to):
            kind = "S" if source == 0 else "R"
            got.append(f"{kind} {counts[kind]}")
            counts[kind] += 1
    words = f"work on {size} ranks with {k} micro-batches and {steps} steps: the order of rank 0"
    if got != wishes:
        student.fail(f"called {words}\nexpected {', '.join(wishes)}  ({because})\ngot "
                     f"{', '.join(got)}")  # fmt: skip
    return events


def came_out(student: Subject, variant: str) -> None:
    """What comes out."""
    if variant == "experts":
        table = [[0, 1], [0, 2]]
        tokens = [[7, 0, 0], [2, 1, 0], [2, 0, 0], [2, 0, 1], [9, 9, 2], [8, 0, 0], [2, 10, 0]]
        want = [[[[2, 0], [2, 10], [8, 0]], [[2, 0]]], [[[2, 1], [7, 0]], [[9, 9]]]]
        why = "tokens of expert 0 in order: 2 0, 2 1, 2 10, 7 0, 8 0, by turns on ranks 0 and 1"
        student.expect("work", table, tokens, want=want, because=why)
        student.expect("work", table, tokens[::-1], want=want, because="listed the other way round")
        _stays(student, "work", table, tokens)
        want = [[[], [[2, 0]]], [[[2, 1]], []]]
        tokens = [[2, 0, 0], [2, 1, 0]]
        why = "the replica on rank 0 comes first, although it is in slot 1"
        student.expect("work", [[1, 0], [0, 2]], tokens, want=want, because=why)
        want = [[[[2, 0]], [[2, 1]]], []]
        tokens = [[2, 1, 0], [2, 0, 0]]
        why = "two replicas on one rank are numbered by slot"
        student.expect("work", [[0, 0], []], tokens, want=want, because=why)
        student.expect("work", [[0, 0], []], [], want=[[[], []], []], because="no tokens")
    elif variant == "ring":
        q, k, v = np.array([[0.0], [1], [2]]), np.array([[1.0], [2], [3]]), np.eye(3)[:, :1] * 6
        why = "three tokens on two ranks"
        _ring(student, q, k, v, [[0, 2], [1]], why)
        _ring(student, q * 900, k, v, [[0, 2], [1]], "scores of thousands")
        _ring(student, -q * 900, k, v, [[2], [0, 1]], "scores of minus thousands")
        q, k, v = (np.arange(20.0).reshape(5, 4) % m for m in (3, 5, 7))
        _ring(student, q, k, v, [[0, 4], [1, 3], [2]], "four numbers a head: scores are halved")
    else:
        for size, k, steps in ((3, 2, 2), (3, 5, 3), (2, 1, 4), (4, 3, 2), (5, 4, 1)):
            why = f"{size} ranks, {k} micro-batches, {steps} steps"
            _flow(student, size, k, steps, why, width=4)


def edges(student: Subject, variant: str) -> None:
    """At the edges."""
    if variant == "experts":
        calls = [(np.zeros(2, np.int64), [2, 2])] * 2
        expect(student, "share", calls, [[[0, 1], [0, 1]]] * 2, "all loads are 0")
        calls = [(_array(6, 0), [0, 4])] * 2
        want = [[], [0, 1]]
        expect(student, "share", calls, [want] * 2, "one rank with slots: two slots stay empty")
        calls = [(_array(9, 1, 1) * (r == 0), [3, 1]) for r in range(2)]
        why = "rank 1 gets the second replica of 0, and is full"
        expect(student, "share", calls, [[[0, 1, 2], [0]]] * 2, why)
        why = "three slots for four experts"
        refuses(student, "share", _array(1, 1, 1, 1), [2, 1], because=why)
    elif variant == "ring":
        q, k, v = np.array([[0.0], [1], [2]]), np.array([[1.0], [2], [3]]), np.eye(3)[:, :1] * 6
        spoilt = [np.where(np.arange(3)[:, None] == 1, np.nan, one) for one in (q, k, v)]
        _ring(student, *spoilt, [[0, 2], [1]], "token 1 is padding, and NaN", padding=(1,))
        _ring(student, *spoilt, [[1], [0], [2]], "rank 0 has only padding", padding=(1,))
        _ring(student, q, k, v, [[], [0, 1, 2]], "rank 0 has no tokens")
        _ring(student, q, k, v, [[2, 0, 1]], "one rank, positions in any order")
        student.refuses("share", 4, [0, 0], because="what split refuses")
    else:
        student.refuses("share", [1, 1], 0, [1, 1, 1], because="two layers for three ranks")
        _flow(student, 1, 2, 3, "one rank sends nothing")
        _flow(student, 3, 1, 1, "one micro-batch, one step")
        _flow(student, 2, 6, 2, "six micro-batches on two ranks")


# ---- engine


def projected(student: Subject, variant: str) -> None:
    """A rank gives its own term of the sum, and the bias is added once."""
    xs = [_array([1.0, 2, 3], [0, 1, 0]), _array([4.0], [5]), np.zeros((2, 0))]
    ws = [_array([1.0, 0, 2], [0, 1, 0]), _array([1.0], [10]), np.zeros((2, 0))]
    terms = [_array([7.0, 2], [0, 1]), _array([4.0, 40], [5, 50]), np.zeros((2, 2))]
    bias = _array(100.0, 200)
    for one, why in ((bias, "the bias is added once"), (None, "there is no bias")):
        calls = [(x, w, one) for x, w in zip(xs, ws, strict=True)]
        total = sum(terms) + (0 if one is None else one)
        events = expect(student, "project", calls, [total] * 3, f"{why}; rank 2 has no inputs")
        said = student.said("run", "project", [list(args) for args in calls])
        asked(student, events, ["AllReduce"], said)
        student.compare(f"{said}, what the ranks give", events[0][1], terms, 1e-9, why)


def normed(student: Subject, variant: str) -> None:
    """The mean is that over all ranks' numbers."""
    xs = [_array([1.0, 5, 5], [0, 0, 0]), _array([7.0], [0]), np.zeros((2, 0))]
    ws = [_array(1.0, 2, 1), _array(3.0), np.zeros(0)]
    calls = [(x, w, 4, 0.0625) for x, w in zip(xs, ws, strict=True)]
    scale = np.sqrt(25.0625)
    want = [x / np.array([[scale], [1]]) * w for x, w in zip(xs, ws, strict=True)]
    why = "the mean square of 1 5 5 7 is 25, to which eps is added; rank 2 has no numbers"
    events = expect(student, "norm", calls, want, why)
    said = student.said("run", "norm", [list(args) for args in calls])
    asked(student, events, ["AllReduce"], said)
    shapes = [np.shape(one) for one in events[0][1]]
    if shapes != [(2,)] * 3:
        student.fail(f"called {said}\nexpected a number for each token\ngot the shapes {shapes}")


def picked(student: Subject, variant: str) -> None:
    """The largest logit of all ranks, two numbers a row."""
    first, second = (
        _array([1.0, 5], [9, 0], [-3, -np.inf], [0, 0]),
        _array([4.0, 5, 2], [0, 9, 9], [-4.0, -5, -6], [7, 1, 7]),
    )
    calls = [(first, 0), (second, 2), (np.zeros((4, 0)), 5)]
    want = [3, 4, 0, 4] if variant == "ring" else [1, 0, 0, 2]
    why = "three rows have equal logits; rank 2 has no part of the vocabulary"
    events = expect(student, "pick", calls, [want] * 3, why)
    said = student.said("run", "pick", [list(args) for args in calls])
    asked(student, events, ["AllGather"], said)
    for rank, value in enumerate(events[0][1]):
        if count(value) > 8:
            student.fail(f"called {said}\nexpected at most two numbers a row from rank {rank}\n"
                         f"got {value!r:.160}")  # fmt: skip
    expect(student, "pick", [(first[:0], 0), (second[:0], 2)], [[], []], "no tokens")


CHECKS = {
    "shards": [
        table_of_remainders, equal_remainders, heads_and_copies, rows_of_weights,
        columns_of_weights, whole_weights, shards_refused,
    ],
    "ring": [table_of_steps, uneven_parts, empty_parts, goes_on, parts_refused],
    "router": [chosen, weights, table_of_choices, weights_of_what_is_left, idle],
    "spread": [shared, exchanged, came_out, edges],
    "engine": [projected, normed, picked],
}  # fmt: skip
