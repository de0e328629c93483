"""What one of the groups of a compressed-tensors config says about the layers that it targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.quantization.formats.compressed_tensors import Integers
from quire.quantization.formats.fp8 import FP8
from quire.quantization.formats.interface import WeightFormat
from quire.quantization.formats.options import (
    BITS,
    bits_of,
    flag,
    integer,
    size_of_groups,
    table,
    unsupported,
)
from quire.quantization.scheme import Inputs, Scheme

PLAIN = ("int-quantized", "float-quantized", "naive-quantized")  # one number an element
IN_ORDER = (None, False, "weight", "static")
OUT_OF_ORDER = (True, "group", "dynamic")


def format_of(group: Mapping[str, Any], name: str, storage: str) -> WeightFormat | None:
    """Return how the layers of a group are stored; None: they stay as they are.

    Args:
        group: one of the tables in `config_groups`.
        name: its name, for errors.
        storage: the config's `format`, where the group has none of its own.

    Raises:
        CheckpointError: a value that makes no sense.
        UnsupportedModelError: numbers or a storage that quire lacks.
    """
    weights, inputs = table(group, "weights"), table(group, "input_activations")
    if table(group, "output_activations") is not None:
        raise unsupported(f"output_activations of {name}")
    if weights is None:
        if inputs is not None:
            raise unsupported(f"rounding the inputs of {name}, and not its weights,")
        return None
    storage = group.get("format") or storage
    if storage == "mixed-precision":  # each group its own, and this one does not say which
        packed = weights.get("type", "int") == "int" and inputs is None
        storage = "pack-quantized" if packed else "naive-quantized"
    if storage != "pack-quantized" and storage not in PLAIN:
        raise unsupported(f"format {storage!r} of {name}")
    if weights.get("type", "int") == "float":
        return _floats(weights, inputs, name, storage)
    if weights.get("type", "int") != "int":
        raise unsupported(f"type {weights['type']!r} of {name}")
    return _integers(weights, inputs, name, storage)


def _floats(
    weights: Mapping[str, Any], inputs: Mapping[str, Any] | None, name: str, storage: str
) -> WeightFormat:
    bits, strategy = integer(weights, "num_bits", 8), _strategy(weights)
    if bits != 8 or storage == "pack-quantized":
        raise unsupported(f"floating-point numbers of {bits} bits in {storage!r} ({name})")
    if not flag(weights, "symmetric", True):
        raise unsupported(f"asymmetric floating-point numbers ({name})")
    size, block_rows = None, 1
    if strategy == "block":
        block_rows, size = block_of(weights, "block_structure")
    elif strategy == "group":
        size = size_of_groups(weights, "group_size")
    elif strategy not in ("tensor", "channel"):
        raise unsupported(f"strategy {strategy!r} of {name}")
    return FP8(Scheme("fp8", 8, size, block_rows, True, _inputs(inputs, "float", size, name)))


def _integers(
    weights: Mapping[str, Any], inputs: Mapping[str, Any] | None, name: str, storage: str
) -> WeightFormat:
    strategy, order = _strategy(weights), weights.get("actorder")
    bits = bits_of({"num_bits": 8, **weights}, "num_bits", BITS)
    if strategy not in ("tensor", "channel", "group"):
        raise unsupported(f"strategy {strategy!r} of integers ({name})")
    if order not in IN_ORDER and order not in OUT_OF_ORDER:
        raise unsupported(f"actorder {order!r} of {name}")
    size = size_of_groups(weights, "group_size") if strategy == "group" else None
    symmetric = flag(weights, "symmetric", True)
    scheme = Scheme("int", bits, size, 1, symmetric, _inputs(inputs, "int", size, name))
    act_order = size is not None and order in OUT_OF_ORDER
    return Integers(scheme, storage == "pack-quantized", act_order)


def _strategy(options: Mapping[str, Any]) -> str:
    """Return which weights share a scale, as compressed-tensors infers it."""
    if options.get("strategy"):
        return str(options["strategy"]).lower()
    if options.get("group_size") is None:
        return "tensor"
    return "channel" if size_of_groups(options, "group_size") is None else "group"


def _inputs(
    options: Mapping[str, Any] | None, kind: str, group_size: int | None, name: str
) -> Inputs:
    """Return what the inputs are rounded to.

    Raises:
        UnsupportedModelError: other numbers than 8 bits of the weights' kind, or groups that
            are not the weights'.
    """
    if options is None:
        return "plain"
    bits, strategy = integer(options, "num_bits", 8), _strategy(options)
    dynamic = options.get("dynamic", False)
    what = (
        f"inputs of {bits} bits {options.get('type', 'int')!r} with a scale a {strategy} ({name})"
    )
    if bits != 8 or options.get("type", "int") != kind:
        raise unsupported(f"{what} beside weights of {kind!r}")
    if not flag(options, "symmetric", True):
        raise unsupported(f"{what}, asymmetric,")
    if dynamic is True and strategy == "token":
        return "token"
    if dynamic is True and strategy == "group":
        if size_of_groups(options, "group_size") == group_size:
            return "group"
        raise unsupported(f"{what} of another size than the weights'")
    if dynamic is False and strategy == "tensor":
        return "tensor"
    raise unsupported(f"{what}, dynamic={dynamic!r},")


def block_of(options: Mapping[str, Any], key: str) -> tuple[int, int]:
    """Return the rows and columns of a block, [128, 128] or "128x128" in the config.

    Raises:
        UnsupportedModelError: it is something else.
    """
    value = options.get(key)
    if isinstance(value, str):
        value = [int(part) if part.isdecimal() else part for part in value.split("x")]
    if (
        not isinstance(value, list | tuple)
        or len(value) != 2
        or not all(type(part) is int and part > 0 for part in value)
    ):
        raise unsupported(f"{key}={options.get(key)!r}", "it must be [rows, columns]")
    return value[0], value[1]
