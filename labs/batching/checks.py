"""The public checks: a few fixed cases whose answers fit in a line."""

from __future__ import annotations

from typing import Any

from labkit.reader.subject import Subject, Wrong

# ---- static


def rectangle(student: Subject, variant: str) -> None:
    """A batch of two runs to the end of the longer, and its empty places are counted."""
    server = student.new("StaticScheduler", 2)
    for name, prompt, output in (("a", 5, 1), ("b", 9, 3), ("c", 4, 3)):
        server.expect("add", name, prompt, output, want=None)
    server.expect_error("ValueError", "add", "a", 1, 1)
    server.expect(
        "schedule", want={"entries": [["a", 0, 5], ["c", 0, 4]], "padding": 1},
        because="4 is nearer to 5 than 9 is; the row of c is one position short",
    )  # fmt: skip
    server.expect("update", [], want=[])
    why = "a has finished, and its row is computed all the same"
    server.expect("schedule", want={"entries": [["c", 4, 1]], "padding": 1}, because=why)
    server.expect_error("ValueError", "add", "a", 5, 1, because="finished, but not answered yet")
    server.expect("update", ["c"], want=["a", "c"], because="c said its end")
    server.expect("schedule", want={"entries": [["b", 0, 9]], "padding": 0})


def latecomer(student: Subject, variant: str) -> None:
    """Whoever comes while a batch runs waits for the next, though a seat is free."""
    server = student.new("StaticScheduler", 2)
    server.expect("schedule", want={"entries": [], "padding": 0})
    server.expect("update", [], want=[])
    server.expect("add", "a", 2, 2, want=None)
    server.expect("schedule", want={"entries": [["a", 0, 2]], "padding": 0})
    server.expect("add", "b", 3, 1, want=None)
    server.expect("update", [], want=[])
    server.expect("schedule", want={"entries": [["a", 2, 1]], "padding": 0})
    server.expect("update", [], want=["a"], because="it has said 2 tokens")
    server.expect("schedule", want={"entries": [["b", 0, 3]], "padding": 0})


def nearest(student: Subject, variant: str) -> None:
    """The oldest and those nearest to it, the older of equals; answered in order of arrival."""
    server = student.new("StaticScheduler", 3)
    for name, prompt in (("a", 5), ("b", 9), ("c", 7), ("d", 3), ("e", 4)):
        server.expect("add", name, prompt, 1, want=None)
    why = "e is 1 away, c and d are 2 away and c is older"
    want = {"entries": [["a", 0, 5], ["c", 0, 7], ["e", 0, 4]], "padding": 5}
    server.expect("schedule", want=want, because=why)
    server.expect("update", [], want=["a", "c", "e"])
    server.expect("add", "a", 3, 1, want=None, because="it was answered, so it may come again")


# ---- continuous


def joins(student: Subject, variant: str) -> None:
    """Requests join when a seat is free; the last token is not computed."""
    server = student.new("Scheduler", 2, 9, 9)
    for name, prompt in (("a", 4), ("b", 3), ("c", 2)):
        server.expect("add", name, "ada", 0, prompt, 2, 0, want=None)
    server.expect_error("ValueError", "add", "a", "ada", 0, 1, 1, 0)
    server.expect("schedule", want=[["a", 0, 0, 4], ["b", 1, 0, 3]])
    server.expect("update", 1, ["a"], want=["a"])
    server.expect("schedule", want=[["b", 1, 3, 1], ["c", 0, 0, 2]], because="a has ended")
    server.expect("update", 2, [], want=["b"], because="b has said 2 tokens")
    server.expect("schedule", want=[["c", 0, 2, 1]])
    server.expect("schedule", want=[], because="c says its second token in the step in flight")
    server.expect("add", "d", "ada", 0, 3, 1, 0, want=None)
    why = "b has left seat 1; c has its seat until update"
    server.expect("schedule", want=[["d", 1, 0, 3]], because=why)


