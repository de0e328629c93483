"""Hidden tests of `block_names`: names are equal exactly where keys and values are."""

from __future__ import annotations

import json
import random
import struct

from hypothesis import example, given
from hypothesis import strategies as st

TOKENS = st.lists(st.integers(0, 3), max_size=14)
SIZES = st.integers(1, 4)
LENGTHS = {"cat": 3, "dog": 3, "map": 5}  # of the images, in tokens


def depends_on(tokens, block_size, salt, images):
    """What the keys and values of each full block depend on."""
    parts = {}
    for start, end, digest in images:
        parts |= {p: (digest, p - start) for p in range(start, end)}
    return [
        (tuple((tokens[p], parts.get(p)) for p in range(end)), salt)
        for end in range(block_size, len(tokens) + 1, block_size)
    ]


def _names(student, tokens, block_size, salt, images, least=1):
    got = student.call("block_names", tokens, block_size, salt, images)
    call = f"block_names({tokens}, {block_size}, {salt!r}, {images})"
    count = len(tokens) // block_size
    if type(got) is not list or len(got) != count:
        student.fail(f"called {call}\nexpected {count} names\ngot {str(got)[:200]}")
    if not all(type(name) is bytes and least <= len(name) <= 64 for name in got):
        student.fail(f"called {call}\nexpected names of 16 to 64 bytes\ngot {str(got)[:200]}")
    return got


def _judge(student, *prompts):
    """Compare all names of some prompts, each with each."""
    found = []
    for tokens, block_size, salt, images in prompts:
        names = _names(student, tokens, block_size, salt, images)
        reasons = depends_on(tokens, block_size, salt, images)
        call = f"block_names({tokens}, {block_size}, {salt!r}, {images})"
        found += [
            (f"{call}[{i}]", n, r) for i, (n, r) in enumerate(zip(names, reasons, strict=True))
        ]
    for i, (call, name, reason) in enumerate(found):
        for other_call, other_name, other_reason in found[:i]:
            want = "equal" if reason == other_reason else "different"
            if (name == other_name) is not (reason == other_reason):
                student.fail(
                    f"called {other_call}\nand {call}\nexpected {want} names\n"
                    f"got {other_name.hex()[:12]}… and {name.hex()[:12]}…"
                )


@given(tokens=TOKENS, block_size=SIZES)
def test_full_blocks(student, variant, tokens, block_size):
    """One name for each full block, none for the rest; each of 16 to 64 bytes."""
    _names(student, tokens, block_size, "", [], least=16)
    _names(student, tokens * 3, block_size, "salt", [], least=16)


@given(tokens=TOKENS, at=st.integers(0, 13), more=TOKENS, block_size=SIZES)
@example(tokens=[1, 2, 1, 2, 1, 2], at=4, more=[0], block_size=2)  # equal tokens, other parents
def test_tokens_and_what_precedes_them(student, variant, tokens, at, more, block_size):
    """All tokens up to a block's end count, and none behind it."""
    changed = tokens[:at] + more
    _judge(student, (tokens, block_size, "", []), (changed, block_size, "", []))
    wide = [t * 111 + 1 for t in tokens]  # 1, 112, 223, 334: digits run into one another
    split = [d for t in wide for d in map(int, str(t))]
    _judge(student, (wide, block_size, "", []), (split, block_size, "", []))


def test_nothing_runs_together(student, variant, seed):
    """Large and negative token ids, one token and two, salts, digests and what stands beside."""
    rng = random.Random(seed)
    big = [rng.randrange(100_000, 150_000) for _ in range(4)]
    _judge(
        student, (big, 2, "", []), ([t + 256 for t in big], 2, "", []),
        ([t + 65_536 for t in big], 2, "", []), ([-1, -2, -1, -1], 2, "", []),
        ([-2, -1, -1, -1], 2, "", []), ([-2, -2, -2, -1], 2, "", []), ([1, 2, 2, 1], 2, "", []),
        ([1, 23, 4, 56], 2, "", []), ([12, 3, 45, 6], 2, "", []), ([1, 2, 3, 4], 2, "", []),
    )  # fmt: skip
    # As numbers to a base, forwards or backwards, the two of a pair are the same.
    for base in (31, 33, 131, 256, 257, 1000, 65_536, 65_599, 1_000_003):
        pairs = ([1, base], [2, 0], [base, 1], [0, 2])
        _judge(student, *((tokens, 2, "", []) for tokens in pairs))
    _judge(student, *((tokens, 2, salt, []) for salt, tokens in _salted(1 + rng.randrange(8))))
    long = "".join(rng.choices("0123456789abcdef", k=70))  # alike but for the last, or the first
    salts = [long + "0", long + "1", "0" + long, "1" + long]
    _judge(student, *(([1, 2, 3, 4], 2, salt, []) for salt in salts))
    _judge(student, *(([7] * 4, 2, "", [[0, 4, digest]]) for digest in salts))
    part = 1 + rng.randrange(8)  # of the image "a1", and part 10 + part of the image "a"
    _judge(
        student, ([7] * 20, 1, "", [[0, 20, "a"]]), ([7] * 20, 1, "", [[0, 20, "a1"]]),
        ([7] * 20, 1, "", [[0, 20, f"a{part}"]]), ([7] * 20, 1, f"a{part}", []),
    )  # fmt: skip


