"""The public checks: a few fixed cases whose answers fit in a line."""

from __future__ import annotations

from typing import Any

from labkit.reader.subject import Subject


def _unchanged(student: Subject, name: str, *args: Any) -> None:
    """No argument changes."""
    _, after = student.call_returning(range(len(args)), name, *args)
    for place, (left, given) in enumerate(zip(after, args, strict=True)):
        call = f"{student.said(name, *args)}, and looked at argument {place} afterwards"
        student.compare(call, left, given, because="no function changes its arguments")


NEVER = 99  # a separator that no text holds
RACE = [5, 4, 6]  # of 8 equal weights with seed 11, at the positions 5, 6 and 7


def _propose(
    student: Subject, tokens: list[int], longest: int, k: int, want: list[int], because: str,
    separator: int = NEVER, shortest: int = 1,
) -> None:  # fmt: skip
    student.expect("propose", tokens, longest, shortest, separator, k, want=want, because=because)


# ---- propose


def votes(student: Subject, variant: str) -> None:
    """The token that followed most often is drafted, of equals the latest."""
    _propose(student, [1, 3, 1, 3, 4, 1, 2, 1], 1, 1, [3], "1 was followed by 3, 3 and 2")
    why = "1 1 stands at 0 and at 1, which overlap; 2 followed later"
    _propose(student, [1, 1, 1, 2, 1, 1], 2, 1, [2], why)
    _propose(student, [1, 2, 1, 3, 1], 1, 1, [3], "2 and 3 followed once each, 3 later")
    _propose(student, [1, 2, 1, 3, 1], 1, 0, [], "no drafts are wanted")
    _unchanged(student, "propose", [1, 2, 1, 3, 1], 1, 1, NEVER, 2)


def backs_off(student: Subject, variant: str) -> None:
    """The longest end that has a place decides alone; else a shorter one serves."""
    text = [4, 2, 5, 2, 6, 2, 6, 4, 2]
    _propose(student, text, 2, 1, [5], "4 2 was followed by 5 once, though 2 more often by 6")
    _propose(student, text, 1, 1, [6], "2 was followed by 5, 6, 6 and 4")
    _propose(student, [3, 2, 6, 4, 2], 2, 1, [6], "4 2 has no place before the end, 2 has one")
    _propose(student, [3, 2, 6, 4, 2], 2, 1, [], "an end of one token is too short", shortest=2)


def goes_on(student: Subject, variant: str) -> None:
    """Each draft is found anew; drafts are no places, and drafting ends where none is."""
    _propose(student, [5, 1, 2, 5, 1, 3, 5, 1, 2, 9, 5], 2, 4, [1, 2, 9, 5], "the table's text")
    _propose(student, [1, 2, 3, 1], 2, 3, [2, 3, 1], "2 stands behind 1, 3 behind 2, 1 behind 3")
    why = "no 1 1 1 stands in the text with a token behind it; 1 1 is followed by nothing, 1 by 1"
    _propose(student, [1, 1], 3, 3, [1, 1, 1], why)
    why = "the places of 1 stay those of the text: 2, 3, 3; drafts do not vote"
    _propose(student, [1, 2, 1, 3, 1, 3, 2, 1], 1, 5, [3, 2, 1, 3, 2], why)


def separated(student: Subject, variant: str) -> None:
    """No end reaches over a separator, and a separator is never drafted."""
    why = "9 2 holds the separator 9, so 2 alone decides"
    _propose(student, [9, 2, 5, 2, 6, 2, 6, 9, 2], 2, 1, [6], why, separator=9)
    _propose(student, [1, 9, 1, 2, 1, 9, 1], 1, 2, [], "9 wins, so drafting ends", separator=9)
    _propose(student, [9, 1, 2, 9], 1, 2, [], "nothing is drafted behind a separator", separator=9)


# ---- verify


def _row(token: int, weight: int = 9) -> list[int]:
    """A row of weights in which `token` is the largest."""
    return [weight if t == token else 1 for t in range(8)]