def shares(student: Subject, variant: str) -> None:
    """A client has its share of the seats, and age lowers a rank."""
    server = student.new("Scheduler", 2, 1, 2)
    for name, client, priority in (("a", "ada", 0), ("b", "ada", 0), ("c", "bob", 1)):
        server.expect("add", name, client, priority, 3, 1, 2, want=None)
    why = "ada has one seat; positions 0 and 1 of each are cached"
    server.expect("schedule", want=[["a", 0, 2, 1], ["c", 1, 2, 1]], because=why)
    server.expect("schedule", want=[])
    server.expect("update", 1, [], want=["a", "c"])
    server.expect("add", "d", "ada", -1, 3, 1, 3, want=None)
    why = "b has waited 2 calls, so its rank is -1, too"
    server.expect("schedule", want=[["b", 0, 2, 1]], because=why)
    server.expect("abort", "b", want=None)
    server.expect("schedule", want=[["d", 0, 2, 1]], because="one position of d is left")


def taken_back(student: Subject, variant: str) -> None:
    """What is trimmed is computed later; who is preempted begins anew."""
    server = student.new("Scheduler", 1, 9, 9)
    server.expect("add", "a", "ada", 0, 4, 3, 2, want=None)
    server.expect("schedule", want=[["a", 0, 2, 2]])
    server.expect("trim", "a", 1, want=None)
    server.expect_error("ValueError", "trim", "a", 2)
    server.expect("update", 1, [], want=[])
    why = "nothing was sampled: positions 0 to 2 only"
    server.expect("schedule", want=[["a", 0, 3, 1]], because=why)
    server.expect("update", 2, [], want=[])
    server.expect("preempt", "a", want=None)
    server.expect_error("ValueError", "preempt", "a")
    server.expect("schedule", want=[["a", 0, 0, 5]], because="4 of the prompt, and 1 it has said")


def stale(student: Subject, variant: str) -> None:
    """A step in flight says nothing to a request that was preempted since and runs again."""
    server = student.new("Scheduler", 1, 9, 9)
    server.expect("add", "a", "ada", 0, 3, 3, 0, want=None)
    server.expect("schedule", want=[["a", 0, 0, 3]])
    server.expect("preempt", "a", want=None)
    server.expect("schedule", want=[["a", 0, 0, 3]], because="what it had computed is lost")
    server.expect("update", 1, ["a"], want=[], because="a was preempted after step 1")
    server.expect("schedule", want=[["a", 0, 3, 1]], because="step 2 is in flight, step 1 dropped")
    server.expect("update", 2, ["a"], want=["a"])


def ages(student: Subject, variant: str) -> None:
    """A rank falls by one for every `patience` calls before the present one."""
    server = student.new("Scheduler", 1, 9, 2)
    server.expect("add", "x", "ada", 0, 3, 1, 0, want=None)
    server.expect("add", "z", "ada", 1, 3, 1, 0, want=None)
    server.expect("schedule", want=[["x", 0, 0, 3]])
    server.expect("update", 1, [], want=["x"])
    server.expect("add", "a", "ada", 0, 3, 1, 0, want=None)
    why = "z has waited one call, the present one not counted, and is at 1 still"
    server.expect("schedule", want=[["a", 0, 0, 3]], because=why)
    server.expect("update", 2, [], want=["a"])
    server.expect("add", "b", "ada", 0, 3, 1, 0, want=None)
    why = "z has waited two calls and is at 0 as b is, and z was added first"
    server.expect("schedule", want=[["z", 0, 0, 3]], because=why)


def order_of_entries(student: Subject, variant: str) -> None:
    """Those that run come first, in order of their admission, whatever their names and seats."""
    server = student.new("Scheduler", 2, 9, 9)
    for name, output in (("z", 1), ("m", 3)):
        server.expect("add", name, "ada", 0, 2, output, 0, want=None)
    server.expect("schedule", want=[["z", 0, 0, 2], ["m", 1, 0, 2]])
    server.expect("add", "a", "ada", 0, 2, 1, 0, want=None)
    server.expect("update", 1, [], want=["z"])
    server.expect("schedule", want=[["m", 1, 2, 1], ["a", 0, 0, 2]])
    server.expect("update", 2, ["m"], want=["m", "a"], because="in the order of the entries")


