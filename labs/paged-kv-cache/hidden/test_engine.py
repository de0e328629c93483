"""Hidden tests of `Cache`: beside an oracle, by hand and inside quire."""

from __future__ import annotations

import functools

from hypothesis import example, given
from hypothesis import strategies as st

from .cache_oracle import CacheOracle
from .driving import Pair
from .in_quire import HEADER, WithCache, run

MANY = 100


def _cache(student, num_blocks, block_size, quota=MANY):
    oracle = CacheOracle(num_blocks, block_size, quota)
    return Pair(student, oracle, "Cache", num_blocks, block_size, quota)


def _served(cache, request, tokens, salt="", images=(), client="ada", computed=None, free=True):
    """One request from its beginning to its end; return how many tokens were found."""
    hits = cache.call("match_prefix", request, tokens, salt, list(images), client)
    if cache.call("reserve", request, hits, len(tokens) - hits) is not None:
        cache.call("commit", request, tokens, len(tokens) if computed is None else computed)
    cache.call("table", request)
    if free:
        cache.call("free", request)
    cache.call("num_free")
    return hits


@given(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=14), block_size=st.integers(1, 4))
@example(tokens=[1] * 8, block_size=4)
def test_one_token_is_left(student, variant, tokens, block_size):
    """A prompt that is cached whole still leaves a token to compute."""
    cache = _cache(student, 40, block_size)
    for request in ("a", "b", "c"):
        _served(cache, request, tokens)


PROMPT = st.lists(st.integers(0, 1), min_size=1, max_size=11)


@given(prompts=st.lists(PROMPT, min_size=1, max_size=6), free=st.booleans())
@example(prompts=[[0, 0, 1, 1, 0], [0, 0, 1, 0, 0], [1, 1, 1, 1, 0]], free=True)
def test_the_longest_chain(student, variant, prompts, free):
    """Of all that is cached, the blocks that a prompt begins with, and no others."""
    cache = _cache(student, 60, 2)
    for i, tokens in enumerate(prompts):
        _served(cache, f"r{i}", tokens, free=free)


def test_a_gap_ends_the_chain(student, variant):
    """A block whose beginning is gone is not used, though it is there."""
    cache = _cache(student, 12, 2, quota=1)
    _served(cache, "a", [1, 2, 9], client="ada")
    _served(cache, "b", [1, 2, 3, 4, 9], client="bob")
    _served(cache, "c", [8, 8, 9], client="ada", free=False)
    for request in ("d", "e"):
        _served(cache, request, [8, 8, 9], client="ada")
    cache.call("free", "c")  # used more often than [1, 2], which goes: ada's quota is 1
    _served(cache, "f", [1, 2, 3, 4, 9], client="cyd")


@st.composite
def with_images(draw):
    """Placeholders and images of 1 to 6 tokens, some side by side."""
    images, at = [], draw(st.integers(0, 3))
    while len(images) < 3 and at < 12:
        length = draw(st.integers(1, 6))
        images.append([at, at + length, f"image of {length}"])
        at += length + draw(st.integers(0, 1))
    return [7] * (at + draw(st.integers(0, 3)) + 1), images


@given(prompt=with_images(), cut=st.integers(1, 16), block_size=st.integers(1, 4))
@example(prompt=([7] * 13, [[2, 5, "a"], [5, 12, "b"]]), cut=8, block_size=4)
@example(prompt=([7] * 9, [[4, 8, "a"]]), cut=8, block_size=4)
@example(prompt=([7] * 13, [[6, 12, "a"]]), cut=8, block_size=4)
def test_no_image_is_cut(student, variant, prompt, cut, block_size):
    """The part of a prompt that is cached ends anywhere, a match only outside images."""
    tokens, images = prompt
    cache = _cache(student, 60, block_size)
    _served(cache, "a", tokens, images=images, computed=min(cut, len(tokens)))
    for request in ("b", "c"):
        _served(cache, request, tokens, images=images)
    _served(cache, "d", tokens, images=[[s, e, "other " + d] for s, e, d in images])


def test_what_is_cut_is_not_used(student, variant):
    """A block behind the cut has no reference of this match: no use, and its place is as before."""
    cache = _cache(student, 9, 2)
    cat = [[3, 6, "cat"]]
    _served(cache, "a", [7] * 7, images=cat, computed=5)
    _served(cache, "z", [8, 8, 9])
    _served(cache, "b", [7] * 7, images=cat)  # two blocks found, the second cuts the cat
    _served(cache, "a", [5] * 11, free=False)  # all that is left but one
    _served(cache, "z", [8, 8, 9])


@given(computed=st.integers(0, 12), known=st.integers(3, 12), later=st.integers(0, 4))
@example(computed=3, known=12, later=0)  # published before it is computed
@example(computed=8, known=7, later=1)  # computed before it is known
def test_computed_and_known(student, variant, computed, known, later):
    """Only blocks whose tokens are all computed and all known are found."""
    tokens = list(range(20))
    cache = _cache(student, 40, 4)
    cache.call("match_prefix", "a", tokens[:3], "", [], "ada")
    cache.call("reserve", "a", 0, 14)
    cache.call("commit", "a", tokens[:known], computed)
    _served(cache, "b", tokens)
    cache.call("commit", "a", tokens[: known + later], computed + later)
    cache.call("free", "a")
    _served(cache, "c", tokens)