def _request(variant: str, tokens: list[int], drafts: list[Any], **more: Any) -> dict[str, Any]:
    """A request without a seed; `tokens` are the largest of its rows in turn."""
    fields: dict[str, Any] = {
        "seed": None, "position": 5, "weights": [_row(token) for token in tokens],
        "drafts": drafts, "left": 9, "stops": [], "least": 0,
    }  # fmt: skip
    if variant == "grammar":
        fields |= {"grammar": [[0] * 8], "state": 0}
    elif variant == "quota":
        fields |= {"client": "ada", "quota": 9}
    return fields | more


def _answer(
    variant: str, tokens: list[int], rows: list[int], end: str | None = None, state: int = 0
) -> dict[str, Any]:
    found: dict[str, Any] = {"tokens": tokens, "rows": rows, "end": end}
    return found | {"state": state} if variant == "grammar" else found


def _verify(
    student: Subject, requests: list[dict[str, Any]], want: list[dict[str, Any]], because: str = ""
) -> None:
    student.expect("verify", requests, want=want, because=because)


def _chain(variant: str, drafts: list[int]) -> tuple[list[Any], list[int]]:
    """The drafts, and the rows that are used if all are right; second candidates are 0."""
    if variant == "pair":
        return [[token, 0] for token in drafts], [0, *range(1, 2 * len(drafts), 2)]
    return list(drafts), list(range(len(drafts) + 1))


def _says(variant: str, tokens: list[int], drafts: list[int], **more: Any) -> dict[str, Any]:
    """A request whose used rows say these tokens."""
    made, rows = _chain(variant, drafts)
    largest = [0] * (rows[-1] + 1 + (variant == "pair" and bool(drafts)))
    for row, token in zip(rows, tokens, strict=False):
        largest[row] = token
    return _request(variant, largest, made, **more)


def kept(student: Subject, variant: str) -> None:
    """Drafts are kept while equal, and one token more is said."""
    _, rows = _chain(variant, [7, 5])
    made = _says(variant, [7, 6, 3], [7, 5])
    _verify(student, [made], [_answer(variant, [7, 6], rows[:2])], "7 is kept, 5 is not said")
    made = _says(variant, [7, 5, 3], [7, 5])
    why = "both are kept, and a token is said behind them"
    _verify(student, [made], [_answer(variant, [7, 5, 3], rows)], why)
    _unchanged(student, "verify", [made])
    _verify(student, [_request(variant, [4], [])], [_answer(variant, [4], [0])], "no drafts")
    ties = _request(variant, [4], []) | {"weights": [[1, 3, 3]]}
    if variant == "grammar":
        ties["grammar"] = [[0] * 3]
    _verify(student, [ties], [_answer(variant, [1], [0])], "1 and 2 have the largest weight")


def raced(student: Subject, variant: str) -> None:
    """The noise is that of the token's own position."""
    made, rows = _chain(variant, RACE[:2])
    equal = [[2] * 8 for _ in range(5 if variant == "pair" else 3)]
    one = _request(variant, [0], made, weights=equal, seed=11)
    why = "the noise of the positions 5, 6 and 7"
    _verify(student, [one], [_answer(variant, RACE, rows)], why)
    heavy = [[2 if t != 4 else 2000 for t in range(8)]]
    alone = _request(variant, [0], [], weights=heavy, seed=11)
    _verify(student, [alone], [_answer(variant, [4], [0])], "4 weighs a thousand times the others")
    heavy = [[2 if t == 2 else 0 for t in range(8)]]
    alone = _request(variant, [0], [], weights=heavy, seed=11)
    _verify(student, [alone], [_answer(variant, [2], [0])], "the others have the weight 0")


def padded(student: Subject, variant: str) -> None:
    """Rows of padding are not used."""
    _, rows = _chain(variant, [7])
    made = _says(variant, [7, 2], [7])
    made["weights"] = [*made["weights"], _row(5), _row(5)]
    _verify(student, [made], [_answer(variant, [7, 2], rows)], "the row behind 7 says 2")


