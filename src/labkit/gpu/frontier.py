"""What the judges of frontier tasks share: finding a notebook's cell, compiling it, the command."""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from labkit.gpu.runner import Argument, Device, Launch, NoGpu, Pointer
from labkit.grading.variants import choose, read_key
from labkit.reader.cells import frontier_cells, frontier_of, written_frontier
from labkit.reader.lab import Lab, LabError
from labkit.reader.subject import Wrong, in_child
from labkit.reader.values import describe
from labkit.reader.work import load_notebook, read_work
from labkit.sandbox.process import Child, Limits, NoSandbox, Surroundings, printable

FIRST_SEED = 1 << 20  # of what is judged, behind those that a notebook shows its reader
SEED_BITS = 64  # of a trace's own seed: too many to try
MARK = "# frontier: policy"
KERNEL_MARK = "# frontier: kernel"
COMPILER = Path(__file__).with_name("compile_kernel.py")
COMPILING = Limits(call_seconds=60.0, wall_seconds=120.0, cpu_seconds=100)
MAX_PTX = 1 << 20  # characters; a kernel of a few lines has ten thousand
MAX_WARPS = 32
# What a PTX says only to its readers, or could say to mislead the expressions below.
ASIDE = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)")
PARAMETER = re.compile(r"\.param\s+\.[busf](32|64)\s[^\[\]]*")


def cell_of(path: Path, mark: str) -> str:
    """Return the source of the code cell that has the line `mark`, of a notebook or a submit file.

    Raises:
        SystemExit: it has none, or the file is neither. `labkit.submit` leaves out a cell that is
            as the starter has it.
    """
    name = frontier_of(mark)
    try:
        found = _frontier_cells(path)
    except LabError as error:
        raise SystemExit(str(error)) from None
    if name not in found:
        what = "written cell" if path.suffix == ".json" else "cell"
        raise SystemExit(f"{path} has no {what} with the line {mark!r}")
    return found[name]


def _frontier_cells(path: Path) -> dict[str, str]:
    if path.suffix == ".json":
        return read_work(path).frontier
    return frontier_cells(load_notebook(path)["cells"])


def trace_seeds(salt: int, seed: int, count: int) -> list[int]:
    """Return the seeds of the traces that a policy is judged on, of a seed of the course.

    `salt` is the lab's. Without a course's key it alone stands between a policy and its traces:
    whoever has read it knows them.
    """
    drawn = random.Random(f"{salt} {seed}")
    return [drawn.getrandbits(SEED_BITS) for _ in range(count)]


def refusal(cause: str) -> Wrong:
    """Make the complaint about a policy that cannot be judged to its end, in one line."""
    return Wrong(f"bonus 0.0 of 10: {' '.join(cause.split())}")


def compile_cell(
    source: str,
    name: str,
    arguments: Mapping[str, Argument],
    sizes: dict[str, int],
    device: Device,
    *,
    unsafe_local: bool = False,
) -> Launch:
    """Compile a cell's kernel for a GPU, in a child that has none.

    Args:
        source: the cell: the kernel, and `launch(**sizes)`, which says how it is launched.
        name: of the kernel.
        arguments: what the kernel may take, by the names of its parameters.
        sizes: what `launch` is told.
        device: the GPU.
        unsafe_local: as `Child` takes it.

    Raises:
        Wrong: the cell or its kernel is not what was asked for.
        NoSandbox: there is no child to be had here.
    """
    offered = {one: to.kind if isinstance(to, Pointer) else "i32" for one, to in arguments.items()}
    offsets = {one: to.offset if isinstance(to, Pointer) else to for one, to in arguments.items()}
    aligned = [one for one, offset in offsets.items() if offset % 16 == 0]
    cells = [["compile_kernel", COMPILER.read_text("utf8")], ["kernel", source]]
    asked = [name, offered, aligned, sizes, device.capability]
    surroundings = Surroundings(("triton",))
    with Child(surroundings, COMPILING, unsafe_local=unsafe_local) as child:
        ask = in_child(child)
        loaded = ask({"op": "load", "cells": cells, "readable": True})
        if "error" in loaded:
            raise Wrong(f"running the cell: {loaded['error']}")
        reply = ask({"op": "call", "name": "compile_kernel", "args": asked})
    if "error" in reply:
        raise Wrong(f"compiling the cell: {reply['error']}")
    return checked(reply["value"], name, arguments, device)