@given(num_blocks=st.integers(2, 7), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6))
@example(num_blocks=4, sizes=[4, 4, 1])
def test_room(student, variant, num_blocks, sizes):
    """As few blocks as needed, or None and nothing has changed."""
    cache = _cache(student, num_blocks, 4)
    for request in ("a", "b"):
        cache.call("match_prefix", request, [1, 2, 3], "", [], "ada")
    starts = {"a": 0, "b": 0}
    for i, size in enumerate(sizes):
        request = "ab"[i % 2]
        if cache.call("reserve", request, starts[request], size) is not None:
            starts[request] += size
        if starts[request] > 0:
            cache.call("reserve", request, starts[request] - 1, 1, because="that is there already")
        cache.call("table", request)
        cache.call("num_free")
    for request in ("a", "b", "a", "never began"):
        cache.call("free", request)
        cache.call("num_free")


def test_begins_anew(student, variant):
    """A request that was freed begins anew: other tokens, salt and client, and all is published."""
    cache = _cache(student, 20, 2, quota=3)
    _served(cache, "a", [1, 2, 3, 4, 5], client="ada")
    _served(cache, "a", [6, 7, 8, 9, 5], client="bob", salt="pepper")
    _served(cache, "b", [6, 7, 8, 9, 5, 5], client="cyd", salt="pepper")
    _served(cache, "b", [1, 2, 3, 4, 5, 5], client="cyd")
    _served(cache, "a", [9, 9, 9, 9, 9, 9, 9], client="bob")  # its quota is bob's, not ada's
    _served(cache, "b", [6, 7, 8, 9, 5, 5], client="cyd", salt="pepper")
    _served(cache, "b", [1, 2, 3, 4, 5, 5], client="cyd")


def test_a_refusal_evicts_nothing(student, variant):
    """What was cached before a `reserve` that found too little room is cached after it."""
    cache = _cache(student, 6, 2)
    tokens = [1, 2, 3, 4, 5, 6, 7]
    _served(cache, "a", tokens)
    cache.call("match_prefix", "b", [9] * 20, "", [], "bob")
    cache.call("reserve", "b", 0, 11, because="six blocks needed, five free")
    cache.call("reserve", "b", 0, 2)
    _served(cache, "c", tokens)


VISIT = st.tuples(st.integers(0, 5), st.integers(1, 12), st.integers(0, 1), st.booleans())


@given(visits=st.lists(VISIT, max_size=14), num_blocks=st.integers(5, 14), quota=st.integers(0, 6))
@example(visits=[(0, 9, 0, False), (5, 7, 0, False), (0, 9, 0, False)], num_blocks=7, quota=6)
@example(visits=[(0, 6, 0, False), (1, 9, 0, False), (1, 9, 0, False)], num_blocks=14, quota=6)
def test_any_day(student, variant, visits, num_blocks, quota):
    """Clients with salts come and go until the cache is full and beyond."""
    cache = _cache(student, num_blocks, 2, quota)
    held = []
    for family, length, client, keep in visits:
        tokens = [family % 3] * (length // 2) + [family] * (length - length // 2)
        salt, payer = ["", "pepper"][client and family % 2], ["ada", "bob"][client]
        images = [[1, 4, "cat"]] if family == 5 and length > 3 else []
        # A name that is not held comes again, as a request that was preempted does.
        request = next(name for name in ("a", "b", "c", "d") if name not in held)
        _served(cache, request, tokens, salt, images, payer, free=not keep)
        held += [request] if keep else []
        if len(held) > 2:
            cache.call("free", held.pop(0))
    for request in held:
        cache.call("free", request)
    cache.call("num_free")


REQUESTS = [
    (client, HEADER + tail, {"temperature": 0, "max_tokens": 12})
    for client, tail in (
        ("ada", "return x"), ("bob", "return x"), ("ada", "if x < low:"), ("ada", "return x"),
        ("bob", "if x < low:"), ("cyd", ""),
    )
]  # fmt: skip


@functools.cache
def _by_quire():
    return run(REQUESTS, 24, None)


def _judge_in_quire(student):
    cache = _cache(student, 24, 8, 4)
    for turn in ("first", "second"):
        tokens = run(REQUESTS, 24, WithCache(cache))
        student.compare(f"quire with your Cache, {turn} turn, then the tokens", tokens, _by_quire())
    cache.call("num_free", because="all requests have ended")


def test_tokens_in_quire(student, variant):
    """Six requests in a cache too small for them all, twice: quire's own tokens."""
    _judge_in_quire(student)


def test_whole_notebook(student, variant):
    """The same with your own tasks 1 and 2 in place of the reference's."""
    _judge_in_quire(student)