def ends(student: Subject, variant: str) -> None:
    """A stop or the last token it may say, whichever comes first."""
    _, rows = _chain(variant, [7, 5])

    def expect(said: int, end: str, because: str, **more: Any) -> None:
        made = _says(variant, [7, 5, 3], [7, 5], **more)
        _verify(student, [made], [_answer(variant, [7, 5, 3][:said], rows[:said], end)], because)

    expect(1, "stop", "7 is a stop, and nothing behind it is said", stops=[7])
    expect(2, "length", "it may say 2 tokens", left=2)
    expect(2, "stop", "the second of 2 tokens is a stop", left=2, stops=[5])
    expect(1, "length", "it may say 1 token; the stop would come later", left=1, stops=[5])


def not_yet(student: Subject, variant: str) -> None:
    """A stop is not chosen while fewer than `least` tokens have been said."""
    _, rows = _chain(variant, [0, 0])
    made = _says(variant, [7, 7, 7], [0, 0], stops=[7], least=2)
    if variant == "pair":
        made["drafts"] = [[0, 1], [0, 1]]
    why = "7 is a stop: not as first and second token, but as the third"
    _verify(student, [made], [_answer(variant, [0, 0, 7], rows, "stop")], why)


def rule(student: Subject, variant: str) -> None:
    """The rule of your variant."""
    if variant == "pair":
        made = _request(variant, [7, 6, 0, 0, 3], [[7, 4], [5, 6]])
        want = [_answer(variant, [7, 6, 3], [0, 1, 4])]
        _verify(student, [made], want, "7 is a first candidate, 6 a second one, then row 4")
        made = _request(variant, [4, 6, 5, 0, 3], [[7, 4], [5, 6]])
        want = [_answer(variant, [4, 5], [0, 2])]
        _verify(student, [made], want, "4 is a second candidate: one more token, from row 2")
        made = _request(variant, [4, 6, 5], [[4, 4]])
        _verify(student, [made], [_answer(variant, [4, 6], [0, 1])], "of equals it is the first")
    elif variant == "grammar":
        grammar = [[None] * 6 + [None, 1], [None] * 5 + [0, 2, None], [None] * 3 + [1] + [None] * 4]
        more = {"grammar": grammar, "state": 0}
        made = _request(variant, [7, 4, 4], [7, 4], **more)
        made["weights"][1][6] = 8
        want = [_answer(variant, [7, 6], [0, 1], state=2)]
        _verify(student, [made], want, "behind 7 only 5 and 6 are allowed, so the draft 4 is not")
        made = _request(variant, [7, 6, 0], [7, 5], **more)
        want = [_answer(variant, [7, 6], [0, 1], state=2)]
        _verify(student, [made], want, "the state is that behind what was said, not behind 7 5")
        made = _request(variant, [0, 6, 0], [7, 6], **more)
        want = [_answer(variant, [7, 6, 3], [0, 1, 2], state=1)]
        _verify(student, [made], want, "each row has one or two allowed tokens, the last row 3")
    else:
        first = _request(variant, [7, 4, 3], [7, 5], quota=3)
        second = _request(variant, [1, 2, 3], [1, 2], quota=3)
        want = [_answer(variant, [7, 4], [0, 1]), _answer(variant, [1, 2, 3], [0, 1, 2])]
        why = "at most `quota` drafts of a client: 7, 1 and 2 are 3; a wrong draft is free"
        _verify(student, [first, second], want, why)
        first = _request(variant, [7, 5, 3], [7, 5], quota=3)
        other = _request(variant, [1, 2, 3], [1, 2], quota=1, client="bob")
        want = [
            _answer(variant, [7, 5, 3], [0, 1, 2]), _answer(variant, [1, 2], [0, 1]),
            _answer(variant, [1, 2], [0, 1]),
        ]  # fmt: skip
        why = (
            "at most `quota` drafts of a client: ada keeps 7, 5 and 1, and her 2 is said, not kept;"
            " bob keeps 1"
        )
        _verify(student, [first, second, other], want, why)


