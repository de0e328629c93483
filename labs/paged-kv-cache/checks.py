"""The public checks: a few fixed cases whose answers fit in a line."""

from __future__ import annotations

from typing import Any

from labkit.reader.subject import Instance, Subject, Wrong

# ---- pool


def references(student: Subject, variant: str) -> None:
    """Blocks are given out by their ids and are free without references."""
    pool = student.new("BlockPool", 5, 9)
    pool.expect("allocate", 3, want=[1, 2, 3])
    pool.expect("acquire", [2], want=None)
    pool.expect("release", [3, 2], want=None)
    pool.expect("num_free", want=2, because="3 and 4 are free, 2 has a reference left")
    pool.expect("references", 2, want=1)
    pool.expect_error("NoFreeBlocks", "allocate", 3)
    pool.expect_error("ValueError", "release", [1, 3])
    pool.expect("references", 1, want=1, because="a refused release drops nothing")
    pool.expect("allocate", 2, want=[3, 4])


def found_again(student: Subject, variant: str) -> None:
    """A free block is found by its name until it is given out."""
    pool = student.new("BlockPool", 4, 9)
    pool.expect("allocate", 2, want=[1, 2])
    pool.expect("publish", 1, b"one", "ada", want=None)
    pool.expect("publish", 2, b"one", "ada", want=None)
    pool.expect("name", 2, want=None, because="the name was taken")
    pool.expect("release", [1, 2], want=None)
    pool.expect("lookup", b"one", want=1)
    pool.expect("allocate", 2, want=[2, 3], because="nameless blocks go first")
    pool.expect("lookup", b"one", want=1)
    pool.expect("allocate", 1, want=[1])
    pool.expect("lookup", b"one", want=None)


def eviction(student: Subject, variant: str) -> None:
    """The least used goes first; a quota takes the same one's name."""
    for quota, found in ((9, [1, 2, 3]), (2, [1, None, 3]), (0, [None] * 3)):
        pool = student.new("BlockPool", 4, quota)
        pool.expect("allocate", 3, want=[1, 2, 3])
        for block in (1, 2, 3):
            pool.expect("publish", block, b"%d" % block, "ada", want=None)
        pool.expect("acquire", [3, 1], want=None)
        pool.expect("release", [3, 1, 3, 2, 1], want=None)
        for block, want in zip((1, 2, 3), found, strict=True):
            why = f"1 and 3 were used once, 2 never, 3 was freed first; quota {quota}"
            pool.expect("lookup", b"%d" % block, want=want, because=why)
        if quota:
            pool.expect("allocate", 3, want=[2, 3, 1], because="2 was never used, 3 freed before 1")


def uses(student: Subject, variant: str) -> None:
    """Uses are counted from the name on, twice in a list two, and end with the name."""
    pool = student.new("BlockPool", 5, 9)
    pool.expect("allocate", 3, want=[1, 2, 3])
    pool.expect("acquire", [1, 1, 1], want=None, because="1 has no name yet: no uses")
    for block in (1, 2, 3):
        pool.expect("publish", block, b"%d" % block, "ada", want=None)
    pool.expect("acquire", [2, 2, 3], want=None)
    pool.expect("release", [2, 2, 2, 3, 3, 1, 1, 1, 1], want=None)
    pool.expect("allocate", 2, want=[4, 1], because="4 has no name; 1 was never used, 3 once")
    pool.expect("publish", 4, b"4", "ada", want=None)
    pool.expect("publish", 1, b"one", "ada", want=None)
    pool.expect("acquire", [1, 1, 1], want=None)
    pool.expect("release", [1, 1, 1, 1, 4], want=None)
    why = "4 was never used, 3 once, 2 twice, 1 three times since it got its new name"
    pool.expect("allocate", 4, want=[4, 3, 2, 1], because=why)
    pool.expect("publish", 2, b"two", "ada", want=None)
    pool.expect("publish", 3, b"three", "ada", want=None)
    pool.expect("release", [2, 3], want=None)
    why = "neither was used under its new name, and 2 has been free longest"
    pool.expect("allocate", 1, want=[2], because=why)