def checked(reply: Any, name: str, arguments: Mapping[str, Argument], device: Device) -> Launch:
    """Make a launch of what a child answered, which may be anything that JSON can hold.

    Raises:
        Wrong: something in it has another type, size or name than a launch on `device` allows.
    """
    if type(reply) is not dict:
        raise Wrong("the child did not answer with a kernel")
    if type(reply.get("refused")) is str:
        raise Wrong(printable(reply["refused"]))
    grid = _list(reply, "grid", int, 1, 3)
    for blocks, most in zip(grid, device.max_grid, strict=False):
        if not 1 <= blocks <= most:
            raise Wrong(f"launch: grid {grid}: expected 1 to {most} programs, got {blocks}")
    warps = _whole(reply, "num_warps", 1, min(MAX_WARPS, device.max_threads // 32))
    shared = _whole(reply, "shared", 0, device.shared_bytes)
    names = _list(reply, "arguments", str, 0, len(arguments))
    if len(set(names)) != len(names) or not set(names) <= set(arguments):
        raise Wrong(f"the kernel takes {describe(names)}, not each one of {describe([*arguments])}")
    ptx = reply.get("ptx")
    if type(ptx) is not str or not ptx.isascii() or len(ptx) > MAX_PTX or "\0" in ptx:
        raise Wrong(f"the kernel is no PTX of at most {MAX_PTX} characters")
    taken = tuple(arguments[one] for one in names)
    widths = parameters(ptx, name)
    fits = all(
        width == (64 if isinstance(argument, Pointer) else 32)
        for width, argument in zip(widths, taken, strict=False)
    )
    if not fits or len(widths) < len(taken) or set(widths[len(taken) :]) - {64}:
        raise Wrong(f"the PTX declares parameters of {list(widths)} bits for {describe(names)}")
    x, y, z = [*grid, 1, 1][:3]
    return Launch(ptx, name, widths, taken, shared, warps, (x, y, z))


def parameters(ptx: str, name: str) -> tuple[int, ...]:
    """Return the bits of each parameter that a PTX's one entry, `name`, declares.

    Triton adds two of its own behind the kernel's, pointers to scratch memory.

    Raises:
        Wrong: it has no entry, several, or one of another name, or needs a function of the host's.
    """
    plain = ASIDE.sub(" ", ptx)
    entries = ENTRY.findall(plain)
    if len(entries) != 1 or plain.count(".entry") != 1 or entries[0][0] != name:
        found = describe([entry for entry, _ in entries])
        raise Wrong(f"expected a PTX with one entry, {name!r}, got {found}")
    outside = re.findall(r"\.extern\s+\.func\s*(?:\([^)]*\)\s*)?([\w$]+)", plain)
    if outside:
        raise Wrong(f"the kernel calls {printable(outside[0])}: nothing can be printed or asserted")
    declared = [one.strip() for one in entries[0][1].split(",") if one.strip()]
    matches = [PARAMETER.fullmatch(one) for one in declared]
    if not all(matches):
        raise Wrong("the PTX declares a parameter that is neither a pointer nor a number")
    return tuple(int(match[1]) for match in matches if match)


def _whole(reply: dict[str, Any], key: str, least: int, most: int) -> int:
    value = reply.get(key)
    if type(value) is not int or not least <= value <= most:
        raise Wrong(f"{key}: expected {least} to {most}, got {describe(value)}")
    return value


def _list(reply: dict[str, Any], key: str, kind: type, least: int, most: int) -> list[Any]:
    value = reply.get(key)
    fits = type(value) is list and all(type(item) is kind for item in value)
    if not fits or not least <= len(value or ()) <= most:
        raise Wrong(f"{key}: expected {least} to {most} of {kind.__name__}, got {describe(value)}")
    return list(value or ())


def run(
    lab: Lab,
    description: str,
    judge: Callable[..., float],
    mark: str = MARK,
    switches: tuple[str, ...] = (),
) -> None:
    """Judge one notebook, named on the command line, on the seed of the course's key.

    Without a key the seed is known to everybody, which is said.

    `judge` takes a cell's source and a seed, and by keyword whether each of `switches` was given
    (`unsafe_local` is `--unsafe-local`); it prints its report and returns the bonus.

    Raises:
        SystemExit: the code failed, or cannot be judged on this machine, in words.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--course-key-file", type=Path)
    for switch in switches:
        parser.add_argument(f"--{switch.replace('_', '-')}", action="store_true")
    options = parser.parse_args()
    chosen = {switch: getattr(options, switch) for switch in switches}
    try:
        key = None if options.course_key_file is None else read_key(options.course_key_file)
        judge(cell_of(options.notebook, mark), FIRST_SEED + choose(lab, key).seed, **chosen)
        if key is None:
            print("without --course-key-file the seed is public: right for a workshop, not a grade")
        if "why" in lab.frontier:
            written = written_frontier(_frontier_cells(options.notebook), lab)
            print(f"\n{printable(written.get('why', 'no sentences'))}")
    except (Wrong, LabError, NoGpu, NoSandbox) as wrong:
        raise SystemExit(str(wrong)) from None