# ---- ledger


def _planned(
    step: int, start: int, tokens: list[int], drafts: int, samples: bool = True
) -> list[Any]:
    return [step, start, tokens, drafts, samples]


def goes_back(student: Subject, variant: str) -> None:
    """What was computed for rejected drafts is taken back, and never published."""
    ledger = student.new("Ledger", 4, 20)
    ledger.expect("add", "a", [1, 2, 3, 4, 5, 6], want=None)
    ledger.expect("plan", "a", [7, 8], 9, want=_planned(1, 0, [1, 2, 3, 4, 5, 6, 7, 8], 2))
    ledger.expect("state", "a", want=[6, 0, 2])
    why = "block 1 would hold the rejected 8"
    ledger.expect("settle", 1, [7, 9], want=[[0, [1, 2, 3, 4]]], because=why)
    ledger.expect("state", "a", want=[8, 7, 0], because="7 of 8 known tokens are computed")
    ledger.expect("plan", "a", [], 9, want=_planned(2, 7, [9], 0))
    ledger.expect("settle", 2, [3], want=[[1, [5, 6, 7, 9]]])


def said_is_not_kept(student: Subject, variant: str) -> None:
    """The last token a step says is computed by the next one, a draft's value included."""
    ledger = student.new("Ledger", 2, 20)
    ledger.expect("add", "a", [1, 2, 3], want=None)
    ledger.expect("plan", "a", [4, 5], 9, want=_planned(1, 0, [1, 2, 3, 4, 5], 2))
    ledger.expect("settle", 1, [4], want=[[0, [1, 2]]], because="4 was chosen, no draft was kept")
    ledger.expect("state", "a", want=[4, 3, 0])


def in_parts(student: Subject, variant: str) -> None:
    """A step that does not reach the last known token has no drafts; the budget cuts them."""
    ledger = student.new("Ledger", 4, 20)
    ledger.expect("add", "a", [1, 2, 3, 4, 5], want=None)
    ledger.expect("plan", "a", [6, 7], 3, want=_planned(1, 0, [1, 2, 3], 0, False))
    ledger.expect("settle", 1, [], want=[])
    ledger.expect("state", "a", want=[5, 3, 0])
    want = _planned(2, 3, [4, 5, 6], 1)
    ledger.expect("plan", "a", [6, 7], 3, want=want, because="3 positions: 2 known, 1 draft")


def fits(student: Subject, variant: str) -> None:
    """With all drafts kept and one token more a request has at most `max_len` tokens."""
    ledger = student.new("Ledger", 4, 6)
    ledger.expect("add", "a", [1, 2, 3], want=None)
    why = "3 known, 2 drafts and 1 token behind them are 6"
    ledger.expect("plan", "a", [4, 5, 6], 9, want=_planned(1, 0, [1, 2, 3, 4, 5], 2), because=why)
    ledger.expect("settle", 1, [4, 5, 6], want=[[0, [1, 2, 3, 4]]])
    ledger.expect_error("ValueError", "plan", "a", [], 9, because="it has 6 tokens")


def draft_model(student: Subject, variant: str) -> None:
    """After full acceptance the draft model lacks two positions, else one."""
    ledger = student.new("Ledger", 4, 30)
    ledger.expect("add", "a", [1, 2, 3], want=None)
    ledger.expect("behind", "a", want=3)
    ledger.expect("plan", "a", [4, 5], 9, want=_planned(1, 0, [1, 2, 3, 4, 5], 2))
    ledger.expect("settle", 1, [4, 5, 6], want=[[0, [1, 2, 3, 4]]])
    ledger.expect("behind", "a", want=2, because="it computed up to 4, not its last draft 5")
    ledger.expect("plan", "a", [7, 8, 9], 9, want=_planned(2, 5, [6, 7, 8, 9], 3))
    ledger.expect("behind", "a", want=0, because="it computed the 6 known tokens, 7 and 8")
    ledger.expect("settle", 2, [7, 1], want=[])
    ledger.expect("behind", "a", want=1, because="7 was kept; 1 is new")
    ledger.expect("plan", "a", [5, 6, 7], 2, want=_planned(3, 7, [1, 5], 1))
    ledger.expect("settle", 3, [5, 6], want=[[1, [5, 6, 7, 1]]])
    why = "`plan` left the draft 6 out, so it was not kept, though 6 was said"
    ledger.expect("behind", "a", want=1, because=why)