def repeats(student: Subject, variant: str) -> None:
    """A list may name a block as often as it has references; it is free where the last one goes."""
    pool = student.new("BlockPool", 4, 9)
    pool.expect("allocate", 2, want=[1, 2])
    for block in (1, 2):
        pool.expect("publish", block, b"%d" % block, "ada", want=None)
    pool.expect_error("ValueError", "release", [1, 1], because="1 has one reference")
    pool.expect("acquire", [1, 2], want=None)
    pool.expect("references", 1, want=2)
    pool.expect("release", [2], want=None)
    pool.expect("release", [1, 2, 1], want=None)
    why = "3 has no name; 2 was free before 1, whose last reference came last in the list"
    pool.expect("allocate", 3, want=[3, 2, 1], because=why)


def clients(student: Subject, variant: str) -> None:
    """The quota is each client's own, of its free blocks with a name."""
    pool = student.new("BlockPool", 5, 1)
    pool.expect("allocate", 4, want=[1, 2, 3, 4])
    for block, client in ((1, "ada"), (2, "bob"), (3, "ada"), (4, "ada")):
        pool.expect("publish", block, b"%d" % block, client, want=None)
    pool.expect("release", [1, 2], want=None)
    pool.expect("lookup", b"1", want=1, because="one free block of ada's, one of bob's")
    pool.expect("lookup", b"2", want=2)
    pool.expect("release", [3], want=None)
    pool.expect("lookup", b"1", want=None, because="1 and 3 are ada's, and 1 has been free longest")
    pool.expect("lookup", b"3", want=3)
    pool.expect("lookup", b"4", want=4, because="4 has a reference and takes no part")


def refusals(student: Subject, variant: str) -> None:
    """What is free and nameless is not acquired, what is free not named; nothing changes."""
    pool = student.new("BlockPool", 4, 9)
    pool.expect("allocate", 2, want=[1, 2])
    pool.expect("publish", 1, b"one", "ada", want=None)
    pool.expect("publish", 1, b"two", "bob", want=None)
    pool.expect("lookup", b"two", want=None, because="block 1 has a name already")
    pool.expect_error("ValueError", "acquire", [1, 3], because="3 is free and has no name")
    pool.expect("references", 1, want=1, because="a refused acquire adds nothing")
    pool.expect_error("ValueError", "acquire", [0], because="0 is no block of the pool")
    pool.expect("release", [2, 1], want=None)
    pool.expect_error("ValueError", "publish", 2, b"2", "ada", because="2 has no reference")
    why = "2 has no reference, and the name is taken"
    pool.expect_error("ValueError", "publish", 2, b"one", "ada", because=why)
    pool.expect("acquire", [1], want=None, because="1 is free and has a name")
    pool.expect("num_free", want=2)
    pool.expect("allocate", 2, want=[2, 3], because="1 is held again")


# ---- names


