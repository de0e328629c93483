"""The public checks: a few fixed cases whose answers fit in a line."""

from __future__ import annotations

from typing import Any

from labkit.reader.subject import Subject

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
    """A client has its share of the seats, and age makes urgent."""
    server = student.new("Scheduler", 2, 1, 2)
    for name, client, priority in (("a", "ada", 0), ("b", "ada", 0), ("c", "bob", 1)):
        server.expect("add", name, client, priority, 3, 1, 2, want=None)
    why = "ada has one seat; positions 0 and 1 of each are cached"
    server.expect("schedule", want=[["a", 0, 2, 1], ["c", 1, 2, 1]], because=why)
    server.expect("schedule", want=[])
    server.expect("update", 1, [], want=["a", "c"])
    server.expect("add", "d", "ada", -1, 3, 1, 3, want=None)
    why = "b has waited 2 calls, so its number is -1, too"
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


# ---- chunked


def _wish(name: str, count: int, since: int = 9, **more: Any) -> dict[str, Any]:
    fixed = {"request": name, "count": count, "decode": False, "since": since}
    return fixed | {"client": name[0], "served": 0, "deadline": 20} | more


def _pack(
    student: Subject,
    variant: str,
    *args: Any,
    want: list[int],
    because: str = "",
) -> None:
    """Expect what `pack` gives; a complaint says of each wish what decides its turn."""
    budget, block, wishes, now = args
    shown = {"fair": ("client", "served"), "deadline": ("deadline",)}.get(variant, ())

    def said() -> str:
        parts = []
        for wish in wishes:
            rest = ", ".join(f"{key} {wish[key]}" for key in ("since", *shown))
            parts.append(f"{'decode' if wish['decode'] else wish['count']} ({rest})")
        return f"pack({budget}, {block}, wishes, {now}) with the wishes {'; '.join(parts)}"

    student.expect("pack", *args, want=want, because=because, said=said)


def cuts(student: Subject, variant: str) -> None:
    """Decodes first; then whole blocks, or a prompt to its end."""
    first, second = _wish("a", 9), _wish("b", 30)
    decodes = [_wish(name, 1, since, decode=True) for name, since in (("c", 8), ("d", 5), ("e", 8))]
    wishes = [first, *decodes]

    def expect(budget: int, want: list[int], because: str = "") -> None:
        _pack(student, variant, budget, 4, wishes, 10, want=want, because=because)

    expect(14, [9, 1, 1, 1])
    expect(11, [8, 1, 1, 1], "8 fit, in blocks of 4")
    expect(6, [0, 1, 1, 1], "no block of 4 fits")
    expect(2, [0, 1, 1, 0], "d waits longest, then c")
    _pack(student, variant, 8, 8, [second], 10, want=[8])


def order(student: Subject, variant: str) -> None:
    """The rule of your variant."""
    if variant == "fair":
        prompts = [_wish("a1", 9), _wish("a2", 4), _wish("b", 20, served=2)]
        why = "turns: a with 0 tokens, b with 2, a with 4"
        _pack(student, variant, 12, 4, prompts, 10, want=[8, 0, 4], because=why)
    elif variant == "deadline":
        prompts = [
            _wish("a", 8, deadline=12), _wish("b", 9, deadline=10), _wish("c", 8, deadline=11),
        ]  # fmt: skip
        why = "b would need 2 steps and has 1; c comes before a"
        _pack(student, variant, 8, 4, prompts, 10, want=[0, 0, 8], because=why)
        why = "b can be complete now"
        _pack(student, variant, 12, 4, prompts, 10, want=[0, 9, 0], because=why)
    else:
        prompts = [_wish("a", 9), _wish("b", 6), _wish("c", 20, since=3), _wish("d", 20, since=2)]
        why = "d has waited 8 steps; then b is shortest, and nothing is left"
        _pack(student, variant, 26, 4, prompts, 10, want=[0, 6, 0, 20], because=why)


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


CHECKS = {
    "static": [rectangle, latecomer],
    "continuous": [joins, shares, taken_back, stale],
    "chunked": [cuts, order],
    "engine": [blocks, gives_way, overtakes],
}
