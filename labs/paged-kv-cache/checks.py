"""The public checks: a few fixed cases whose answers fit in a line."""

from __future__ import annotations

from labkit.reader.subject import Instance, Subject

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


def chains(student: Subject, variant: str) -> None:
    """Full blocks only; tokens, what precedes them and the salt count."""
    got = _same(
        student, ([1, 2, 1, 2, 1], 2, "", []), ([1, 2, 3, 4], 2, "", []), ([1, 2, 1, 2], 2, "x", [])
    )
    call = "block_names of [1, 2, 1, 2, 1], of [1, 2, 3, 4], and of [1, 2, 1, 2] under salt x"
    student.compare(f"{call}, equal names equally numbered", got, [[0, 1], [0, 2], [3, 4]])


def pictures(student: Subject, variant: str) -> None:
    """Another picture changes the names of its blocks and of those behind them."""
    tokens = [5, 7, 7, 7, 5, 5, 5, 5]
    got = _same(
        student,
        (tokens, 2, "", [[1, 4, "cat"]]),
        (tokens, 2, "", [[1, 4, "dog"]]),
        ([*tokens[:2], 5, 5], 2, "", [[1, 4, "cat"]]),
    )
    call = (
        f"block_names of {tokens} with a cat at 1 to 3, a dog there, and [5, 7, 5, 5] with the cat"
    )
    student.compare(
        f"{call}, equal names equally numbered", got, [[0, 1, 2, 3], [4, 5, 6, 7], [0, 8]],
        because="the first block with the cat is the same, whatever follows",
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
    elif variant == "swap":
        tables = _tables(student, variant, 5, 1)
        _shared_by(tables, "a", "b")
        tables.expect("append", "b", 4, want={"new": [3], "copies": [[1, 2]]})
        tables.expect("swap_out", "b", want=None, because="two blocks, one host block")
        tables.expect("swap_out", "a", want=[[1, 0]])
        tables.expect("table", "a", want=[0])
        tables.expect_error("ValueError", "append", "a", 1)
        tables.expect("swap_in", "a", want=[[0, 1]])
    else:
        tables = _tables(student, variant, 5, 3)
        _shared_by(tables, "a")
        tables.expect("append", "a", 4, want={"new": [2], "copies": []})
        tables.expect("table", "a", want=[1, 2], because="the token at 2 sees from 0 on")
        tables.expect("append", "a", 1, want={"new": [], "copies": []})
        tables.expect("table", "a", want=[0, 2], because="the token at 6 sees 4, 5 and 6")
        tables.expect_error("ValueError", "truncate", "a", 5)


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


CHECKS = {
    "pool": [references, found_again, eviction],
    "names": [chains, pictures],
    "tables": [grows, copies_on_write, special],
    "engine": [cached, pictures_whole, room],
}