def begins_anew(student: Subject, variant: str) -> None:
    """Who is preempted keeps its tokens alone; a step of its former life says nothing."""
    ledger = student.new("Ledger", 2, 20)
    ledger.expect("add", "a", [1, 2], want=None)
    ledger.expect("plan", "a", [3], 9, want=_planned(1, 0, [1, 2, 3], 1))
    ledger.expect("settle", 1, [3, 4], want=[[0, [1, 2]]])
    ledger.expect("plan", "a", [5], 9, want=_planned(2, 3, [4, 5], 1))
    ledger.expect("preempt", "a", want=None)
    ledger.expect("state", "a", want=[4, 0, 0])
    ledger.expect("behind", "a", want=4, because="the draft model begins anew, too")
    ledger.expect("plan", "a", [], 9, want=_planned(3, 0, [1, 2, 3, 4], 0))
    ledger.expect("settle", 2, [5, 6], want=[], because="a was preempted after step 2")
    ledger.expect_error("ValueError", "settle", 2, [5, 6], because="step 2 is settled by that")
    ledger.expect("settle", 3, [7], want=[[0, [1, 2]], [1, [3, 4]]], because="published anew")


def refuses(student: Subject, variant: str) -> None:
    """What cannot be is refused, and nothing changes."""
    ledger = student.new("Ledger", 4, 20)
    ledger.expect_error("ValueError", "state", "a")
    ledger.expect("add", "a", [1, 2], want=None)
    ledger.expect_error("ValueError", "add", "a", [3])
    ledger.expect("plan", "a", [3, 4], 9, want=_planned(1, 0, [1, 2, 3, 4], 2))
    ledger.expect_error("ValueError", "plan", "a", [], 9, because="step 1 is in flight")
    ledger.expect_error("ValueError", "settle", 1, [], because="a step that samples says a token")
    ledger.expect_error("ValueError", "settle", 1, [4, 5], because="the first draft was 3")
    ledger.expect_error("ValueError", "settle", 1, [3, 4, 5, 6], because="one token too many")
    ledger.expect_error("ValueError", "settle", 2, [3])
    ledger.expect("settle", 1, [3, 9], want=[])
    ledger.expect_error("ValueError", "settle", 1, [3, 9], because="it is settled")
    why = "plans that were refused have no number"
    ledger.expect("plan", "a", [], 9, want=_planned(2, 3, [9], 0), because=why)
    ledger.expect("end", "a", want=None)
    ledger.expect_error("ValueError", "preempt", "a")


# ---- plan


def _record(variant: str, drafted: int, kept: int) -> list[Any]:
    return [drafted, [0] * kept] if variant == "pair" else [drafted, kept]


def _wish(variant: str, most: int, *records: tuple[int, int], **more: Any) -> dict[str, Any]:
    fields = {"most": most, "history": [_record(variant, *one) for one in records]}
    if variant == "grammar":
        fields["forced"] = more.get("forced", [])
    elif variant == "quota":
        fields |= {"client": more.get("client", "ada"), "quota": more.get("quota", 9)}
    return fields


