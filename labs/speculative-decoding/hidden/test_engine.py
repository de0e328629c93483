"""Hidden tests of `draft` and `tally`, beside oracles and in quire."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from .engine_oracle import draft, tally
from .in_quire import LONGEST, SEPARATOR, SHORTEST, TRIALS, K, plain_tokens, run

TEXT = st.lists(st.integers(1, 2), min_size=1, max_size=14)


def _judge(student, texts, k, trials, longest=2):
    args = (texts, longest, 1, 0, k, trials)
    student.expect("draft", *args, want=draft(*args))


@given(text=TEXT, trials=st.integers(1, 5))
@example(text=[1, 2, 1, 2, 1, 2, 1], trials=3)
@example(text=[1, 1], trials=3)
@example(text=[1], trials=1)
@example(text=[1, 2, 1, 1, 2, 2, 1, 2, 1], trials=4)
def test_trials(student, variant, text, trials):
    """Each trial knows only what stood before it; one draft of it is compared."""
    _judge(student, [text], 2 * trials, trials)


@given(texts=st.lists(TEXT, max_size=3), k=st.integers(0, 7), trials=st.integers(1, 5))
@example(texts=[[1, 2, 1, 2, 1, 2, 1, 1], [1, 2] * 6], k=3, trials=4)
@example(texts=[[1, 2] * 6], k=5, trials=2)
def test_share_of_k(student, variant, texts, k, trials):
    """Half of the trials right is half of the drafts, rounded down; each text for itself."""
    _judge(student, texts, k, trials)


def _records(rng_numbers):
    records = []
    for number in rng_numbers:
        drafts = [(number >> 2 * i) % 4 for i in range(number % 5)]
        kept = number // 7 % (len(drafts) + 1)
        last = number // 11 % 4
        if kept < len(drafts) and last == drafts[kept]:
            last = (last + 1) % 4
        records.append([drafts, [*drafts[:kept], last]])
    return records


NUMBERS = st.lists(st.integers(0, 4000), max_size=7)


@given(numbers=NUMBERS)
@example(numbers=[])
@example(numbers=[5, 10, 15])
def test_counts(student, variant, numbers):
    """Drafted, judged and kept by place."""
    records = _records(numbers)
    student.expect("tally", records, want=tally(records))
    student.expect("tally", [*records, [[], [3]]], want=tally([*records, [[], [3]]]))


@given(numbers=NUMBERS, cut=st.integers(0, 4))
@example(numbers=[3999], cut=1)
def test_behind_the_end(student, variant, numbers, cut):
    """An end cuts what is said: the last token may be a kept draft, and those behind are not."""
    records = [
        [drafts, said[: i % (cut + 1)]] for i, (drafts, said) in enumerate(_records(numbers))
    ]
    records += [[[4, 5, 6], [4, 5]], [[4, 5, 6], [4]], [[4, 5], []]]
    student.expect_pure("tally", records, want=tally(records))


def _served(student, seed):
    def ask(texts, k):
        args = (texts, LONGEST, SHORTEST, SEPARATOR, k, TRIALS)
        want = draft(*args)
        student.expect("draft", *args, want=want)
        return want

    student.compare("quire-mini-draft with your drafts", run(ask, seed), plain_tokens(seed))


def test_tokens_in_quire(student, variant, seed):
    """Your `draft` after each step of quire."""
    _served(student, seed)
    student.call("draft", [[1, 2, 1]], 2, 1, 0, K, TRIALS)


def test_whole_notebook(student, variant, seed):
    """Your own `propose` and `draft` after each step of quire."""
    _served(student, seed)