def _name_lists(student: Subject, *prompts: tuple[object, ...]) -> list[list[bytes]]:
    """Names of some prompts, each list as long as it must be."""
    found = []
    for tokens, size, salt, images in prompts:
        got = student.call("block_names", tokens, size, salt, images)
        call = f"block_names({tokens}, {size}, {salt!r}, {images})"
        if type(got) is not list or not all(type(name) is bytes for name in got):
            student.fail(f"called {call}\nexpected a list of bytes\ngot {got!r}")
        student.compare(f"{call}, then the number of names", len(got), len(tokens) // size)  # type: ignore[arg-type,operator]
        found.append(got)
    return found


def _same(student: Subject, *prompts: tuple[object, ...]) -> list[list[int]]:
    """Number the distinct names in order of appearance, over all prompts; a list for each."""
    numbers: dict[bytes, int] = {}
    return [
        [numbers.setdefault(name, len(numbers)) for name in names]
        for names in _name_lists(student, *prompts)
    ]


def _numbered(
    student: Subject, want: list[list[int]], *prompts: tuple[object, ...], because: str = ""
) -> None:
    """Expect equal names where `want`, a list for each prompt, has equal numbers."""
    call = "; ".join(student.said("block_names", *prompt) for prompt in prompts)
    student.compare(
        f"{call}: the names, equal ones equally numbered", _same(student, *prompts), want,
        because=because,
    )  # fmt: skip


def chains(student: Subject, variant: str) -> None:
    """Full blocks only; tokens, what precedes them and the salt count."""
    _numbered(
        student, [[0, 1], [0, 2], [3, 4]],
        ([1, 2, 1, 2, 1], 2, "", []), ([1, 2, 3, 4], 2, "", []), ([1, 2, 1, 2], 2, "x", []),
    )  # fmt: skip
    _numbered(
        student, [[0], [1], [2]], ([1, 2], 2, "a", []), ([1, 2], 2, "b", []), ([1, 2], 2, "", []),
        because="three salts",
    )  # fmt: skip


def apart(student: Subject, variant: str) -> None:
    """Names are of 16 to 64 bytes, and what is written one after another does not run together."""
    (names,) = _name_lists(student, ([1, 2, 3, 4], 2, "", []))
    short = [len(name) for name in names if not 16 <= len(name) <= 64]
    student.compare(
        student.said("block_names", [1, 2, 3, 4], 2, "", []) + ": lengths outside 16 to 64",
        short, [],
    )  # fmt: skip
    _numbered(student, [[0], [1]], ([1, 23], 2, "", []), ([12, 3], 2, "", []))
    _numbered(student, [[0], [1]], ([2, 3], 2, "1", []), ([12, 3], 2, "", []), because="1 and 23?")
    _numbered(
        student, [[0], [1]], ([-1], 1, "", []), ([-2], 1, "", []),
        because="Python's hash is the same for both",
    )  # fmt: skip


def pictures(student: Subject, variant: str) -> None:
    """Another picture, or another part of it, changes its blocks' names and those behind them."""
    tokens = [5, 7, 7, 7, 5, 5, 5, 5]
    _numbered(
        student, [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 8]],
        (tokens, 2, "", [[1, 4, "cat"]]), (tokens, 2, "", [[1, 4, "dog"]]),
        ([5, 7, 7, 7, 9, 9], 2, "", [[1, 4, "cat"]]),
        because="the blocks with the cat are the same, whatever follows",
    )  # fmt: skip
    _numbered(
        student, [[0, 1], [2, 3]],
        ([7] * 4, 2, "", [[0, 4, "cat"]]), ([7] * 4, 2, "", [[1, 5, "cat"]]),
        because="other parts of the cat lie in these blocks",
    )  # fmt: skip


def pictures_to_come(student: Subject, variant: str) -> None:
    """What comes after a block's end, the rest of a picture too, changes nothing in its name."""
    _numbered(
        student, [[0, 1], [0, 1, 2]],
        ([7] * 4, 2, "", [[1, 9, "map"]]), ([7] * 6, 2, "", [[1, 9, "map"]]),
        because="the map goes on behind the first prompt",
    )  # fmt: skip
    _numbered(
        student, [[0, 1], [0, 2]],
        ([7] * 4, 2, "", []), ([7] * 4, 2, "", [[2, 4, "cat"]]),
        because="the cat begins where the first block has ended",
    )  # fmt: skip


# ---- tables


def _tables(
    student: Subject, variant: str, num_blocks: int, special: int | None = None
) -> Instance:
    """Tables of 4-token blocks, the variant's own rule out of the way."""
    rest = {"window": [special or 1000], "swap": [special or 0], "beam": []}[variant]
    return student.new("BlockTables", num_blocks, 4, *rest)