def seat_until_the_end(student: Subject, variant: str) -> None:
    """While its last token is in flight a request keeps its seat and counts for its client."""
    server = student.new("Scheduler", 2, 1, 9)
    server.expect("add", "a", "ada", 0, 3, 1, 0, want=None)
    server.expect("add", "b", "ada", 0, 3, 1, 0, want=None)
    server.expect("schedule", want=[["a", 0, 0, 3]])
    server.expect("schedule", want=[], because="a is in flight, and ada has one seat")
    server.expect("update", 1, [], want=["a"])
    server.expect("schedule", want=[["b", 0, 0, 3]])


def waits_again(student: Subject, variant: str) -> None:
    """Who is preempted keeps its order; what waits can be aborted, but not preempted again."""
    server = student.new("Scheduler", 1, 9, 9)
    for name in ("a", "b", "c"):
        server.expect("add", name, "ada", 0, 2, 2, 1, want=None)
    server.expect("schedule", want=[["a", 0, 1, 1]])
    server.expect("preempt", "a", want=None)
    server.expect_error("ValueError", "preempt", "a", because="a waits")
    server.expect_error("ValueError", "trim", "a", 0, because="a has no entry any more")
    server.expect("schedule", want=[["a", 0, 0, 2]], because="a was added first; nothing is cached")
    server.expect("abort", "b", want=None)
    server.expect("abort", "a", want=None)
    server.expect("schedule", want=[["c", 0, 1, 1]], because="a and b were aborted")


def trims(student: Subject, variant: str) -> None:
    """A second trim counts what the first has left; an entry of 0 is one still."""
    server = student.new("Scheduler", 1, 9, 9)
    server.expect("add", "a", "ada", 0, 4, 2, 0, want=None)
    server.expect("schedule", want=[["a", 0, 0, 4]])
    server.expect("trim", "a", 2, want=None)
    server.expect_error("ValueError", "trim", "a", 3, because="2 positions are left")
    server.expect_error("ValueError", "trim", "a", -1)
    server.expect("trim", "a", 0, want=None)
    server.expect("trim", "a", 0, want=None, because="an entry of 0 positions is one still")
    server.expect("update", 1, [], want=[])
    server.expect_error("ValueError", "trim", "a", 0, because="its step is over")
    server.expect("schedule", want=[["a", 0, 0, 4]], because="nothing was computed")


# ---- chunked


def _wish(
    variant: str, name: str, count: int, since: int = 9, decode: bool = False, start: int = 0,
    **more: int,
) -> dict[str, Any]:  # fmt: skip
    """A wish with what the variant's wishes have."""
    fields: dict[str, Any] = {
        "request": name, "start": start, "count": count, "decode": decode, "since": since,
    }  # fmt: skip
    if variant == "fair":
        fields |= {"client": name[0], "served": more.get("served", 0)}
    elif variant == "deadline":
        fields |= {"deadline": more.get("deadline", 20)}
    return fields


def cuts(student: Subject, variant: str) -> None:
    """Prompts are cut at the border of a block, or end."""

    def expect(budget: int, want: list[int], because: str = "") -> None:
        wishes = [_wish(variant, "a", 9)]
        student.expect("pack", budget, 999, 4, wishes, 10, want=want, because=because)

    expect(9, [9])
    expect(8, [8], "8 fit, in blocks of 4")
    expect(6, [4], "one block of 4 fits")
    expect(3, [0], "no block of 4 fits")
    student.expect("pack", 8, 999, 8, [_wish(variant, "a", 30)], 10, want=[8])
    student.expect("pack", 8, 999, 4, [], 10, want=[], because="nobody wishes anything")


def decodes(student: Subject, variant: str) -> None:
    """Decodes first; where the budget is short, those that have waited longest."""
    prompt = _wish(variant, "a", 2, 1)
    three = [_wish(variant, name, 1, n, decode=True) for name, n in (("c", 8), ("d", 5), ("e", 8))]

    def expect(budget: int, want: list[int], because: str = "") -> None:
        student.expect("pack", budget, 999, 4, [prompt, *three], 10, want=want, because=because)

    expect(5, [2, 1, 1, 1])
    expect(4, [0, 1, 1, 1], "1 is left, and the prompt ends with 2")
    expect(2, [0, 1, 1, 0], "d waits longest, then c, which is listed before e")
    expect(1, [0, 0, 1, 0], "d waits longest")


