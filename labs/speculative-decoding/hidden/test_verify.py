"""Hidden tests of `verify`, beside an oracle."""

from __future__ import annotations

import copy
import functools
import random

from hypothesis import example, given
from hypothesis import strategies as st

from .verify_oracle import choose, race, rows_behind, state_behind, verify

VOCAB = 6
FREE = [list(range(VOCAB)) for _ in range(VOCAB)]  # a grammar that allows everything
NUMBERS = st.integers(0, 10_000)


def request(variant, rng, drafts, **more):
    """One request with random rows; `drafts` are tokens, of two candidates in the variant pair."""
    rows = 1 + len(drafts) * (2 if variant == "pair" else 1) + more.pop("padding", 0)
    fields = {
        "seed": rng.randrange(1000), "position": rng.randrange(50),
        "weights": [[rng.choice((1, 2, 5, 9)) for _ in range(VOCAB)] for _ in range(rows)],
        "drafts": drafts, "left": 50, "stops": [], "least": 0,
    }  # fmt: skip
    if variant == "grammar":
        fields |= {"grammar": FREE, "state": 0}
    elif variant == "quota":
        fields |= {"client": "ada", "quota": 50}
    return fields | more


def drafted(variant, rng, number):
    """Drafts that anything may stand in."""
    if variant == "pair":
        return [[rng.randrange(VOCAB), rng.randrange(VOCAB)] for _ in range(number)]
    return [rng.randrange(VOCAB) for _ in range(number)]


def hit(variant, rng, made, number, rank=lambda place: 0):
    """Put what the rows will choose into the first `number` drafts, at the rank of each place.

    A right second candidate ends the chain; drafts behind it stay as they are.
    """
    made = copy.deepcopy(made)
    said = []
    for place in range(min(number, len(made["drafts"]))):
        row = rows_behind(variant, made["drafts"])[tuple(said)]
        token = choose(variant, made, row, said)
        if variant != "pair":
            made["drafts"][place] = token
        else:
            other = (token + 1 + rng.randrange(VOCAB - 1)) % VOCAB
            made["drafts"][place] = [token, other] if rank(place) == 0 else [other, token]
            if rank(place) == 1:
                break
        said.append(token)
    return made


def _said(requests):
    """The call in words: of each request all that decides, its rows last."""
    parts = []
    for made in requests:
        shown = {key: value for key, value in made.items() if key not in ("weights", "grammar")}
        if made.get("grammar", FREE) != FREE:
            shown["grammar"] = made["grammar"]
        shown["weights"] = made["weights"]
        parts.append(", ".join(f"{key} {value}" for key, value in shown.items()))
    return "verify of " + ("; and ".join(parts) or "no requests")


def _judge(student, variant, *requests, because=""):
    want = verify(variant, list(requests))
    said = functools.partial(_said, requests)
    student.expect("verify", list(requests), want=want, because=because, said=said)


@given(number=NUMBERS)
def test_race(student, variant, number):
    """Without drafts each request says one token, that of the smallest noise over weight."""
    rng = random.Random(number)
    requests = [request(variant, rng, []) for _ in range(4)]
    for made in requests[1:]:
        made["weights"][0] = [w * rng.choice((0, 0.01, 1, 100)) for w in made["weights"][0]]
        made["weights"][0][rng.randrange(VOCAB)] += 0.5
    _judge(student, variant, *requests)


def _row_of_model(model, known):
    """A model: the weights behind the known tokens."""
    rng = random.Random(f"{model} {known[-2:]}")
    return [rng.choice((0, 1, 1, 2, 30)) for _ in range(VOCAB - 1)] + [1]


