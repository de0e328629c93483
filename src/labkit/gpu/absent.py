"""What stands in for Triton in a notebook on a system that has none, such as macOS.

A lab's cells define kernels, so they import Triton. Without it a notebook would stop at the first
of them, before the cell that hands the work in. Nothing can be launched with the stand-in.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

WORDS = (
    "There is no Triton on this system, so the checks and the measurement cannot run; the cells "
    "can, and what you write can be handed in. Linux and Colab have it."
)


class _Language(ModuleType):
    """`triton.language`: every name is there, and none does anything."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return object()


def stand_in() -> bool:
    """Put a stand-in where Triton would be, unless it is there; say so, and return whether."""
    if importlib.util.find_spec("triton") is not None:
        return False
    triton = ModuleType("triton")
    language = _Language("triton.language")
    members = {
        "jit": lambda function: function,
        "cdiv": lambda a, b: -(-a // b),
        "next_power_of_2": lambda n: 1 << max(n - 1, 0).bit_length(),
        "language": language,
    }
    for name, value in members.items():
        setattr(triton, name, value)
    sys.modules["triton"], sys.modules["triton.language"] = triton, language
    print(WORDS)
    return True
