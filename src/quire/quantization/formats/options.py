"""Values out of a `quantization_config`, and the two ways to refuse one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from quire.errors import CheckpointError, UnsupportedModelError

REMEDY = (
    "load the unquantized original, which quire can quantize itself, or a checkpoint in "
    "compressed-tensors (pack-, int- or float-quantized), GPTQ, AWQ (gemm) or FP8"
)
BITS = (2, 4, 8)  # of integers in words; others cross words, and producers differ in how


def unsupported(what: str, remedy: str = REMEDY) -> UnsupportedModelError:
    """Return the error for a quantization that quire lacks."""
    return UnsupportedModelError(f"quantization_config: {what} is not supported; {remedy}")


def table(options: Mapping[str, Any], key: str) -> Mapping[str, Any] | None:
    """Return a table inside a table, None where there is none.

    Raises:
        CheckpointError: it is something else.
    """
    value = options.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise _senseless(key, value, "a table")
    return value


def integer(options: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """Return an integer.

    Raises:
        CheckpointError: it is missing and there is no default, or it is something else.
    """
    value = default if options.get(key) is None else options[key]
    if isinstance(value, bool) or not isinstance(value, int):
        raise _senseless(key, value, "an integer")
    return value


def flag(options: Mapping[str, Any], key: str, default: bool) -> bool:
    """Return true or false.

    Raises:
        CheckpointError: it is something else.
    """
    value = default if options.get(key) is None else options[key]
    if not isinstance(value, bool):
        raise _senseless(key, value, "true or false")
    return value


def names(options: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Return a list of strings, empty where there is none.

    Raises:
        CheckpointError: it is something else.
    """
    value = options.get(key) or []
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise _senseless(key, value, "a list of names")
    return tuple(value)


def size_of_groups(options: Mapping[str, Any], key: str, default: int | None = None) -> int | None:
    """Return the columns of a group; None, which configs write as -1, for a whole row.

    Raises:
        CheckpointError: it makes no sense.
    """
    size = integer(options, key, default)
    if size == 0 or size < -1:
        raise _senseless(key, size, "a number of columns, or -1 for a whole row")
    return None if size == -1 else size


def bits_of(options: Mapping[str, Any], key: str, allowed: Collection[int] = BITS) -> int:
    """Return the bits of a weight.

    Raises:
        UnsupportedModelError: a number that quire does not read.
    """
    bits = integer(options, key)
    if bits not in allowed:
        raise unsupported(f"{key}={bits} (of {', '.join(map(str, allowed))})")
    return bits


def _senseless(key: str, value: Any, wanted: str) -> CheckpointError:
    return CheckpointError(f"quantization_config: {key}={value!r} must be {wanted}")
