"""Comparing an answer with what was expected, and saying both in words.

Answers have crossed the wire, so they are builtins or NumPy arrays and nothing can lie
about being equal; the types are compared all the same.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

MAX_SHOWN = 160  # characters of a value in a message
MAX_ITEM = 40  # of an item in it, at least
PACKED = 1 << 16  # integers from here on are most likely words that hold smaller numbers


def describe(value: Any, limit: int = MAX_SHOWN) -> str:
    """Return a short, readable form of a value."""
    if isinstance(value, np.ndarray):
        text = np.array2string(value, precision=5, separator=", ", threshold=12, edgeitems=4)
        text = " ".join(text.split())
        if value.size > 12:
            text = f"array of shape {value.shape}: {text}"
    elif isinstance(value, float):
        text = f"{value:.6g}"
    elif isinstance(value, list):
        text = "[" + ", ".join(describe(item, MAX_ITEM) for item in value[:40]) + "]"
        if len(value) > 40:
            text = text[:-1] + f", … {len(value)} items]"
    elif isinstance(value, dict):
        share = max(MAX_ITEM, limit // max(len(value), 1))
        text = "{" + ", ".join(f"{k!r}: {describe(v, share)}" for k, v in value.items()) + "}"
    else:
        text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def in_full(value: Any) -> str:
    """Return a value whole, as Python writes it; an array as a list of its numbers."""
    if isinstance(value, np.ndarray):
        text = np.array2string(
            value, separator=", ", threshold=sys.maxsize, floatmode="unique", max_line_width=1 << 30
        )
        return " ".join(text.split())
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(in_full, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {in_full(v)}" for k, v in value.items()) + "}"
    return repr(value)


def difference(got: Any, want: Any, tolerance: float = 0.0) -> str | None:
    """Say where `got` differs from `want`, or return None.

    Numbers agree within `tolerance`, relative to `want` and at least absolute; NaN agrees
    with nothing. A list is accepted for an array. bool, int, str and bytes must have the
    very type.
    """
    if isinstance(want, np.ndarray):
        return _array_difference(got, want, tolerance)
    if isinstance(want, list | tuple):
        if isinstance(got, np.ndarray):
            got = got.tolist()
        if type(got) is not list:
            return f"expected a list, got {_kind(got)}"
        if len(got) != len(want):
            return f"expected {len(want)} items, got {len(got)}"
        return _first(got, want, range(len(want)), tolerance)
    if isinstance(want, dict):
        if type(got) is not dict or got.keys() != want.keys():
            return f"expected a dict with the keys {sorted(want)}, got {describe(got)}"
        return _first(got, want, want, tolerance)
    if isinstance(want, float):
        return _number_difference(got, want, tolerance)
    if type(got) is not type(want):
        return f"expected {_kind(want)}, got {_kind(got)}"
    return None if got == want else f"expected {describe(want)}, got {describe(got)}"


def _first(got: Any, want: Any, keys: Any, tolerance: float) -> str | None:
    for key in keys:
        found = difference(got[key], want[key], tolerance)
        if found is not None:
            return f"at [{key!r}]: {found}"
    return None


def _number_difference(got: Any, want: float, tolerance: float) -> str | None:
    if type(got) not in (int, float):
        return f"expected a number, got {_kind(got)}"
    if math.isinf(want) or not math.isfinite(got):
        same = got == want
    else:
        same = abs(got - want) <= tolerance * max(1.0, abs(want))
    return None if same else f"expected {describe(want)}, got {describe(got)}"


def _array_difference(got: Any, want: np.ndarray[Any, Any], tolerance: float) -> str | None:
    try:
        # NumPy would make room in every item of a list for the longest string in it.
        given = np.asarray(got if _may_be_numbers(got) else None)
    except ValueError:  # lists of unlike lengths
        given = np.array(None)
    if given.dtype.kind not in "biuf":
        return f"expected numbers of shape {want.shape}, got {_kind(got)}"
    if given.shape != want.shape:
        return f"expected shape {want.shape}, got {given.shape}"
    answer, given = given, given.astype(np.float64)
    with np.errstate(invalid="ignore"):
        off = ~(np.abs(given - want) <= tolerance * np.maximum(1.0, np.abs(want)))
    # A share of infinity is infinite, and any number within it: infinity is compared as it is.
    off = np.where(np.isinf(want), given != want, off)
    if not off.any():
        return None
    place = tuple(int(i) for i in np.argwhere(off)[0])
    shown = place[0] if len(place) == 1 else place
    return (
        f"at index {shown}: expected {_number(want[place])}, got {_number(answer[place])} "
        f"({int(off.sum())} of {want.size} numbers are off)"
    )


def _number(value: Any) -> str:
    """A number of an array: an integer whole, and in hexadecimal too where it may be packed."""
    if value.dtype.kind not in "biu":
        return f"{float(value):.6g}"
    number = int(value)
    packed = abs(number) >= PACKED and -(1 << 31) <= number < 1 << 32
    return f"{number} ({number & 0xFFFFFFFF:08X})" if packed else str(number)


def _may_be_numbers(value: Any) -> bool:
    if type(value) is list:
        return all(map(_may_be_numbers, value))
    return isinstance(value, bool | int | float | np.ndarray)


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    if type(value) in (bool, int, float):
        return f"the {type(value).__name__} {describe(value)}"
    return f"a value of type {type(value).__name__}"