def grows(student: Subject, variant: str) -> None:
    """A table grows by as few blocks as needed, or not at all."""
    tables = _tables(student, variant, 4)
    tables.expect("start", "a", want=None)
    tables.expect("append", "a", 3, want={"new": [1], "copies": []})
    tables.expect("append", "a", 1, want={"new": [], "copies": []})
    tables.expect("append", "a", 9, want=None, because="three blocks needed, two free")
    tables.expect("append", "a", 5, want={"new": [2, 3], "copies": []})
    tables.expect("truncate", "a", 5, want=None)
    tables.expect("table", "a", want=[1, 2])
    tables.expect("free", "a", want=None)
    tables.expect("num_free", want=3)


def copies_on_write(student: Subject, variant: str) -> None:
    """The first writer copies, the last holder does not."""
    tables = _tables(student, variant, 6)
    tables.expect("start", "a", want=None)
    tables.expect("append", "a", 6, want={"new": [1, 2], "copies": []})
    tables.expect("fork", "a", "b", 6, want=None)
    tables.expect("table", "b", want=[1, 2])
    tables.expect("append", "a", 1, want={"new": [], "copies": [[2, 3]]}, because="b holds 2 too")
    tables.expect("append", "b", 1, want={"new": [], "copies": []}, because="b alone holds 2")
    tables.expect("table", "a", want=[1, 3])
    tables.expect("commit", "b", [b"x"], want=None)
    tables.expect("free", "a", want=None)
    tables.expect("truncate", "b", 2, want=None)
    tables.expect(
        "append", "b", 1, want={"new": [], "copies": [[1, 2]]}, because="block 1 has a name"
    )


def written_in_place(student: Subject, variant: str) -> None:
    """Nothing is copied where nothing is written, and no child is made twice."""
    tables = _tables(student, variant, 6)
    _shared_by(tables, "a", "b")
    tables.expect("append", "b", 0, want={"new": [], "copies": []}, because="no token to write")
    tables.expect_error("ValueError", "fork", "a", "b", 1, because="b exists")
    tables.expect_error("ValueError", "fork", "a", "c", 3, because="a has 2 tokens")
    tables.expect_error("ValueError", "truncate", "a", 3, because="a has 2 tokens")
    tables.expect("append", "b", 2, want={"new": [], "copies": [[1, 2]]})
    tables.expect("fork", "b", "c", 4, want=None)
    why = "block 2 is full, so nothing is written to it"
    tables.expect("append", "c", 1, want={"new": [3], "copies": []}, because=why)
    tables.expect("table", "b", want=[2])


def room_for_copies(student: Subject, variant: str) -> None:
    """A copy needs a block, too; without one nothing has changed."""
    tables = _tables(student, variant, 3)
    _shared_by(tables, "a", "b")
    why = "one block for the copy, one for the fifth token, and one is free"
    tables.expect("append", "b", 3, want=None, because=why)
    tables.expect("table", "b", want=[1])
    tables.expect("num_free", want=1)
    tables.expect("append", "b", 2, want={"new": [], "copies": [[1, 2]]}, because="b has 2 tokens")
    tables.expect("append", "a", 2, want={"new": [], "copies": []}, because="a alone holds 1")