@given(number=NUMBERS, right=st.integers(0, 4))
@example(number=1, right=4)
@example(number=2, right=3)
def test_as_without_drafts(student, variant, number, right):
    """Step after step with drafts says what single steps say, whatever was drafted."""
    rng = random.Random(number)
    seed, start, length = rng.randrange(1000), rng.randrange(40), 12
    plain = []
    while len(plain) < length:
        weights = _row_of_model(number, plain)
        plain.append(race(weights, set(range(VOCAB)), seed, start + len(plain)))
    said = []
    while len(said) < length:
        drafts = drafted(variant, rng, rng.randrange(5))
        for i, token in enumerate(plain[len(said) : len(said) + min(right, len(drafts))]):
            if variant == "pair":
                drafts[i][i % 3 == 2] = token
            else:
                drafts[i] = token
        ways = sorted(rows_behind(variant, drafts).items(), key=lambda item: item[1])
        made = request(
            variant, rng, drafts, seed=seed, position=start + len(said), left=length - len(said)
        )
        for way, row in ways:
            made["weights"][row] = _row_of_model(number, [*said, *way])
        want = verify(variant, [made])
        student.expect("verify", [made], want=want)
        said += want[0]["tokens"]
    student.compare("verify, step after step", said, plain)


@given(number=NUMBERS, drafts=st.integers(1, 4))
def test_token_behind_the_last(student, variant, number, drafts):
    """If all drafts are right, one more token is said, and at its own position."""
    rng = random.Random(number)
    made = hit(variant, rng, request(variant, rng, drafted(variant, rng, drafts)), drafts)
    _judge(student, variant, made, because="all drafts are right, and the last row says one more")
    if variant == "pair":
        last = drafts - 1
        made = hit(variant, rng, made, drafts, lambda place: int(place == last))
        _judge(student, variant, made, because="the last place's second candidate is right")


@given(number=NUMBERS, sizes=st.lists(st.integers(0, 3), min_size=2, max_size=4))
@example(number=0, sizes=[3, 0, 1])
def test_rows_of_padding(student, variant, number, sizes):
    """A request with fewer drafts than others does not use the last rows."""
    rng = random.Random(number)
    each = 2 if variant == "pair" else 1
    requests = []
    for size in sizes:
        padding = each * (max(sizes) - size)
        made = request(variant, rng, drafted(variant, rng, size), padding=padding)
        requests.append(hit(variant, rng, made, size))
    _judge(student, variant, *requests, because="all drafts are right")


@given(number=NUMBERS, size=st.integers(0, 3))
def test_largest_weight(student, variant, number, size):
    """Without a seed the largest weight, of equal ones the smallest token."""
    rng = random.Random(number)
    made = request(variant, rng, drafted(variant, rng, size), seed=None)
    _judge(student, variant, made)
    _judge(student, variant, hit(variant, rng, made, size))


@given(number=NUMBERS, size=st.integers(1, 4), stop=st.integers(0, VOCAB - 1))
def test_stops(student, variant, number, size, stop):
    """A stop among the kept drafts is the last token said."""
    rng = random.Random(number)
    made = hit(variant, rng, request(variant, rng, drafted(variant, rng, size)), size)
    chosen = verify(variant, [made])[0]["tokens"]
    for place, token in enumerate(chosen):
        stops = [stop, token] if place % 2 else [token]
        _judge(student, variant, made | {"stops": stops}, because=f"{token} is a stop")


@given(number=NUMBERS, size=st.integers(1, 4))
def test_earliest_end(student, variant, number, size):
    """The bound on tokens and a stop, whichever comes first; both at once is a stop."""
    rng = random.Random(number)
    made = hit(variant, rng, request(variant, rng, drafted(variant, rng, size)), size)
    chosen = verify(variant, [made])[0]["tokens"]
    for left in range(1, len(chosen) + 2):
        _judge(student, variant, made | {"left": left}, because=f"it may say {left} more")
        for place in (left - 2, left - 1, left):
            if 0 <= place < len(chosen):
                _judge(student, variant, made | {"left": left, "stops": [chosen[place]]})


@given(number=NUMBERS, size=st.integers(0, 4), least=st.integers(0, 5))
@example(number=3, size=3, least=1)
@example(number=3, size=3, least=2)
@example(number=3, size=3, least=3)
def test_least(student, variant, number, size, least):
    """Stops are out of the race until enough was said, row by row."""
    rng = random.Random(number)
    stops = rng.sample(range(VOCAB), 2)
    made = request(variant, rng, drafted(variant, rng, size), stops=stops, least=least)
    for row in made["weights"]:
        row[stops[0]] = 60  # so that it is chosen as soon as it may be
    _judge(student, variant, made)
    _judge(student, variant, hit(variant, rng, made, size))
    _judge(student, variant, hit(variant, rng, made | {"seed": None}, size))


