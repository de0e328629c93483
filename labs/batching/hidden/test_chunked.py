"""Hidden tests of `pack`, beside an oracle that deals token by token."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from .pack_oracle import pack

NOW = 40
MANY = 1 << 40  # pairs that bound nothing
RULES = {
    "shortest": "the fewest tokens left first, but whoever has waited 8 steps or more before all",
    "fair": "each turn is of the client with the fewest tokens, this step's and decodes included;"
    " a client whose turn does not fit gets no more",
    "deadline": "first those that can still meet their deadline, the earliest first",
}


def wish(i, count, decode=False, waited=1, client=0, deadline=50, served=0, start=0):
    """One wish; `served` is of the client, so all of one client must agree."""
    return {
        "request": f"r{i}", "start": start, "count": count, "decode": decode,
        "since": NOW - waited,
        "client": "ABC"[client], "served": served, "deadline": deadline,
    }  # fmt: skip


def _judge(student, variant, budget, block, wishes, because="", pairs=MANY):
    fields = {"request", "start", "count", "decode", "since"}
    fields |= {"fair": {"client", "served"}, "deadline": {"deadline"}}.get(variant, set())
    shown = [{key: value for key, value in w.items() if key in fields} for w in wishes]
    want = pack(variant, budget, pairs, block, wishes, NOW)
    student.expect(
        "pack", budget, pairs, block, shown, NOW, want=want, because=because,
        said=lambda: _said(budget, pairs, block, shown),
    )  # fmt: skip


def _said(budget, pairs, block, shown):
    """The call in words: of each wish its count and whatever decides its turn."""
    parts = []
    for w in shown:
        rest = [f"{k} {w[k]}" for k in ("start", "since", "client", "served", "deadline") if k in w]
        parts.append(f"{'decode' if w['decode'] else w['count']} ({', '.join(rest)})")
    return f"pack({budget}, {pairs}, {block}, wishes, {NOW}) with the wishes " + "; ".join(parts)


def _strangers(wishes):
    """The wishes, each of a client of its own: what one may get does not bar another."""
    return [w | {"client": f"c{i}"} for i, w in enumerate(wishes)]


@st.composite
def steps(drawn, most_decodes=4, blocks=(1, 2, 4), waits=7, least_budget=0, soonest=30):
    """A budget, a block and wishes whose decodes are among the prompts."""
    served = [drawn(st.integers(0, 20)) for _ in range(3)]
    block = drawn(st.sampled_from(blocks))
    number = drawn(st.integers(0, most_decodes))
    wishes = []
    for i in range(number + drawn(st.integers(1, 5))):
        client = drawn(st.integers(0, 2))
        wishes.append(
            wish(
                i, 1 if i < number else drawn(st.integers(1, 20)), i < number,
                drawn(st.integers(1, waits)), client,
                NOW + drawn(st.integers(soonest, soonest + 5)), served[client],
                drawn(st.integers(0, 30)) if i < number else block * drawn(st.integers(0, 9)),
            )
        )  # fmt: skip
    order = drawn(st.permutations(range(len(wishes))))
    budget = drawn(st.integers(max(1, number, least_budget), 30))
    return budget, block, [wishes[i] for i in order]


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
@example(waits=[1, 3, 2, 3], short=3, prompt=1)
def test_more_decodes_than_budget(student, variant, waits, short, prompt):
    """Nobody who decodes is left out for ever."""
    # Their names run against the list, which alone says who of equals is first.
    wishes = [wish(8 - i, 1, True, waited) for i, waited in enumerate(waits)]
    budget = max(1, len(waits) - short)
    _judge(student, variant, budget, 1, [wish(9, prompt, waited=30), *wishes])


@given(step=steps(most_decodes=0, blocks=(2, 4, 8)))
@example(step=(11, 4, [wish(0, 13)]))
@example(step=(8, 8, [wish(0, 8)]))
@example(step=(7, 4, [wish(0, 7)]))
def test_whole_blocks(student, variant, step):
    """A prompt is cut at the border of a block only; its own end need not be one."""
    budget, block, wishes = step
    _judge(student, variant, budget, block, _strangers(wishes))


@given(lengths=st.lists(st.integers(1, 9), min_size=2, max_size=5), budget=st.integers(1, 12))
@example(lengths=[4, 9, 2], budget=7)
@example(lengths=[9, 1, 1], budget=3)
def test_no_head_of_line(student, variant, lengths, budget):
    """Where no block of the first prompt fits, the end of another may."""
    # Long ago, an early deadline and few tokens put the long prompts first in any variant.
    wishes = [
        wish(i, n, waited=1 + n * 3, deadline=60 - n, served=9 - 3 * (i % 3))
        for i, n in enumerate(lengths)
    ]
    _judge(student, variant, budget, 4, _strangers(wishes))


@given(
    step=steps(most_decodes=2, blocks=(2, 4), least_budget=8), pairs=st.integers(1, 400)
)  # fmt: skip
@example(step=(30, 4, [wish(0, 8), wish(1, 9, start=20, waited=2)]), pairs=10 + 36 + 90 - 1)
@example(step=(30, 4, [wish(0, 8), wish(1, 8, start=20, waited=2)]), pairs=10 + 36 + 90)
@example(step=(30, 4, [wish(0, 4), wish(1, 8, start=20), wish(2, 9)]), pairs=60)
@example(
    step=(30, 2, [wish(0, 1, True, start=30), wish(1, 5), wish(2, 9, client=1)]), pairs=31 + 3 + 15
)
@example(
    step=(30, 2, [wish(0, 1, True, start=30), wish(1, 5), wish(2, 9, client=1)]),
    pairs=31 + 3 + 15 - 1,
)
@example(
    step=(30, 2, [wish(0, 1, True, start=30), wish(1, 5), wish(2, 9, client=1)]),
    pairs=31 + 3 + 3 - 1,
)
@example(step=(1, 2, [wish(0, 1, True, start=90), wish(1, 1, True, start=9)]), pairs=50)
def test_pairs(student, variant, step, pairs):
    """A chunk far into its prompt has more pairs; what decodes and other chunks have counts."""
    budget, block, wishes = step
    first = wish(8, block, waited=9, deadline=NOW + 1, client=2)  # so that a prompt has begun
    if not any(w["client"] == "C" for w in wishes):
        wishes = [first, *wishes]
    _judge(student, variant, budget, block, wishes, pairs=pairs)


@given(
    start=st.integers(1, 20), block=st.sampled_from((2, 4)), count=st.integers(1, 12),
    budget=st.integers(1, 14), pairs=st.integers(1, 90), decodes=st.integers(0, 2),
    other=st.tuples(st.integers(0, 5), st.integers(1, 20)),
)  # fmt: skip
@example(start=9, block=4, count=9, budget=14, pairs=1, decodes=0, other=(0, 20))
@example(start=9, block=4, count=3, budget=3, pairs=1, decodes=0, other=(0, 20))
@example(start=9, block=4, count=7, budget=14, pairs=1, decodes=0, other=(0, 20))
@example(start=9, block=4, count=9, budget=3, pairs=1, decodes=0, other=(0, 20))
@example(start=9, block=4, count=9, budget=14, pairs=1, decodes=2, other=(0, 20))
@example(start=1, block=2, count=9, budget=14, pairs=30, decodes=0, other=(0, 20))
@example(start=9, block=4, count=9, budget=3, pairs=1, decodes=0, other=(5, 3))
def test_one_block_for_a_start(
    student, variant, start, block, count, budget, pairs, decodes, other
):  # fmt: skip
    """A prompt far into its text goes on, block by block, and its pairs count for the others."""
    wishes = [wish(i, 1, True, start=50) for i in range(decodes)]
    wishes.append(wish(5, count, waited=20, deadline=NOW + 4, client=1, start=block * start))
    begins, size = other
    wishes.append(
        wish(6, size, waited=15, deadline=NOW + 9, client=2, served=4, start=block * begins)
    )
    _judge(student, variant, budget + decodes, block, wishes, pairs=pairs)


@given(step=steps(most_decodes=3, waits=12, least_budget=6, soonest=-1))
@example(step=(4, 2, [wish(0, 6, waited=7), wish(1, 5, waited=7), wish(2, 9, waited=8, client=1)]))
@example(step=(4, 4, [wish(0, 9, deadline=42), wish(1, 8, deadline=41), wish(2, 4, deadline=40)]))
@example(step=(4, 4, [wish(0, 9, deadline=41), wish(1, 5, deadline=41), wish(2, 8, deadline=43)]))
@example(step=(4, 4, [wish(0, 9, deadline=40), wish(1, 9, deadline=39), wish(2, 4, deadline=50)]))
@example(step=(9, 4, [wish(0, 4, deadline=41), wish(1, 9, deadline=40), wish(2, 1, True)]))
@example(step=(8, 4, [wish(0, 9, deadline=40), wish(1, 9, deadline=39)]))
@example(step=(3, 2, [wish(0, 9), wish(1, 9, client=1), wish(2, 1, True)]))
@example(step=(8, 2, [wish(0, 9), wish(1, 9), wish(2, 9, client=1), wish(3, 1, True, client=1)]))
@example(step=(4, 4, [wish(0, 9, waited=9), wish(1, 5, waited=9)]))
@example(step=(8, 4, [wish(0, 4, deadline=40), wish(1, 8, deadline=40), wish(2, 4, deadline=41)]))
@example(step=(3, 2, [wish(0, 1, True, client=1), wish(1, 9, served=1), wish(2, 9, client=1)]))
@example(step=(6, 2, [wish(0, 2), wish(1, 9, client=1), wish(2, 9)]))
@example(step=(3, 4, [wish(0, 9), wish(1, 2)]))  # the first turn does not fit
def test_rule_of_the_variant(student, variant, step):
    """The order of the prompts."""
    _judge(student, variant, *step, because=f"the rule of your variant: {RULES[variant]}")


@given(
    step=steps(most_decodes=6, waits=30, soonest=-1), less=st.integers(0, 4),
    pairs=st.integers(1, 900),
)  # fmt: skip
@example(step=(9, 4, [wish(0, 9, waited=0, start=8)]), less=0, pairs=1)  # admitted in this step
def test_any_step(student, variant, step, less, pairs):
    """Any step, a budget smaller than the number of decodes included."""
    budget, block, wishes = step
    _judge(student, variant, max(1, budget - less), block, wishes, pairs=pairs)
    _judge(student, variant, budget, block, [], because="nobody wishes anything")