def passes_on(student: Subject, variant: str) -> None:
    """A prompt that can get no chunk does not end the step: one behind it may still fit."""
    # By any variant's rule the first prompt comes first.
    first = _wish(variant, "a", 9, 1, deadline=15, served=0)
    second = _wish(variant, "b", 3, 9, deadline=19, served=1)
    why = "no block of 4 fits, but b ends with 3"
    student.expect("pack", 3, 999, 4, [first, second], 10, want=[0, 3], because=why)


def pairs(student: Subject, variant: str) -> None:
    """A chunk is cut to what the pairs leave; the first of a step may have one block."""
    # By any variant's rule b comes before c.
    decode = _wish(variant, "a", 1, 9, decode=True, start=30)
    first = _wish(variant, "b", 9, 1, start=40, deadline=15)
    second = _wish(variant, "c", 2, 9, deadline=19)

    def expect(
        pairs: int, wishes: list[dict[str, Any]], want: list[int], because: str, budget: int = 9
    ) -> None:
        student.expect("pack", budget, pairs, 4, wishes, 10, want=want, because=because)

    three = [decode, first, second]
    expect(200, three, [1, 4, 0], "b may have one block, 170 pairs beside a's 31; none is left")
    expect(204, three, [1, 4, 2], "31 + 170 + 3 pairs; 8 of b would have 356")
    expect(203, three, [1, 4, 0], "31 + 170 + 3 are one too many")
    expect(10, [decode, second], [1, 2], "c is the first prompt, and ends with less than a block")
    three = [decode, first | {"count": 4}, second | {"count": 12}]
    expect(237, three, [1, 4, 8], "31 + 170 + 36 pairs; 12 of c would have 78, not 36", 20)


def order(student: Subject, variant: str) -> None:
    """The rule of your variant."""

    def expect(budget: int, wishes: list[dict[str, Any]], want: list[int], because: str) -> None:
        student.expect("pack", budget, 999, 4, wishes, 10, want=want, because=because)

    def wish(*args: Any, **more: Any) -> dict[str, Any]:
        return _wish(variant, *args, **more)

    if variant == "fair":
        prompts = [wish("a1", 9), wish("a2", 4), wish("b", 20, served=2)]
        expect(12, prompts, [8, 0, 4], "turns: a with 0 tokens, b with 2, a with 4")
        prompts = [wish("a1", 9), wish("a2", 1, decode=True), wish("b1", 9)]
        expect(5, prompts, [0, 1, 4], "a has 1 token, that of its decode; b has none")
    elif variant == "deadline":
        prompts = [wish("a", 8, deadline=12), wish("b", 9, deadline=10), wish("c", 8, deadline=11)]
        expect(8, prompts, [0, 0, 8], "b would need 2 steps and has 1; c comes before a")
        expect(12, prompts, [0, 9, 0], "b can be complete now")
        prompts = [wish("a", 9, deadline=10), wish("b", 30, deadline=9), wish("c", 9, deadline=15)]
        expect(16, prompts, [9, 0, 4], "a, then c; b cannot be complete in time")
    else:
        prompts = [wish("a", 9), wish("b", 6), wish("c", 20, 3), wish("d", 20, 2)]
        why = "d has waited 8 steps; then b is shortest, and nothing is left"
        expect(26, prompts, [0, 6, 0, 20], why)
        prompts = [wish("a", 8, 2), wish("b", 12, 1), wish("c", 4)]
        expect(12, prompts, [0, 12, 0], "a and b have waited 8 steps or more, b longest")


# ---- engine