def _grammar(rng):
    """Three states; each allows two to four tokens."""
    states = []
    for _ in range(3):
        allowed = rng.sample(range(VOCAB), rng.randint(2, 4))
        states.append([rng.randrange(3) if t in allowed else None for t in range(VOCAB)])
    return states


def _masked(rng, size, right, **more):
    grammar, state = _grammar(rng), rng.randrange(3)
    fields = {"grammar": grammar, "state": state}
    made = request("grammar", rng, drafted("grammar", rng, size), **fields, **more)
    return hit("grammar", rng, made, right)


@given(number=NUMBERS, sizes=st.lists(st.integers(0, 4), min_size=2, max_size=4))
@example(number=5, sizes=[3, 3])
@example(number=6, sizes=[4, 0, 4])
def test_rule_of_the_variant(student, variant, number, sizes):
    """Two candidates, a grammar, or a quota."""
    rng = random.Random(number)
    if variant == "pair":
        made = [request(variant, rng, drafted(variant, rng, size)) for size in sizes]
        ends = [rng.randrange(size + 1) for size in sizes]
        requests = [
            hit(variant, rng, one, size, lambda place, end=end: int(place == end))
            for one, size, end in zip(made, sizes, ends, strict=True)
        ]
        token = verify(variant, [request(variant, rng, [], seed=1, position=2)])[0]["tokens"][0]
        twice = request(variant, rng, [[token, token], [0, 1]], seed=1, position=2)
        _judge(student, variant, *requests, twice)
    elif variant == "grammar":
        requests = [_masked(rng, size, rng.randrange(size + 1)) for size in sizes]
        _judge(student, variant, *requests)
        made = _masked(rng, 3, 3)
        _judge(student, variant, made, because="all drafts are right, and the last row is masked")
        state = state_behind(made, made["drafts"][:1])
        bad = next(t for t, after in enumerate(made["grammar"][state]) if after is None)
        made["drafts"][1] = bad
        _judge(student, variant, made, because=f"{bad} is forbidden behind the first draft")
        stop = next(t for t, after in enumerate(made["grammar"][made["state"]]) if after is None)
        made["weights"][0][stop] = 60
        _judge(student, variant, made | {"stops": [stop]}, because=f"{stop} is a forbidden stop")
    else:
        for quota in range(4):
            requests = []
            for i, size in enumerate(sizes):
                one = request(
                    variant, rng, drafted(variant, rng, size), client="ab"[i % 2],
                    quota=quota if i % 2 == 0 else 2,
                )  # fmt: skip
                requests.append(hit(variant, rng, one, rng.choice((size, size, size // 2))))
            _judge(student, variant, *requests, because=f"the quota of a is {quota}, of b 2")
        ends = hit(variant, rng, request(variant, rng, [0, 0], quota=1), 2)
        again = hit(variant, rng, request(variant, rng, [0, 0], quota=1), 2)
        _judge(student, variant, ends | {"left": 1}, again)
        _judge(student, variant, ends | {"stops": ends["drafts"][:1]}, again)


@given(number=NUMBERS, sizes=st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_any_step(student, variant, number, sizes):
    """Any step; no request changes another's tokens, and none is changed."""
    rng = random.Random(number)
    requests = []
    for i, size in enumerate(sizes):
        more = {
            "left": rng.randint(1, 5), "stops": rng.sample(range(VOCAB), rng.randrange(2)),
            "least": rng.randrange(3), "padding": 2 * rng.randrange(2),
        }  # fmt: skip
        if rng.random() < 0.3:
            more["seed"] = None
        if variant == "grammar":
            made = _masked(rng, size, 0, **more | {"stops": [], "least": 0})
        else:
            made = request(variant, rng, drafted(variant, rng, size), **more)
        if variant == "quota":
            made |= {"client": "ab"[i % 2], "quota": 1 + number % 3}
        requests.append(hit(variant, rng, made, rng.randrange(size + 1)))
    student.expect_pure("verify", requests, want=verify(variant, requests))
    _judge(student, variant)
