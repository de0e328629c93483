"""How the engine launches a kernel on Hopper, learned from its launcher without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.uint8: "*u8",
}


@dataclass(frozen=True)
class Launch:
    """A kernel as a step of a ladder launches it."""

    step: str
    kernel: Any
    signature: dict[str, str]  # type of each argument, see `ptx_counts`
    constants: dict[str, Any]
    options: dict[str, int] = field(default_factory=dict)


def launch_of(step: str, module: ModuleType, name: str, work: Callable[[], object]) -> Launch:
    """Return the last launch of `module.name` in `work()`, which starts no kernel.

    The launcher is told that it is on a GPU that starts kernels early, as an H200 does.
    """
    kernel = getattr(module, name)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    class Recorder:
        def __getitem__(self, grid: object) -> Callable[..., None]:
            return lambda *args, **kwargs: calls.append((args, kwargs))

    with patch.object(module, name, Recorder()), patch.object(module, "starts_early", _yes):
        work()
    args, kwargs = calls[-1]
    given = {**dict(zip(kernel.arg_names, args, strict=False)), **kwargs}
    constant = {each.name for each in kernel.params if each.is_constexpr}
    signature, constants = {}, {}
    for argument in kernel.arg_names:
        if argument not in given:
            continue  # has a default
        value = given[argument]
        # Triton makes None, a truth value and the number 1 constants of a kernel.
        if argument in constant or (not isinstance(value, Tensor) and value in (None, 1)):
            constants[argument] = value
        else:
            signature[argument] = _type_of(value)
    options = {each: given[each] for each in ("num_warps", "num_stages") if each in given}
    return Launch(step, kernel, signature, constants, options)


def _yes(x: Tensor) -> bool:
    return True


def _type_of(value: Tensor | int | float) -> str:
    """Return what Triton compiles for: a pointer, a number, a number that is a multiple of 16."""
    if isinstance(value, Tensor):
        return TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32:16" if value % 16 == 0 else "i32"