def blocks(student: Subject, variant: str) -> None:
    """Blocks are counted by positions, and the last token needs none."""
    memory = student.new("Memory", 4, 8, 1)
    memory.expect("fits", 30, 3, want=True, because="positions 0 to 31")
    memory.expect("fits", 30, 4, want=False)
    memory.expect("place", [["a", 0, 0, 8], ["b", 1, 0, 17]], want=["b"], because="1 stays spare")
    memory.expect("num_free", want=3)
    memory.expect("place", [["a", 0, 8, 1], ["b", 1, 0, 8]], want=[])
    memory.expect("num_free", want=1, because="a has 9 positions")
    memory.expect("free", "b", want=None)
    memory.expect("num_free", want=2)


def gives_way(student: Subject, variant: str) -> None:
    """The one that would lose the least gives way, and new ones wait."""
    memory = student.new("Memory", 4, 4, 0)
    memory.expect("place", [["a", 0, 0, 4], ["b", 1, 0, 8], ["c", 2, 0, 4]], want=[])
    why = "c has 4 positions as a has, and came later; d is new"
    step = [["b", 1, 8, 1], ["c", 2, 4, 1], ["d", 3, 0, 1]]
    memory.expect("place", step, want=["c", "d"], because=why)
    memory.expect("num_free", want=0)
    why = "a itself has the fewest positions"
    memory.expect("place", [["a", 0, 4, 1], ["b", 1, 9, 1]], want=["a"], because=why)


def overtakes(student: Subject, variant: str) -> None:
    """No new request overtakes another, or comes in while one that ran is sent away."""
    memory = student.new("Memory", 6, 4, 0)
    memory.expect("place", [["a", 0, 0, 8], ["b", 1, 0, 12]], want=[])
    why = "3 blocks for c are not free; d would fit, but c is before it"
    memory.expect("place", [["c", 2, 0, 9], ["d", 3, 0, 4]], want=["c", "d"], because=why)
    why = "a has the fewest positions; a block is left, but e is new and a has given way"
    memory.expect("place", [["b", 1, 12, 5], ["e", 2, 0, 4]], want=["a", "e"], because=why)
    memory.expect("num_free", want=1)


def leaves_room(student: Subject, variant: str) -> None:
    """A new request leaves `spare` blocks free, unless nobody else holds any at its turn."""
    memory = student.new("Memory", 6, 1, 2)
    memory.expect("place", [["a", 0, 0, 6]], want=[], because="nobody else holds any")
    memory.expect("free", "a", want=None)
    why = "b holds 3 at c's turn, and 2 of the other 3 stay spare"
    memory.expect("place", [["b", 0, 0, 3], ["c", 1, 0, 2]], want=["c"], because=why)
    memory.expect("place", [["b", 0, 3, 1], ["c", 1, 0, 1]], want=["c"])
    memory.expect("place", [["b", 0, 4, 2]], want=[], because="b runs: it may take the spare ones")


def comes_again(student: Subject, variant: str) -> None:
    """A request that had lost its blocks is a new one: its first block came last."""
    memory = student.new("Memory", 3, 1, 0)
    memory.expect("place", [["a", 0, 0, 1], ["b", 1, 0, 1]], want=[])
    memory.expect("free", "a", want=None)
    memory.expect("free", "nobody", want=None)
    memory.expect("place", [["a", 0, 0, 1]], want=[])
    why = "a and b have one position each, and a got its first block last"
    memory.expect("place", [["b", 1, 1, 2]], want=["a"], because=why)


CHECKS = {
    "static": [rectangle, latecomer, nearest],
    "continuous": [
        joins, order_of_entries, shares, ages, seat_until_the_end, taken_back, waits_again, trims,
        stale,
    ],
    "chunked": [cuts, decodes, passes_on, pairs, order],
    "engine": [blocks, gives_way, comes_again, overtakes, leaves_room],
}  # fmt: skip


# ---- the frontier's policy


def a_short_trace(names: dict[str, Any]) -> None:
    """`policy` deals out a budget whenever it is asked, on one short trace with bursts in it."""
    if "policy" not in names:
        raise Wrong("it does not define `policy`")
    names["serve"](names["policy"], names["traffic"](1, seconds=3))


FRONTIER = {"policy": ("traffic", a_short_trace)}
