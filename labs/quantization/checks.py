"""The public checks: a few fixed cases whose answers can be found with a pencil."""

from __future__ import annotations

from typing import Any

import numpy as np

from labkit.reader.subject import Subject, Wrong
from labkit.reader.titles import titled
from labkit.reader.values import difference

SMALLEST = 2.0**-14


def _array(*rows: Any) -> np.ndarray[Any, Any]:
    return np.array(rows)


def _words(*rows: str) -> np.ndarray[Any, Any]:
    """Rows of words in hexadecimal as the int32 that a file has."""
    values = [[int(word, 16) for word in row.split()] for row in rows]
    return np.array([[v - 2**32 if v >= 2**31 else v for v in row] for row in values])


def _hex(words: np.ndarray[Any, Any]) -> str:
    """Words in hexadecimal, a row behind another."""
    return " | ".join(
        " ".join(f"{word & 0xFFFFFFFF:08X}" for word in row) for row in words.tolist()
    )


def _words_alike(
    student: Subject, said: str, got: Any, want: np.ndarray[Any, Any], variant: str, bits: int,
    because: str,
) -> None:  # fmt: skip
    """Complain about other words: both in hexadecimal, and the first code that differs."""
    whole = getattr(getattr(got, "dtype", None), "kind", "") == "i" and got.shape == want.shape
    if not whole or difference(got, want) is None:
        return
    place = tuple(int(at) for at in np.argwhere(got != want)[0])
    asked, found = int(want[place]), int(got[place])
    apart = (asked ^ found) & 0xFFFFFFFF
    where = f"row {place[0]}, word {place[1]}: "
    if apart == 0:
        where += f"{found} has the right bits, and the int32 that has them is {asked}"
    else:
        places = [32 - bits * (slot + 1) for slot in range(32 // bits)]
        if variant != "dense":  # slots are counted from the lowest bits
            places = [bits * slot for slot in range(32 // bits)]
        of_slot = (1 << bits) - 1
        slot = next((s for s, low in enumerate(places) if apart >> low & of_slot), None)
        if slot is None:
            where += "bits that hold no code are not 0"
        else:
            codes = [word >> places[slot] & of_slot for word in (asked, found)]
            where += f"slot {slot} is the first that differs: expected {codes[0]}, got {codes[1]}"
    student.fail(
        f"called {said}\nexpected the words {_hex(want)} in hexadecimal  ({because})\n"
        f"got the words {_hex(got)}\n{where}"
    )


def _same_types(student: Subject, said: str, got: Any, want: Any) -> None:
    """Complain about a list for an array, or floating-point numbers for integers."""
    asked, found = (getattr(getattr(one, "dtype", None), "kind", None) for one in (want, got))
    if asked != found:
        kinds = {"i": "an array of integers", "f": "an array of floating-point numbers"}
        got_words = kinds.get(found or "", "a list" if found is None else "an array of bool")
        student.fail(f"called {said}\nexpected {kinds[asked or '']}\ngot {got_words}")


def _pure(student: Subject, name: str, *args: Any, want: Any, because: str) -> None:
    """Call a function: it gives `want` in arrays of the same kinds, and no argument changes."""
    got = student.expect_pure(name, *args, want=want, because=because)
    said = student.said(name, *args)
    if isinstance(want, dict | list):
        for key in want if isinstance(want, dict) else range(len(want)):
            _same_types(student, said, got[key], want[key])
    else:
        _same_types(student, said, got, want)


# ---- pack


def _both(
    student: Subject, variant: str, codes: np.ndarray[Any, Any], bits: int, group: int,
    words: np.ndarray[Any, Any], because: str,
) -> None:  # fmt: skip
    with student.wanting(words, because):
        got = student.call("pack", codes, bits, group)
    said = student.said("pack", codes, bits, group)
    _words_alike(student, said, got, words, variant, bits, because)
    _pure(student, "pack", codes, bits, group, want=words, because=because)
    because = f"the words are {_hex(words)} in hexadecimal; {because}"
    _pure(student, "unpack", words, bits, codes.shape[1], group, want=codes, because=because)


def table_of_words(student: Subject, variant: str) -> None:
    """The table's row, and two rows with several words in a group."""
    row = _array([1, 2, 3, 4, 5, 6, 7, 8])
    words = {
        "dense": "01030500 02040600 07080000", "doubled": "04030201 05060000 00000807",
        "sorted": "02050301 00000604 00000807",
    }[variant]  # fmt: skip
    why = "the table's row: groups of 6 and 2 codes of 8 bits"
    _both(student, variant, row, 8, 6, _words(words), why)
    words = {
        "dense": "13579000 24680000 ABC00000", "doubled": "87654321 90000000 00000CBA",
        "sorted": "64297531 00000008 00000BCA",
    }[variant]  # fmt: skip
    why = "groups of 9 and 3 codes of 4 bits"
    _both(student, variant, _array([*range(1, 13)]), 4, 9, _words(words), why)


def left_over(student: Subject, variant: str) -> None:
    """Bits that hold no code are 0 in what you write, and are not read."""
    row = _array([1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4])
    words, other = {
        "dense": ("2EF2C000 53050000", "2EF2FFFF 53053FFF"),
        "doubled": ("111F58D1 1C000000", "D11F58D1 DCFFFFFF"),
        "sorted": ("06899F59 00000022", "C6899F59 FFFFFFE2"),
    }[variant]
    _both(student, variant, row, 3, 12, _words(words), "ten codes of 3 bits a word at most")
    why = f"the words are {other} in hexadecimal: the same codes, and other bits where no code lies"
    student.expect("unpack", _words(other), 3, 12, 12, want=row, because=why)
    words = {
        "dense": "2EF2EF2C 53053050", "doubled": "111F58D1 1CBB829C",
        "sorted": "19F59F59 221A21A2",
    }[variant]  # fmt: skip
    row = _array([i % 8 for i in range(1, 21)])
    _both(student, variant, row, 3, 20, _words(words), "twenty codes of 3 bits in two words")
    words = {
        "dense": "0441CA00 08520B00 0C624000", "doubled": "05103081 061C824A 0000000B",
        "sorted": "091C50C1 0818408B 0000000A",
    }[variant]  # fmt: skip
    _both(student, variant, _array([*range(1, 12)]), 6, 11, _words(words), "6 bits, five a word")


def signed(student: Subject, variant: str) -> None:
    """Words are int32, so some are below 0."""
    rows = _array([255, 254, 253, 252], [1, 2, 3, 128])
    words = {
        "dense": [[-66052], [16909184]], "doubled": [[-50462977], [-2147286527]],
        "sorted": [[-50397697], [-2147351807]],
    }[variant]  # fmt: skip
    _both(student, variant, rows, 8, 4, np.array(words), "the highest bit counts -2³¹")


def _shard(words: Any, scales: Any, zeros: Any, **more: int) -> dict[str, Any]:
    made = {"rows": len(words), "bits": 2, "block": 1, **more}
    return {**made, "words": words, "scales": np.array(scales, float), "zeros": zeros}


@titled(
    dense="The zeros 0, 1, 2, 3, stored as one less, and none stored.",
    doubled="The zeros 0, 1, 2, 3, stored as 2 less, and none stored.",
    sorted="The zeros 0, 1, 2, 3, stored as 3 less the zero, and none stored.",
)
def zeros_are_changed(student: Subject, variant: str) -> None:
    """The zeros 0, 1, 2, 3 as they are stored, and none stored."""
    words, zeros = {
        "dense": ("C0000000 80000000 40000000 00000000", "C6000000"),
        "doubled": ("00000003 00000002 00000001 00000000", "0000004E"),
        "sorted": ("00000003 00000002 00000001 00000000", "00000027"),
    }[variant]
    made = _shard(_words(words), [[1, 2, 3, 4]], _words(zeros), columns=4, group=1)
    want = {
        "codes": _array([3, 2, 1, 0]), "scales": _array([1.0, 2, 3, 4]),
        "zeros": _array([0, 1, 2, 3]),
    }  # fmt: skip
    shown = f"in hexadecimal its words are {words}"
    why = f"{shown} and its words of zeros {zeros}; the zeros are 0, 1, 2, 3"
    student.expect("fuse", [made], want=want, because=why)
    want["zeros"] = _array([2, 2, 2, 2])
    made["zeros"] = None
    _pure(student, "fuse", [made], want=want, because=f"{shown}; no zeros are stored, and 2 bits")


def _pair(variant: str) -> list[dict[str, Any]]:
    """Three rows in blocks of two, and two rows without zeros in one block."""
    words = {
        "dense": ["10000000 80000000", "E0000000 40000000", "50000000 40000000"],
        "doubled": ["00000004 00000002", "0000000B 00000001", "00000005 00000001"],
        "sorted": ["00000004 00000002", "0000000B 00000001", "00000005 00000001"],
    }[variant]
    zeros = {
        "dense": ["10000000", "B0000000"], "doubled": ["00000003", "00000009"],
        "sorted": ["00000006", "0000000C"],
    }[variant]  # fmt: skip
    other = {
        "dense": ["80000000 C0000000", "F0000000 00000000"],
        "doubled": ["00000002 00000003", "0000000F 00000000"],
        "sorted": ["00000002 00000003", "0000000F 00000000"],
    }[variant]
    same = {"columns": 3, "group": 2}
    return [
        _shard(_words(*words), [[1, 2], [3, 4]], _words(*zeros), block=2, **same),
        _shard(_words(*other), [[5, 6]], None, block=2, **same),
    ]


def stacked(student: Subject, variant: str) -> None:
    """Two shards become one layer, and each row has the grid of its own block."""
    want = {
        "codes": _array([0, 1, 2], [3, 2, 1], [1, 1, 1], [2, 0, 3], [3, 3, 0]),
        "scales": _array([1.0, 2], [1, 2], [3, 4], [5, 6], [5, 6]),
        "zeros": _array([1, 2], [1, 2], [3, 0], [2, 2], [2, 2]),
    }
    first, second = _pair(variant)
    why = (
        f"in hexadecimal the words are {_hex(first['words'])} and {_hex(second['words'])}, the "
        f"words of zeros {_hex(first['zeros'])}; rows 0 and 1 are a block, row 2 is one, and the "
        "second shard is another"
    )
    _pure(student, "fuse", [first, second], want=want, because=why)
    twice = {name: np.concatenate([value[:3], value[:3]]) for name, value in want.items()}
    why = "the first shard twice: its blocks begin anew with its first row"
    student.expect("fuse", [first, first], want=twice, because=why)


def contradictions(student: Subject, variant: str) -> None:
    """Codes that do not fit, shapes that contradict and shards that differ are refused."""
    for code in (-1, 8):
        student.refuses("pack", _array([1, code]), 3, 2, because=f"the code {code} and 3 bits")
    one = np.zeros((1, 1), np.int64)
    for columns in (9, 20):
        why = f"{columns} columns of 4 bits need more words"
        student.refuses("unpack", one, 4, columns, 32, because=why)
    student.refuses("unpack", np.zeros((1, 3), np.int64), 4, 9, 32, because="2 words are needed")
    first, second = _pair(variant)
    for key, value in (("bits", 1), ("columns", 4), ("group", 3)):
        why = f"the shards differ in {key}"
        student.refuses("fuse", [first, {**second, key: value}], because=why)
    short = {"bits": 2, "columns": 2}
    alike = [
        {
            **second,
            "scales": _array([5.0]),
            "words": second["words"][:, :1],
            "group": group,
            **short,
        }
        for group in (2, 3)
    ]
    why = "the shards differ in group, although each has one"
    student.refuses("fuse", alike, because=why)
    for key in ("words", "scales", "zeros"):
        why = f"a row of {key} is missing"
        student.refuses("fuse", [{**first, key: first[key][:-1]}], because=why)
        wide = np.concatenate([first[key], first[key]], 1)
        student.refuses("fuse", [{**first, key: wide}], because=f"{key} are twice as wide")
    wide = np.concatenate([second["scales"], second["scales"]], 1)
    why = "scales are twice as wide, and no zeros are stored"
    student.refuses("fuse", [{**second, "scales": wide}], because=why)


# ---- scales


def codes_of_weights(student: Subject, variant: str) -> None:
    """Codes inside and outside of the grid, halves among them; each row has its own grid."""
    rows = _array([-9, -1, 0.5, 1.5, -0.5, -1.5, 9], [1, 2, 3, 4, -1, 0.5, 0])
    want = {
        "dense": [[0, 2, 4, 5, 3, 2, 7], [1, 1, 2, 2, 0, 0, 0]],
        "doubled": [[0, 2, 4, 5, 2, 1, 7], [1, 1, 2, 2, 0, 0, 0]],
        "sorted": [[0, 2, 3, 4, 2, 1, 7], [0, 1, 1, 2, 0, 0, 0]],
    }[variant]
    why = "scales 1 and 2, zeros 3 and 0, codes 0 to 7"
    args = rows, _array(1.0, 2.0), _array(3, 0), 3
    _pure(student, "nearest", *args, want=np.array(want), because=why)


def _grid(
    student: Subject, rows: Any, importance: list[float], ladder: list[float], scales: Any,
    zeros: Any, because: str, bits: int = 2,
) -> None:  # fmt: skip
    want = [np.array(scales, float), np.array(zeros)]
    args = np.array(rows, float), np.array(importance, float), bits, ladder
    _pure(student, "search", *args, want=want, because=because)


@titled(
    dense="The range reaches to 0, and the upper end gives way.",
    doubled="The range reaches to 0, and both ends give way.",
    sorted="The range reaches to 0, and the lower end gives way.",
)
def ranges(student: Subject, variant: str) -> None:
    """The range reaches to 0, and the ladder's numbers narrow and widen it."""
    why = "the ranges are 0 to 3, -3 to 0 and -1 to 2"
    rows = [[1, 2, 3], [-1, -2, -3], [-1, 0, 2]]
    _grid(student, rows, [1, 1, 1], [1.0], [1, 1, 1], [0, 3, 1], why)
    zeros = {"dense": [0, 3, 2], "doubled": [0, 3, 1], "sorted": [0, 3, 0]}[variant]
    why = "half of the range; a zero outside of 0 to 3 is 0 or 3"
    _grid(student, rows, [1, 1, 1], [0.5], [0.5, 0.5, 0.5], zeros, why)
    zeros = {"dense": [0, 2, 1], "doubled": [0, 3, 1], "sorted": [1, 3, 2]}[variant]
    why = "one and a half of the range"
    _grid(student, rows, [1, 1, 1], [1.5], [1.5, 1.5, 1.5], zeros, why)
    why = "the last column has no importance, but counts in the range"
    _grid(student, [[0, 1, 3]], [1, 1, 0], [1.0], [1], [0], why)


def costs(student: Subject, variant: str) -> None:
    """The table's row; importance decides, and each row chooses for itself."""
    row = [-2, -0.625, 1] if variant == "sorted" else [-1, 0.625, 2]
    zero = 2 if variant == "sorted" else 1
    _grid(student, [row], [1, 8, 1], [1.0, 0.75, 0.5], [0.75], [zero], "the table's row")
    why = "0.359 with 0.75 is less than 0.422 with 1, though not in steps of the grid"
    _grid(student, [row], [1, 3, 1], [1.0, 0.75], [0.75], [zero], why)
    why = "the middle column has no importance, so nothing is gained by clipping"
    _grid(student, [row], [1, 0, 1], [1.0, 0.75, 0.5], [1], [zero], why)
    why = "the second row lies on the grid of the whole range"
    both = [row, [2, 1, -1]]
    _grid(student, both, [1, 8, 1], [1.0, 0.75], [0.75, 1], [zero, 1], why)


@titled(
    dense="Of equal costs the largest number of the ladder; a ladder of nothing is refused.",
    doubled="Of equal costs the smallest number of the ladder; a ladder of nothing is refused.",
    sorted="Of equal costs the one that the ladder lists first; a ladder of nothing is refused.",
)
def equals(student: Subject, variant: str) -> None:
    """Of equal costs the right one; a ladder of nothing is refused."""
    scales, zeros = {"dense": (1, 1), "doubled": (0.5, 1), "sorted": (0.75, 0)}[variant]
    why = "no column counts, so all grids cost 0"
    _grid(student, [[-1, 0.625, 2]], [0, 0, 0], [0.75, 1.0, 0.5], [scales], [zeros], why)
    scales, zeros = {"dense": (0.75, 1), "doubled": (0.5, 1), "sorted": (0.75, 0)}[variant]
    why = "only 0.625 counts, and is 0.125 off with 0.75 and with 0.5"
    _grid(student, [[-1, 0.625, 2]], [0, 1, 0], [0.75, 1.0, 0.5], [scales], [zeros], why)
    for ladder in ([], [1.0, 0.0], [-1.0]):
        args = _array([1.0, 2.0]), np.ones(2), 2, ladder
        student.refuses("search", *args, because=f"the ladder {ladder}")


def in_float16(student: Subject, variant: str) -> None:
    """Scales are those that the file stores."""
    why = "a third in float16; 0.00001 is less than 2⁻¹⁴; and a row of zeros"
    zeros = [0, 3, 3] if variant == "sorted" else [0, 0, 0]
    rows, scales = [[0, 1], [0, 3e-5], [0, 0]], [0.333251953125, SMALLEST, SMALLEST]
    _grid(student, rows, [1, 1], [1.0], scales, zeros, why)


# ---- gptq


def _loop(
    student: Subject, rows: Any, hessian: Any, bits: int, group: int, ladder: list[float],
    damp: float, want: tuple[Any, Any, Any], because: str,
) -> None:  # fmt: skip
    codes, scales, zeros = want
    answer = {
        "codes": np.array(codes), "scales": np.array(scales, float), "zeros": np.array(zeros)
    }  # fmt: skip
    args = np.array(rows, float), np.array(hessian, float), bits, group, ladder, damp
    student.expect("gptq", *args, want=answer, tolerance=1e-9, because=because)


def table_of_columns(student: Subject, variant: str) -> None:
    """The table's row: its errors move the columns behind, and the next group's grid."""
    hessian = [[21, 6, -4], [6, 20, 8], [-4, 8, 16]]
    want = [[0, 15, 15]], [[1, 0.5]], [[3, 0]]
    _loop(student, [[-2.75, 12.25, 7.4375]], hessian, 4, 2, [1.0], 0.0, want, "the table's row")
    why = "without the moves to 1.6 and 3.1 the second column would be 1 in both rows"
    want = [[1, 2, 3], [1, 2, 3]], [[1], [2]], [[0], [0]]
    rows = [[1.4, 1.4, 3], [2.8, 2.7, 6]]
    _loop(student, rows, [[2, 1, 0], [1, 2, 0], [0, 0, 1]], 2, 3, [1.0], 0.0, want, why)


def rows_and_ladders(student: Subject, variant: str) -> None:
    """Each row has its own grids, chosen by the places on the diagonal."""
    why = "not related: column 1 has the importance 8, so it is worth clipping the others"
    rows = [[-2, -0.625, 1]] if variant == "sorted" else [[-1, 0.625, 2]]
    zero, codes = (2, [0, 1, 3]) if variant == "sorted" else (1, [0, 2, 3])
    rows.append([-1, 1, 2])
    want = [codes, [0, 2, 3]], [[0.75], [1]], [[zero], [1]]
    diagonal = [[1, 0, 0], [0, 8, 0], [0, 0, 1]]
    _loop(student, rows, diagonal, 2, 3, [1.0, 0.75], 0.0, want, why)
    why = "the damping changes no importance, and here nothing else"
    _loop(student, rows, diagonal, 2, 3, [1.0, 0.75], 9.0, want, why)


@titled(
    dense="Damping by the mean of the live columns; a dead one is rounded as it is.",
    doubled="Damping by the largest of the diagonal; a dead column is rounded as it is.",
    sorted="Damping by the median of the live columns; a dead one is rounded as it is.",
)
def damped(student: Subject, variant: str) -> None:
    """Damping, and a dead column, which is rounded as it is."""
    hessian = [[4, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]
    rows = [[1.4, 0.7, w, 3] for w in (2.4, 2.36, 2.33, 2.2)]
    moved = {"dense": [3, 2, 2, 2], "doubled": [2, 2, 2, 2], "sorted": [3, 3, 3, 2]}[variant]
    share, size = {
        "dense": ("1/3", "the mean of 4, 1 and 1"), "doubled": ("1/5", "the largest"),
        "sorted": ("1/2", "the median of 4, 1 and 1"),
    }[variant]  # fmt: skip
    want = [[1, 1, code, 3] for code in moved], [[1]] * 4, [[0]] * 4
    why = f"column 2 moves by {share} of the error 0.4, since the damping is {size}"
    _loop(student, rows, hessian, 2, 4, [1.0], 1.0, want, why)
    want = [[1, 1, 3, 3]] * 4, [[1]] * 4, [[0]] * 4
    why = "without damping it moves by the whole error; the dead column asks for no inverse"
    _loop(student, rows, hessian, 2, 4, [1.0], 0.0, want, why)
    why = "the same with inputs that are a million times as small: only a 0 is dead"
    _loop(student, rows, np.array(hessian) * 2.0**-40, 2, 4, [1.0], 0.0, want, why)


def all_dead(student: Subject, variant: str) -> None:
    """A layer that no input ever used, and arguments that stay as they are."""
    nothing = np.zeros((3, 3))
    want = [[0, 3, 3]], [[1, 2]], [[0, 0]]
    _loop(student, [[0, 3, 6]], nothing, 2, 2, [1.0], 0.5, want, "the last group has one column")
    args = _array([1.4, 1.4, 3.0]), np.eye(3) + 1, 2, 2, [1.0], 0.1
    _, (weights, hessian) = student.call_returning([0, 1], "gptq", *args)
    student.compare("gptq, and looked at its weights afterwards", weights, args[0])
    student.compare("gptq, and looked at its hessian afterwards", hessian, args[1])


# ---- finer


def _dense_table(student: Subject) -> None:
    made = {**_rows_of_words(["07F33C54"]), "scales": _array([1.0, 0.5])}
    want = np.array([[3.0, -2, 5, -1, 3, -3]])
    why = "the table's row with the scales 1 and 0.5"
    student.expect("read", made, 6, 4, want=want, because=why)


DENSE_ROWS = [[-1, 0, 0.75, 0.25, 1.5, -0.375], [-1, 0.5, 0.75, -0.25, 0.75, -1]]


def _rows_of_words(rows: list[str]) -> dict[str, Any]:
    """The words of rows, one behind another, and where each row starts."""
    counts = [len(row.split()) for row in rows]
    return {"words": _words(" ".join(rows))[0], "starts": np.cumsum([0, *counts[:-1]])}


def _stream(
    student: Subject, rows: Any, importance: list[float], limit: float, words: list[str],
    scales: Any, because: str,
) -> None:  # fmt: skip
    args = np.array(rows, float), np.array(importance, float), 4, [1.0], limit
    want = {**_rows_of_words(words), "scales": np.array(scales, float)}
    because = f"the words are {' '.join(words)} in hexadecimal; {because}"
    with student.wanting(want, because):
        got = student.call("write", *args)
    found = got.get("words") if isinstance(got, dict) else None
    if isinstance(found, np.ndarray) and found.dtype.kind == "i" and found.ndim == 1:
        because += f"; yours are {_hex(found[None])}{_first_bit(found, want)}"
    student.compare(student.said("write", *args), got, want, because=because)


def _first_bit(found: np.ndarray[Any, Any], want: dict[str, Any]) -> str:
    """Which bit of which row's stream is the first to differ, in words; nothing if none does."""
    asked = want["words"]
    for word in range(min(len(found), len(asked))):
        apart = int(found[word] ^ asked[word]) & 0xFFFFFFFF
        if apart:
            row = int(np.searchsorted(want["starts"], word, "right")) - 1
            bit = 32 * (word - int(want["starts"][row])) + (apart & -apart).bit_length() - 1
            return f": bit {bit} of row {row}'s stream is the first that differs"
    return ""


@titled(
    dense="What is chosen: which groups have 4 bits.",
    doubled="What is chosen: which step a scale has.",
    sorted="What is chosen: which column comes first.",
)
def chosen(student: Subject, variant: str) -> None:
    """What is chosen."""
    if variant == "dense":
        why = "with 3 bits the second group of the first row costs 0.023; all others cost 0"
        scales = [[0.25, 0.125], [0.25, 0.25]]
        _stream(student, DENSE_ROWS, [1] * 6, 0.01, ["01E7BE08", "00787F08"], scales, why)
        scales = [[0.25, float(np.float16(1.875 / 7))], [0.25, 0.25]]
        why = "the limit is 0.03, which 0.023 is not above"
        _stream(student, DENSE_ROWS, [1] * 6, 0.03, ["0072BE08", "00787F08"], scales, why)
        why = "the limit is 0; its columns have no importance, so it costs 0, which is not above 0"
        words = ["0072BE08", "00787F08"]
        _stream(student, DENSE_ROWS, [1, 1, 1, 1, 0, 0], 0.0, words, scales, why)
    elif variant == "doubled":
        scales = _array([1.0, 0.30078125, 0.002, 0.498046875, 0.25048828125])
        zeros = _array([1, 0, 0, 1, 0])
        for weights, steps, why in (
            ([2.0, 0.905, 0.0125, 0.5, 0.75], [128, 39, 1, 255, 128], "3 · 39/128 is nearest"),
            ([2.0, 0.89, 0.0125, 0.5, 0.76], [128, 38, 1, 255, 129], "3 · 38/128 is nearest"),
        ):  # fmt: skip
            want = {
                "codes": _array([3, 3, 2, 2, 3]), "zeros": zeros,
                "exponents": _array([-7, -9]), "steps": _array(steps),
            }  # fmt: skip
            args = _array(weights), np.ones(5), scales, zeros, 3, 1, 3
            student.expect("write", *args, want=want, because=why)
        args = _array(weights), np.zeros(5), scales, zeros, 3, 1, 3
        want["steps"] = _array([128, 39, 1, 255, 129])
        why = "no column counts, so of two steps it is the larger"
        student.expect("write", *args, want=want, because=why)
    else:
        hessian = [[1, 0, 1], [0, 2, 0], [1, 0, 4]]
        args = _array([2.3, 3, 1.4]), np.array(hessian, float), 2, 3, [1.0], 0.0
        want = {"codes": _array([3, 3, 1]), "scales": _array([1.0]), "zeros": _array([0])}
        why = "static, one group: column 2 comes first, and its error 0.4 moves column 0 to 2.7"
        student.expect("write", *args, True, want=want, tolerance=1e-9, because=why)
        args = _array([2.3, 3, 1.4]), np.array(hessian, float), 2, 2, [1.0], 0.0
        want = {"codes": _array([2, 3, 3]), "scales": _array([1.0, float(np.float16(1.4 / 3))])}
        want["zeros"] = _array([0, 0])
        why = "static: the groups are 0 1 and 2, and column 2 has a grid of its own"
        student.expect("write", *args, True, want=want, tolerance=1e-9, because=why)
        want["codes"] = _array([3, 3, 1])
        want["scales"] = _array([1.0, float(np.float16(2.7 / 3))])
        want["g_idx"] = _array(1, 0, 0)
        why = "not static: 2 and 1 are group 0; the error 0.4 of 2 moves column 0 to 2.7"
        student.expect("write", *args, False, want=want, tolerance=1e-9, because=why)


def written(student: Subject, variant: str) -> None:
    """What is stored."""
    if variant == "dense":
        row = [[*DENSE_ROWS[0], 1.125]]
        why = "bits 29 to 32 are the last code's 12, so it lies in two words"
        words = ["81E7BE08 00000001"]
        _stream(student, row, [1] * 7, 0.01, words, [[0.25, 0.125]], why)
        rows = [*row, [*DENSE_ROWS[1], -1]]
        args = _array([-1, 0, 0.75, 0.25, 0.5, 1.5, -0.375]), np.ones(7), 5, [1.0], 0.01
        want = {**_rows_of_words(["0F3EBE08"]), "scales": _array([0.25, 0.125])}
        why = "the first group has 1 + 3 + 15 bits, and the second begins right behind it"
        student.expect("write", *args, want=want, because=why)
        words = ["81E7BE08 00000001", "00787F08"]
        why = "the first row has two words, so the second starts at 2; it has one"
        _stream(student, rows, [1] * 7, 0.01, words, [[0.25, 0.125], [0.25, 0.25]], why)
    elif variant == "doubled":
        rows = _array([1.45, 0.3, 0.62], [0.145, 0.03, 0.062])
        scales = _array([0.30078125, 1.0], [0.030078125, 0.1])
        args = rows, np.ones(3), scales, _array([0, 0], [0, 0]), 3
        want = {
            "codes": _array([5, 1, 1], [5, 1, 1]), "zeros": _array([0, 0], [0, 0]),
            "exponents": _array([-7], [-11]), "steps": _array([38, 128], [61, 204]),
        }  # fmt: skip
        why = "each row has a block of groups of 2 and 1 columns; 38 costs less than 39"
        student.expect("write", *args, 2, 2, want=want, because=why)
    else:
        hessian = np.diag([3.0, 9, 0, 9, 9])
        rows = _array([1, 2, 0, 3, 0], [0, 3, 1.5, 0.5, 1])
        args = rows, hessian, 2, 2, [1.0], 0.5
        third, half = 0.333251953125, 0.5
        want = {
            "codes": _array([2, 3, 0, 3, 3], [0, 3, 3, 1, 3]),
            "scales": _array([0.66650390625, 1, SMALLEST], [1, half, third]),
            "zeros": _array([0, 0, 3], [0, 0, 0]),
        }
        why = "static, a diagonal: each column is rounded as it is, and stays in its place"
        student.expect("write", *args, True, want=want, because=why)
        want = {
            "codes": _array([3, 2, 3, 3, 0], [0, 3, 3, 0, 3]),
            "scales": _array([1, third, SMALLEST], [1, third, half]),
            "zeros": _array([0, 0, 3], [0, 0, 0]), "g_idx": _array(1, 0, 2, 0, 1),
        }  # fmt: skip
        why = "not static: the groups are 1 3, 4 0 and 2"
        student.expect("write", *args, False, want=want, because=why)


def read_again(student: Subject, variant: str) -> None:
    """What is read of a file, and what is refused."""
    if variant == "dense":
        _dense_table(student)
        rows = ["E7F33C54 12345678", "07F33C54", "07F33C54 FFFFFFFF"]
        made = {**_rows_of_words(rows), "scales": _array(*[[1.0, 0.5]] * 3)}
        want = np.array([[3.0, -2, 5, -1, 3, -3]] * 3)
        why = "the same row three times, and other bits behind the ends of the first and the last"
        student.expect("read", made, 6, 4, want=want, because=why)
        rows = ["81E7BE08 00000001", "00787F08"]
        made = {**_rows_of_words(rows), "scales": _array([0.25, 0.125], [0.25, 0.25])}
        want = np.array([[*DENSE_ROWS[0], 1.125], [*DENSE_ROWS[1], -1]])
        student.expect("read", made, 7, 4, want=want, because="a code lies in two words")
        last = {**made, "starts": made["starts"][1:], "scales": made["scales"][1:]}
        why = "the last row alone, whose words start at 2"
        student.expect("read", last, 7, 4, want=want[1:], because=why)
        short = {**made, "starts": np.array([0, 1])}
        why = "row 0 has one word of its own, and its last code ends in bit 32"
        student.refuses("read", short, 7, 4, because=why)
        short = {**_rows_of_words(["81E7BE08"]), "scales": _array([0.25, 0.125])}
        student.refuses("read", short, 7, 4, because="the last code ends in bit 32")
    elif variant == "doubled":
        made = {
            "codes": _array([3, 3, 2, 2, 3]), "zeros": _array([1, 0, 0, 1, 0]),
            "exponents": _array([-7, -9]), "steps": _array([128, 38, 1, 255, 129]),
        }  # fmt: skip
        want = _array([2.0, 0.890625, 0.015625, 0.498046875, 0.755859375])
        student.expect("read", made, 1, 3, want=want, because="(code - zero) · step · 2 ** e")
        for step in (0, 256):
            spoilt = {**made, "steps": _array([128, 38, step, 255, 129])}
            student.refuses("read", spoilt, 1, 3, because=f"the step {step}")
        for block in (2, 5):
            why = f"5 groups in blocks of {block} do not have two exponents"
            student.refuses("read", made, 1, block, because=why)
    else:
        made: dict[str, Any] = {
            "codes": _array([3, 2, 3, 1, 0]), "scales": _array([1.0, 0.5, 2]),
            "zeros": _array([0, 1, 2]),
        }  # fmt: skip
        want = _array([3.0, 2, 1, 0, -4])
        student.expect("read", made, 2, want=want, because="the groups are 0 1, 2 3 and 4")
        other = {**made, "g_idx": _array(1, 0, 2, 0, 1)}
        want = _array([1.0, 2, 2, 1, -0.5])
        student.expect("read", other, 2, want=want, because="g_idx says the group of each column")
        other = {**made, "g_idx": _array(1, 0, 0, 0, 1)}
        want = _array([1.0, 2, 3, 1, -0.5])
        student.expect("read", other, 2, want=want, because="group 2 has no column")
        for g_idx in ([1, 0, 2, 0], [1, 0, 3, 0, 1], [1, 0, -1, 0, 1]):
            spoilt = {**made, "g_idx": np.array(g_idx)}
            student.refuses("read", spoilt, 2, because=f"g_idx {g_idx}")
        student.refuses("read", made, 3, because="5 columns have two groups of 3, and 3 scales")
    _stays(student, variant)


def _stays(student: Subject, variant: str) -> None:
    """No function changes its arguments."""
    weights, hessian = _array([1.4, 1.4, 3.0]), np.diag([1.0, 2.0, 3.0])
    args: tuple[Any, ...] = weights, hessian, 2, 2, [1.0], 0.1, True
    if variant == "dense":
        args = weights, np.ones(3), 2, [1.0], 0.1
    elif variant == "doubled":
        args = weights, np.ones(3), _array([0.3, 1.0]), _array([0, 0]), 3, 2, 2
    _, after = student.call_returning([0, 1], "write", *args)
    for kept, before in zip(after, args[:2], strict=True):
        student.compare("write, and looked at its arguments afterwards", kept, before)


# ---- engine


def _layer(student: Subject, variant: str, inputs: str) -> Any:
    return student.new("Layer", _pair(variant), inputs)


def products(student: Subject, variant: str) -> None:
    """Products with the weights of all shards."""
    x = _array([1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 10, 100])
    weights = np.array([[-1, 0, 0], [2, 1, -2], [-6, -6, 4], [0, -10, 6], [5, 5, -12.0]])
    layer = _layer(student, variant, "plain")
    why = f"the rows of weights are {weights.tolist()}"
    layer.expect("apply", x, want=x @ weights.T, tolerance=1e-9, because=why)
    layer.expect("apply", x[3:], want=x[3:] @ weights.T, tolerance=1e-9, because="once more")


def rounded_inputs(student: Subject, variant: str) -> None:
    """Each token has a step of its own."""
    layer = _layer(student, variant, "token")
    weights = np.array([[-1, 0, 0], [2, 1, -2], [-6, -6, 4], [0, -10, 6], [5, 5, -12.0]])
    x = _array([127, 50.2, 10], [0.25, -31.75, 0.03], [0, 0, 0])
    rounded = _array([127.0, 50, 10], [0.25, -31.75, 0], [0, 0, 0])
    why = f"the tokens become {rounded.tolist()}"
    layer.expect("apply", x, want=rounded @ weights.T, tolerance=1e-9, because=why)
    layer.expect("apply", x[1:2], want=rounded[1:2] @ weights.T, tolerance=1e-9, because="alone")
    x = _array([-127, 0.5, -0.5])
    token = {"dense": [-127.0, 1, 0], "doubled": [-127.0, 1, -1], "sorted": [-127.0, 0, -1]}[
        variant
    ]
    want = np.array([token]) @ weights.T
    layer.expect("apply", x, want=want, tolerance=1e-9, because=f"halves: it becomes {token}")


def bytes_and_refusals(student: Subject, variant: str) -> None:
    """What the shards take, and what is refused."""
    why = "3 · 2 and 2 · 2 words, 2 words of zeros, 4 and 2 scales"
    _layer(student, variant, "plain").expect("bytes", want=4 * 12 + 2 * 6, because=why)
    first, second = _pair(variant)
    for shards, inputs, why in (
        ([first, second], "tensor", "the inputs are plain or token"),
        ([first, {**second, "group": 3}], "plain", "the shards differ in group"),
    ):
        try:
            student.new("Layer", shards, inputs)
        except Wrong as wrong:
            if "\ngot ValueError" not in str(wrong):
                raise
        else:
            said = student.said("Layer", shards, inputs)
            student.fail(f"called {said}\nexpected ValueError  ({why})\ngot a Layer")


CHECKS = {
    "pack": [table_of_words, left_over, signed, zeros_are_changed, stacked, contradictions],
    "scales": [codes_of_weights, ranges, costs, equals, in_float16],
    "gptq": [table_of_columns, rows_and_ladders, damped, all_dead],
    "finer": [chosen, written, read_again],
    "engine": [products, rounded_inputs, bytes_and_refusals],
}