def special(student: Subject, variant: str) -> None:
    """The rule of your variant."""
    if variant == "beam":
        tables = _tables(student, variant, 5)
        _shared_by(tables, "a", "b", "c")
        tables.expect("reorder", ["a", "b", "c"], ["b", "a", "a"], want=None)
        want = [{"new": [], "copies": [[1, t]] if t else []} for t in (2, 3, 0)]
        tables.expect("append_all", ["a", "b", "c"], 1, want=want)
        tables.expect("reorder", ["a", "b", "c"], ["b", "a", "a"], want=None)
        tables.expect("table", "a", want=[3])
        tables.expect("table", "c", want=[2])
        tight = _tables(student, variant, 4)
        _shared_by(tight, "a", "b", "c")
        want = [{"new": [], "copies": [[1, t]] if t else []} for t in (2, 3, 0)]
        why = "two copies, two free; c is the last holder by then"
        tight.expect("append_all", ["a", "b", "c"], 2, want=want, because=why)
        tight.expect("append_all", ["a", "b", "c"], 1, want=None, because="no block is free")
        tight.expect("free", "c", want=None)
        tight.expect("append_all", ["a", "b"], 1, want=None, because="two needed, one free")
        why = "and nothing has changed: a has 4 tokens"
        tight.expect("append", "a", 1, want={"new": [1], "copies": []}, because=why)
    elif variant == "swap":
        tables = _tables(student, variant, 5, 1)
        _shared_by(tables, "a", "b")
        tables.expect("append", "b", 4, want={"new": [3], "copies": [[1, 2]]})
        tables.expect("swap_out", "b", want=None, because="two blocks, one host block")
        tables.expect("swap_out", "a", want=[[1, 0]])
        tables.expect("table", "a", want=[0])
        tables.expect_error("ValueError", "append", "a", 1)
        tables.expect("swap_in", "a", want=[[0, 1]])
        tables.expect("swap_out", "a", want=[[1, 0]])
        tables.expect("append", "b", 8, want={"new": [1, 4], "copies": []})
        tables.expect("swap_in", "a", want=None, because="no block is free")
        tables.expect("table", "a", want=[0], because="nothing has changed")
        tables.expect("truncate", "b", 10, want=None)
        tables.expect("start", "c", want=None)
        tables.expect("append", "c", 1, want={"new": [4], "copies": []})
        tables.expect("swap_out", "c", want=None, because="a has the host block still")
        tables.expect("free", "a", want=None)
        tables.expect("truncate", "b", 2, want=None)
        tables.expect("swap_out", "b", want=[[2, 0]], because="a's host block is free again")
        shared = _tables(student, variant, 5, 1)
        _shared_by(shared, "a", "b")
        shared.expect("swap_out", "a", want=[], because="b holds the block, too")
        shared.expect("table", "a", want=[1])
    else:
        tables = _tables(student, variant, 5, 3)
        _shared_by(tables, "a")
        tables.expect("append", "a", 4, want={"new": [2], "copies": []})
        tables.expect("table", "a", want=[1, 2], because="the token at 2 sees from 0 on")
        tables.expect("append", "a", 1, want={"new": [], "copies": []})
        tables.expect("table", "a", want=[0, 2], because="the token at 6 sees 4, 5 and 6")
        tables.expect_error("ValueError", "truncate", "a", 5)
        last = _tables(student, variant, 5, 1)
        _shared_by(last, "a")
        last.expect("append", "a", 4, want={"new": [2], "copies": []})
        last.expect("append", "a", 0, want={"new": [], "copies": []})
        last.expect("table", "a", want=[0, 2], because="the token at 6 sees itself alone")
        last.expect("commit", "a", [b"0"], want=None, because="the name is that of a block gone")
        why = "block 2 has no name and one holder"
        last.expect("append", "a", 1, want={"new": [], "copies": []}, because=why)
        full = _tables(student, variant, 3, 3)
        _shared_by(full, "a")
        full.expect("append", "a", 4, want={"new": [2], "copies": []})
        why = "the token at 6 sees 4, 5 and 6, so block 1 is let go of and serves this very append"
        full.expect("append", "a", 3, want={"new": [1], "copies": []}, because=why)
        full.expect("table", "a", want=[0, 2, 1])


def _shared_by(tables: Instance, first: str, *others: str) -> None:
    """Two tokens in block 1, shared by some requests."""
    tables.expect("start", first, want=None)
    tables.expect("append", first, 2, want={"new": [1], "copies": []})
    for other in others:
        tables.expect("fork", first, other, 2, want=None)


