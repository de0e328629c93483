"""The flags of a command that makes an `LLM` on several ranks: one for each `ParallelOptions`.

They are made from its fields, `tensor_parallel_size` becoming `--tensor-parallel-size`, so that an
option that the engine gets is a flag as well. vLLM has the same names. See the chapter
"Parallelism".
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
from dataclasses import fields
from types import NoneType
from typing import Any, get_args, get_type_hints

from quire.parallel.options import ParallelOptions


def add_rank_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare a flag for each field of `ParallelOptions`, under a heading of their own."""
    group = parser.add_argument_group("ranks")
    types, texts = get_type_hints(ParallelOptions), _descriptions(ParallelOptions)
    for field in fields(ParallelOptions):
        flag, text = f"--{field.name.replace('_', '-')}", texts.get(field.name, "")
        if "default" not in text:
            text += f" (default: {field.default})"
        text = text.replace("%", "%%")  # which argparse would take for one of its own
        if types[field.name] is bool:
            action = argparse.BooleanOptionalAction
            group.add_argument(flag, action=action, default=field.default, help=text)
        else:
            kind = _without_none(types[field.name])
            group.add_argument(
                flag, type=kind, default=field.default, metavar=kind.__name__.upper(), help=text
            )


def rank_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `LLM` that the flags stand for."""
    return {field.name: getattr(args, field.name) for field in fields(ParallelOptions)}


def is_follower(options: dict[str, Any]) -> bool:
    """Whether torchrun started this process as a rank that only serves the first one.

    An `LLM` made here ends the program (`quire.parallel.launched`), so what concerns the program
    alone, such as its standard input, which all ranks share, must be left to the first rank.
    """
    launched = options["distributed_executor_backend"] == "external_launcher"
    return launched and os.environ.get("RANK", "0") != "0"


def _without_none(kind: Any) -> type:
    """Return the type of a field that may be None as well."""
    (plain,) = set(get_args(kind) or (kind,)) - {NoneType}
    return plain


def _descriptions(group: type) -> dict[str, str]:
    """Return what the docstring of a group of options says of each, under "Args:"."""
    _, _, listed = inspect.cleandoc(group.__doc__ or "").partition("Args:\n")
    parts = re.split(r"^ {4}(\w+): ", listed, flags=re.MULTILINE)
    return {
        name: " ".join(text.split()) for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }
