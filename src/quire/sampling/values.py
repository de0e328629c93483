"""How the value of a sampling parameter is read: its plain Python form, or an error by name.

A reader takes the parameter's name and what the caller gave. Scalars of numpy and torch are
taken as the numbers they hold; True and False are never meant as numbers, and NaN lies between
no two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from quire.errors import InvalidRequestError

Reader = Callable[[str, Any], Any]


def is_int(value: object) -> bool:
    """Whether a value is an integer; True and False are not meant as numbers."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value is a number; True and False are not meant as numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def plain(value: Any) -> Any:
    """Return the Python number in a scalar of numpy or torch; anything else as it is."""
    return value.item() if getattr(value, "shape", None) == () else value


def refuse(name: str, value: object, allowed: str) -> NoReturn:
    """Raise InvalidRequestError with what was given and what may be given."""
    raise InvalidRequestError(f"{name}={value!r}: must be {allowed}")


def integer(low: int, high: int, allowed: str) -> Reader:
    """Read an integer of [low, high]."""

    def read(name: str, value: Any) -> int:
        found = plain(value)
        if not (is_int(found) and low <= found <= high):
            refuse(name, value, allowed)
        return found

    return read


def number(low: float, high: float) -> Reader:
    """Read a number of [low, high]."""

    def read(name: str, value: Any) -> float:
        found = plain(value)
        if not is_number(found) or not low <= found <= high:
            refuse(name, value, f"between {low:g} and {high:g}")
        return found

    return read


def flag(name: str, value: Any) -> bool:
    """Read True or False."""
    found = plain(value)
    if not isinstance(found, bool):
        refuse(name, value, "True or False")
    return found


def optional(read: Reader) -> Reader:
    """Take None as it is."""
    return lambda name, value: None if value is None else read(name, value)


def strings(name: str, value: Any) -> list[str]:
    """Read a string or a list of them, none empty; None is the empty list."""
    found = [value] if isinstance(value, str) else [] if value is None else value
    if not (isinstance(found, list | tuple) and all(isinstance(s, str) and s for s in found)):
        refuse(name, value, "a non-empty string or a list of them")
    return list(found)


def words(name: str, value: Any) -> list[str]:
    """Read a list of strings that are more than spaces; None is the empty list."""
    found = [] if value is None else value
    if not (
        isinstance(found, list | tuple)
        and all(isinstance(word, str) and word.strip(" ") for word in found)
    ):
        refuse(name, value, "a list of strings that are more than spaces")
    return list(found)


def token_ids(name: str, value: Any) -> list[int]:
    """Read token ids; None is the empty list. Whether a model has them is seen later."""
    ids = [] if value is None else _token_ids(value)
    if ids is None:
        refuse(name, value, "a list of token ids")
    return ids


def some_token_ids(name: str, value: Any) -> list[int]:
    """Read at least one token id."""
    ids = _token_ids(value)
    if not ids:
        refuse(name, value, "a list of at least one token id")
    return ids


def token_sequences(name: str, value: Any) -> list[list[int]]:
    """Read sequences of token ids, none empty; None is the empty list."""
    listed = [] if value is None else _listed(value)
    found = None if listed is None else [_token_ids(ids) for ids in listed]
    if found is None or not all(found):
        refuse(name, value, "a list of lists of token ids, none of them empty")
    return [ids for ids in found if ids is not None]


def biases(name: str, value: Any) -> dict[int, float]:
    """Read a number a token id, within OpenAI's limits; None is the empty dict."""
    if value is None:
        return {}
    allowed = "a dict from token ids to numbers between -100 and 100"
    if not isinstance(value, Mapping) or _token_ids(value.keys()) is None:
        refuse(name, value, allowed)
    found = {plain(token_id): plain(bias) for token_id, bias in value.items()}
    if not all(is_number(bias) and -100 <= bias <= 100 for bias in found.values()):
        refuse(name, value, allowed)
    return found


def functions(name: str, value: Any) -> list[Callable[..., Any]]:
    """Read a list of functions; None is the empty list."""
    found = [] if value is None else value
    if not (isinstance(found, list | tuple) and all(callable(function) for function in found)):
        refuse(name, value, "a list of functions")
    return list(found)


def _token_ids(value: Any) -> list[int] | None:
    """Return token ids as a list, or None for what holds anything else."""
    listed = _listed(value)
    if listed is None:
        return None
    ids = [plain(token_id) for token_id in listed]
    return ids if all(is_int(token_id) and token_id >= 0 for token_id in ids) else None


def _listed(value: Any) -> list[Any] | None:
    """Return what a list, array, set or range holds; None for text, a dict or one value."""
    found = plain(value)
    if isinstance(found, str | bytes | Mapping) or not isinstance(found, Iterable):
        return None
    return list(found)