# ---- engine


def cached(student: Subject, variant: str) -> None:
    """What was committed is found, and one token is left."""
    cache = student.new("Cache", 6, 2, 9)
    tokens = [1, 2, 3, 4]
    cache.expect("match_prefix", "a", tokens, "", [], "ada", want=0)
    cache.expect("reserve", "a", 0, 4, want=[1, 2])
    cache.expect("commit", "a", [*tokens, 5], 4, want=None)
    cache.expect("match_prefix", "b", tokens, "", [], "bob", want=2, because="one token is left")
    cache.expect("table", "b", want=[1])
    cache.expect("free", "a", want=None)
    cache.expect("match_prefix", "c", [*tokens, 9], "", [], "bob", want=4)
    cache.expect("match_prefix", "d", [*tokens, 9], "salt", [], "bob", want=0)
    cache.expect("num_free", want=3)


def pictures_whole(student: Subject, variant: str) -> None:
    """A match goes back to before an image that it would cut."""
    cache = student.new("Cache", 9, 2, 9)
    tokens, images = [7] * 7, [[3, 6, "cat"]]
    cache.expect("match_prefix", "a", tokens, "", images, "ada", want=0)
    cache.expect("reserve", "a", 0, 5, want=[1, 2, 3])
    cache.expect("commit", "a", tokens, 5, want=None)
    why = "two blocks are there, and 4 lies inside the image"
    cache.expect("match_prefix", "b", tokens, "", images, "ada", want=2, because=why)


def room(student: Subject, variant: str) -> None:
    """Room is made for whole blocks, or not at all; blocks are released from the last."""
    cache = student.new("Cache", 4, 2, 9)
    cache.expect("match_prefix", "a", [1, 2, 3, 4, 5], "", [], "ada", want=0)
    cache.expect("reserve", "a", 0, 7, want=None, because="four blocks needed, three free")
    cache.expect("num_free", want=3)
    cache.expect("reserve", "a", 0, 5, want=[1, 2, 3])
    cache.expect("reserve", "a", 5, 1, want=[], because="position 5 lies in the third block")
    cache.expect("commit", "a", [1, 2, 3, 4, 5, 6], 6, want=None)
    cache.expect("free", "a", want=None)
    cache.expect("match_prefix", "b", [9], "", [], "ada", want=0)
    cache.expect("reserve", "b", 0, 1, want=[3], because="freed first, so longest free")
    cache.expect("free", "nobody", want=None)


def a_gap(student: Subject, variant: str) -> None:
    """The chain is from the first block on, and each client pays for its own."""
    cache = student.new("Cache", 9, 2, 1)
    cache.expect("match_prefix", "a", [1, 2, 9], "", [], "ada", want=0)
    cache.expect("reserve", "a", 0, 3, want=[1, 2])
    cache.expect("commit", "a", [1, 2, 9], 3, want=None)
    cache.expect("free", "a", want=None)
    cache.expect("match_prefix", "b", [1, 2, 3, 4, 9], "", [], "bob", want=2)
    cache.expect("reserve", "b", 2, 3, want=[2, 3])
    cache.expect("commit", "b", [1, 2, 3, 4, 9], 5, want=None)
    cache.expect("free", "b", want=None)
    cache.expect("match_prefix", "c", [8, 8, 9], "", [], "ada", want=0)
    cache.expect("reserve", "c", 0, 3, want=[3, 4])
    cache.expect("commit", "c", [8, 8, 9], 3, want=None)
    cache.expect("match_prefix", "e", [8, 8, 9], "", [], "ada", want=2)
    cache.expect("match_prefix", "f", [8, 8, 9], "", [], "ada", want=2)
    for request in ("e", "f", "c"):
        cache.expect("free", request, want=None)
    why = "ada may keep one block, and [8, 8] was used more often than [1, 2]; [3, 4] is bob's"
    cache.expect("match_prefix", "g", [1, 2, 3, 4, 9], "", [], "cyd", want=0, because=why)
    cache.expect("match_prefix", "h", [8, 8, 9], "", [], "cyd", want=2)