def _plan(
    student: Subject, variant: str, costs: list[int], requests: list[dict[str, Any]],
    want: list[int], because: str, recent: int = 9,
) -> None:  # fmt: skip
    """Expect so many drafts a request, in the variant pair all of rank 0."""
    said: list[Any] = want
    if variant == "pair":
        said = [[[0] * (length + 1) for length in range(count)] for count in want]
    student.expect("plan", costs, requests, recent, want=said, because=because)


def judged(student: Subject, variant: str) -> None:
    """A place behind a wrong draft, or one that was not drafted, was not judged."""
    wish = _wish(variant, 2, (2, 0), (2, 0), (2, 0), *[(2, 2)] * 6, *[(1, 1)] * 9)
    if variant == "pair":
        why = "[0] has (15 + 1) / (18 + 3), [0, 0] 16/21 · 7/9"
        _plan(student, variant, [0, 100, 105, 134], [wish], [2], why, recent=99)
        why = "the record before the last 9 do not count: [0] has 10/12, [0, 0] 10/12 · 1/3"
        _plan(student, variant, [0, 100, 105, 134], [wish], [1], why)
    else:
        why = "place 0 has 16/20; place 1 was judged 6 times and kept 6 times, so it has 7/8"
        _plan(student, variant, [0, 100, 105, 140], [wish], [2], why, recent=99)
        why = "of the last 9 records none judged place 1: its chance is 1/2"
        _plan(student, variant, [0, 100, 105, 140], [wish], [1], why)


def table(student: Subject, variant: str) -> None:
    """The table's request."""
    if variant == "pair":
        wish = {"most": 2, "history": [[2, [0, 0]], [2, [1]], [1, [0]]]}
        costs = [0, 10, 11, 12, 20]
        student.expect("plan", costs, [wish], 9, want=[[[0], [1]]], because="the table's request")
        student.expect("plan", [0, 10, 11, 12, 13], [wish], 9, want=[[[0], [1], [0, 0]]])
        why = "[0, 0] is worth 3/6 · 2/5"
        student.expect("plan", [0, 10, 11, 12, 14], [wish], 9, want=[[[0], [1]]], because=why)
    else:
        wish = _wish(variant, 3, (3, 3), (3, 1), (2, 2), (3, 0))
        _plan(student, variant, [0, 10, 11, 12, 20], [wish], [2], "the table's request")
        _plan(student, variant, [0, 10, 11, 12], [wish], [2], "there is no time for 4 rows")
        _unchanged(student, "plan", [0, 10, 11, 12], [wish], 2)
        _plan(student, variant, [0, 10, 11, 12, 14], [wish], [2], "the third is worth 4/15")
        _plan(student, variant, [0, 100, 165], [wish], [1], "the first is worth 4/6")
        _plan(student, variant, [0, 10, 18, 18, 18], [wish], [3], "only the first row is dear")


def compete(student: Subject, variant: str) -> None:
    """The drafts of all requests compete; equal ones go to the request listed first."""
    bad, good = _wish(variant, 2, *[(2, 0)] * 4), _wish(variant, 2, *[(2, 2)] * 9)
    why = "both drafts of the second are worth more than the first of the first"
    _plan(student, variant, [0, 10, 10, 10, 10, 20, 30], [bad, good], [0, 2], why)
    if variant == "pair":
        same = [good | {"most": 1}, good | {"most": 1}]
    else:
        same = [_wish(variant, 1), _wish(variant, 1)]
    one = _wish(variant, 1, *[(2, 2)] * 9)
    if variant == "pair":
        _plan(student, variant, [0, 10, 10], [one], [1], "`most` is 1")
    else:
        _plan(student, variant, [0, 10, 10, 10, 10], [one], [1], "`most` is 1")
    why = "one draft pays, and the first request gets it"
    _plan(student, variant, [0, 10, 10, 10, 90, 90, 90], same, [1, 0], why)
    _plan(student, variant, [0, 10, 10], same, [0, 0], "there is no time for a third row")
    if variant == "pair":
        _plan(student, variant, [0, 6, 8], [{"most": 1, "history": []}], [0], "(4/3) / 8 = 1/6")
    else:
        _plan(student, variant, [0, 6, 9], [_wish(variant, 1)], [0], "(3/2) / 9 is 1/6, too")