def _salted(digit):
    """Salts that look like what a solution may write for the tokens that come next."""
    first, rest = [digit, 2], [3, 4]
    yield "", [*first, *rest]
    yield "", [10 * digit + 3, 4]
    for border in ("", ",", ", ", " ", "|", ":", "-", "/", "\n", "\0"):
        written = border.join(map(str, first))
        yield from ((salt, rest) for salt in {written, written + border, str(digit) + border})
    for written in (str(first), f"{first},", str(tuple(first)), json.dumps(first).replace(" ", "")):
        yield written, rest
    for layout in ("<2i", "<2q", ">2i", ">2q", "<2h", "2B"):
        yield struct.pack(layout, *first).decode(), rest


@given(tokens=TOKENS, one=st.sampled_from(["", "a", "1"]), other=st.sampled_from(["", "a", "0"]))
def test_salt(student, variant, tokens, one, other):
    """Prompts under two salts share nothing, at any depth."""
    images = []
    if len(tokens) > 3:
        tokens, images = [tokens[0], 7, 7, 7, *tokens[4:]], [[1, 4, "cat"]]
    _judge(
        student, (tokens, 2, one, images), (tokens, 2, other, images), (tokens * 2, 2, one, images)
    )


@st.composite
def prompts_with_images(draw):
    """A prompt of one placeholder token and its images, in order."""
    length = draw(st.integers(2, 14))
    images, at = [], 0
    while at < length:
        digest = draw(st.sampled_from([None, "cat", "dog", "map"]))
        if digest is None:
            at += 1
            continue
        end = at + LENGTHS[digest]
        if end <= length:
            images.append([at, end, digest])
        at = end
    return [7] * length, images


@given(one=prompts_with_images(), other=prompts_with_images(), block_size=SIZES)
@example(one=([7] * 8, [[0, 3, "cat"]]), other=([7] * 8, [[0, 3, "dog"]]), block_size=2)
@example(one=([7] * 8, [[1, 4, "cat"]]), other=([7] * 8, [[2, 5, "cat"]]), block_size=4)
@example(one=([7] * 8, [[0, 3, "cat"]]), other=([7] * 8, [[1, 4, "cat"]]), block_size=4)
@example(
    one=([7] * 8, [[0, 3, "cat"], [3, 6, "dog"]]), other=([7] * 8, [[0, 3, "cat"]]), block_size=3
)
def test_images(student, variant, one, other, block_size):
    """Equal placeholders, other pictures or other places: other names."""
    _judge(student, (one[0], block_size, "", one[1]), (other[0], block_size, "", other[1]))


@given(block_size=st.integers(2, 4), at=st.integers(0, 6), digest=st.sampled_from(list(LENGTHS)))
def test_what_comes_later(student, variant, block_size, at, digest):
    """A later image, and the rest of one that is cut, change nothing before them."""
    end = at + LENGTHS[digest]
    tokens = [7] * 16
    image, later = [at, end, digest], [12, 15, "cat"]
    other = "dog" if digest != "dog" else "cat"
    _judge(
        student, (tokens, block_size, "", [image]), (tokens, block_size, "", [image, later]),
        *((tokens[:length], block_size, "", [image]) for length in range(at + 1, end + 1)),
        (tokens, block_size, "", [later]),
        (tokens, block_size, "", []), (tokens, block_size, "", [[at, at + LENGTHS[other], other]]),
    )  # fmt: skip