def salted(student: Subject, variant: str) -> None:
    """What one salt has published is found under that salt; one that was freed begins anew."""
    cache = student.new("Cache", 9, 2, 9)
    for salt, tokens in (("", [1, 2, 3, 4, 5]), ("pepper", [6, 7, 8, 9, 5])):
        cache.expect("match_prefix", "a", tokens, salt, [], "ada", want=0)
        cache.expect("reserve", "a", 0, 5, want=[1, 2, 3] if salt == "" else [3, 4, 5])
        cache.expect("commit", "a", tokens, 5, want=None)
        cache.expect("free", "a", want=None)
        cache.expect("free", "a", want=None, because="it has no table any more")
    cache.expect("match_prefix", "b", [6, 7, 8, 9, 5], "", [], "ada", want=0)
    cache.expect("match_prefix", "c", [6, 7, 8, 9, 5], "pepper", [], "ada", want=4)
    cache.expect("num_free", want=6, because="c holds two blocks, b none")


def known_and_computed(student: Subject, variant: str) -> None:
    """A block is published when its tokens are all computed and all known."""
    cache = student.new("Cache", 9, 2, 9)
    tokens = [1, 2, 3, 4, 5, 6, 7]
    cache.expect("match_prefix", "a", tokens[:5], "", [], "ada", want=0)
    cache.expect("reserve", "a", 0, 7, want=[1, 2, 3, 4])
    cache.expect("commit", "a", tokens, 3, want=None)
    cache.expect("match_prefix", "b", tokens, "", [], "ada", want=2, because="3 are computed")
    cache.expect("commit", "a", tokens[:5], 7, want=None)
    cache.expect("match_prefix", "c", tokens, "", [], "ada", want=4, because="5 are known")


def images_side_by_side(student: Subject, variant: str) -> None:
    """A match may end where an image does, and goes back over as many as it would cut."""
    tokens, images = [7] * 9, [[1, 3, "cat"], [3, 5, "dog"]]
    for size, hits in ((2, 0), (3, 3), (4, 0), (5, 5)):
        cache = student.new("Cache", 20, size, 9)
        cache.expect("match_prefix", "a", tokens, "", images, "ada", want=0)
        blocks = -(-5 // size)
        cache.expect("reserve", "a", 0, 5, want=list(range(1, blocks + 1)))
        cache.expect("commit", "a", tokens, 5, want=None)
        why = f"blocks of {size}; the cat is at 1 and 2, the dog at 3 and 4"
        cache.expect("match_prefix", "b", tokens, "", images, "ada", want=hits, because=why)
        held = blocks + hits // size
        why = "b holds the blocks of its match and no other"
        free = 19 - blocks
        cache.expect("num_free", want=free, because=why)
        cache.expect("free", "a", want=None)
        cache.expect("num_free", want=19 - (held - blocks), because=why)


CHECKS = {
    "pool": [references, found_again, eviction, uses, repeats, clients, refusals],
    "names": [chains, apart, pictures, pictures_to_come],
    "tables": [grows, copies_on_write, written_in_place, room_for_copies, special],
    "engine": [
        cached, known_and_computed, a_gap, salted, pictures_whole, images_side_by_side, room,
    ],
}  # fmt: skip


# ---- the frontier's policy


def a_short_trace(names: dict[str, Any]) -> None:
    """`Policy` names a block of its list whenever it is asked, on one short trace."""
    if "Policy" not in names:
        raise Wrong("it does not define `Policy`")
    names["simulate"](names["Policy"](), names["make_trace"](0, requests=60))


FRONTIER = {"policy": ("make_trace", a_short_trace)}