def rule_of_plan(student: Subject, variant: str) -> None:
    """The rule of your variant."""
    if variant == "pair":
        wish = {"most": 2, "history": []}
        want = [[[0], [1], [0, 0], [0, 1], [1, 0]]]
        why = "chances of 1/3 and values of 1/9: the shorter name first, then the smaller ranks"
        student.expect("plan", [0, *range(20, 26)], [wish], 9, want=want, because=why)
    elif variant == "grammar":
        wish = _wish(variant, 3, forced=[0, 2])
        why = "a forced place has the chance 1, so the values are 1, 1/2 and 1/2"
        _plan(student, variant, [0, 10, 15, 20, 22], [wish], [3], why)
        _plan(student, variant, [0, 10, 15, 20, 25], [wish], [1], why)
        sure = _wish(variant, 1, forced=[0])
        why = "a forced draft has the chance 1, and its price as any other"
        _plan(student, variant, [0, 10, 30], [sure], [0], why)
    else:
        wishes = [_wish(variant, 2, client=c, quota=q) for c, q in (("a", 1), ("a", 1), ("b", 2))]
        why = "at most `quota` drafts of a client: a has one in all, b two"
        _plan(student, variant, [0, *range(50, 60)], wishes, [1, 0, 2], why)
        good = [(2, 2)] * 9
        wishes = [_wish(variant, 2, *good, quota=1), _wish(variant, 1, client="b")]
        why = "a's second draft is over its quota, so the second of two drafts is b's"
        _plan(student, variant, [0, 50, 50, 50, 50], wishes, [1, 1], why)


# ---- engine


def trials(student: Subject, variant: str) -> None:
    """As many drafts as trials were right, of k."""
    text = [1, 2, 1, 2, 1]
    why = "of 3 trials 2 are right: 1 2 1 2 and 1 2 1 go on as they do, 1 2 has no place"
    student.expect("draft", [text], 2, 1, 0, 3, 3, want=[[2, 1]], because=why)
    student.expect("draft", [text], 2, 1, 0, 2, 2, want=[[2, 1]], because="both trials are right")
    why = "the first trial is wrong, the second right: 1 2 1 2 goes on with 1"
    student.expect("draft", [[1, 2, 1, 2, 1, 1]], 2, 1, 0, 4, 2, want=[[2, 1]], because=why)
    why = "1.5 of the drafts are 1, and the second text has no right trial"
    student.expect("draft", [text, [1, 2, 1, 3, 1]], 2, 1, 0, 3, 4, want=[[2], []], because=why)
    why = "1 3 2 1 goes on with 3, not with 2; that 2 comes later in its drafts does not count"
    student.expect("draft", [[1, 3, 2, 1, 2]], 2, 1, 0, 3, 2, want=[[]], because=why)
    student.expect("draft", [], 2, 1, 0, 3, 4, want=[])


def counts(student: Subject, variant: str) -> None:
    """The table of the text."""
    records = [[[7, 5, 6], [7, 9]], [[7, 5], [7, 5, 3]], [[7, 0, 4], [7, 0]], [[], [8]]]
    want = {
        "records": 4, "tokens": 8, "drafted": [3, 3, 2], "judged": [3, 3, 0], "kept": [3, 2, 0],
    }  # fmt: skip
    student.expect("tally", records, want=want)
    want = {"records": 0, "tokens": 0, "drafted": [], "judged": [], "kept": []}
    student.expect("tally", [], want=want)


CHECKS = {
    "propose": [votes, backs_off, goes_on, separated],
    "verify": [kept, raced, padded, ends, not_yet, rule],
    "ledger": [goes_back, said_is_not_kept, in_parts, fits, draft_model, begins_anew, refuses],
    "plan": [table, judged, compete, rule_of_plan],
    "engine": [trials, counts],
}
