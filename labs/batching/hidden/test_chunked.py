"""Hidden tests of `pack`, beside an oracle that deals token by token."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from .pack_oracle import pack

NOW = 40
RULES = {
    "shortest": "the fewest tokens left first, but whoever has waited 8 steps or more before all",
    "fair": "each turn is of the client with the fewest tokens, this step's and decodes included",
    "deadline": "first those that can still meet their deadline, the earliest first",
}


def wish(i, count, decode=False, waited=1, client=0, deadline=50, served=0):
    """One wish; `served` is of the client, so all of one client must agree."""
    return {
        "request": f"r{i}", "count": count, "decode": decode, "since": NOW - waited,
        "client": "ABC"[client], "served": served, "deadline": deadline,
    }  # fmt: skip


def _judge(student, variant, budget, block, wishes, because=""):
    fields = {"request", "count", "decode", "since"}
    fields |= {"fair": {"client", "served"}, "deadline": {"deadline"}}.get(variant, set())
    shown = [{key: value for key, value in w.items() if key in fields} for w in wishes]
    want = pack(variant, budget, block, wishes, NOW)
    student.expect(
        "pack", budget, block, shown, NOW, want=want, because=because,
        said=lambda: _said(budget, block, shown),
    )  # fmt: skip


def _said(budget, block, shown):
    """The call in words: of each wish its count and whatever decides its turn."""
    parts = []
    for w in shown:
        rest = [f"{k} {w[k]}" for k in ("since", "client", "served", "deadline") if k in w]
        parts.append(f"{'decode' if w['decode'] else w['count']} ({', '.join(rest)})")
    return f"pack({budget}, {block}, wishes, {NOW}) with the wishes " + "; ".join(parts)


@st.composite
def steps(drawn, most_decodes=4, blocks=(1, 2, 4), waits=7, least_budget=0, soonest=30):
    """A budget, a block and wishes whose decodes are among the prompts."""
    served = [drawn(st.integers(0, 20)) for _ in range(3)]
    number = drawn(st.integers(0, most_decodes))
    wishes = []
    for i in range(number + drawn(st.integers(1, 5))):
        client = drawn(st.integers(0, 2))
        wishes.append(
            wish(
                i, 1 if i < number else drawn(st.integers(1, 20)), i < number,
                drawn(st.integers(1, waits)), client,
                NOW + drawn(st.integers(soonest, soonest + 5)), served[client],
            )
        )  # fmt: skip
    order = drawn(st.permutations(range(len(wishes))))
    budget = drawn(st.integers(max(1, number, least_budget), 30))
    return budget, drawn(st.sampled_from(blocks)), [wishes[i] for i in order]


@given(step=steps(blocks=(1,)))
@example(step=(5, 1, [wish(0, 3), wish(1, 3), wish(2, 3)]))
def test_within_the_budget(student, variant, step):
    """The last chunk ends where the budget does."""
    _judge(student, variant, *step)


@given(step=steps(most_decodes=5, blocks=(1,)))
@example(step=(4, 1, [wish(0, 4, client=1), wish(1, 1, decode=True)]))
def test_decodes_first(student, variant, step):
    """Whoever decodes is served, however long the prompts before it."""
    budget, block, wishes = step
    decodes = sum(w["decode"] for w in wishes)
    _judge(student, variant, max(1, decodes + budget % (2 * block)), block, wishes)


@given(
    waits=st.lists(st.integers(1, 4), min_size=2, max_size=7),
    short=st.integers(1, 3),
    prompt=st.integers(1, 5),
)
@example(waits=[1, 3, 2, 3], short=1, prompt=1)
def test_more_decodes_than_budget(student, variant, waits, short, prompt):
    """Nobody who decodes is left out for ever."""
    wishes = [wish(i, 1, True, waited) for i, waited in enumerate(waits)]
    budget = max(1, len(waits) - short)
    _judge(student, variant, budget, 1, [wish(9, prompt, waited=30), *wishes])


@given(step=steps(most_decodes=0, blocks=(2, 4, 8)))
@example(step=(11, 4, [wish(0, 13)]))
@example(step=(8, 8, [wish(0, 8)]))
@example(step=(7, 4, [wish(0, 7)]))
def test_whole_blocks(student, variant, step):
    """A prompt is cut at the border of a block only; its own end need not be one."""
    _judge(student, variant, *step)


@given(lengths=st.lists(st.integers(1, 9), min_size=2, max_size=5), budget=st.integers(1, 12))
@example(lengths=[4, 9, 2], budget=7)
@example(lengths=[9, 1, 1], budget=3)
def test_no_head_of_line(student, variant, lengths, budget):
    """Where no block of the first prompt fits, the end of another may."""
    # Long ago, an early deadline and few tokens put the long prompts first in any variant.
    wishes = [
        wish(i, n, waited=1 + n * 3, client=i % 3, deadline=60 - n, served=9 - 3 * (i % 3))
        for i, n in enumerate(lengths)
    ]
    _judge(student, variant, budget, 4, wishes)


@given(step=steps(most_decodes=3, waits=12, least_budget=6, soonest=-1))
@example(step=(4, 2, [wish(0, 6, waited=7), wish(1, 5, waited=7), wish(2, 9, waited=8, client=1)]))
@example(step=(4, 4, [wish(0, 9, deadline=42), wish(1, 8, deadline=41), wish(2, 4, deadline=40)]))
@example(step=(4, 4, [wish(0, 9, deadline=41), wish(1, 5, deadline=41), wish(2, 8, deadline=43)]))
@example(step=(4, 4, [wish(0, 9, deadline=40), wish(1, 9, deadline=39), wish(2, 4, deadline=50)]))
@example(step=(9, 4, [wish(0, 4, deadline=41), wish(1, 9, deadline=40), wish(2, 1, True)]))
@example(step=(8, 4, [wish(0, 9, deadline=40), wish(1, 9, deadline=39)]))
@example(step=(3, 2, [wish(0, 9), wish(1, 9, client=1), wish(2, 1, True)]))
@example(step=(8, 2, [wish(0, 9), wish(1, 9), wish(2, 9, client=1), wish(3, 1, True, client=1)]))
def test_rule_of_the_variant(student, variant, step):
    """The order of the prompts."""
    _judge(student, variant, *step, because=f"the rule of your variant: {RULES[variant]}")


@given(step=steps(most_decodes=6, waits=30, soonest=-1), less=st.integers(0, 4))
def test_any_step(student, variant, step, less):
    """Any step, a budget smaller than the number of decodes included."""
    budget, block, wishes = step
    _judge(student, variant, max(1, budget - less), block, wishes)
    _judge(student, variant, budget, block, [], because="nobody wishes anything")
