"""Kernels in the interpreter with what it hides put back, and the cells that may hold them."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from labkit.gpu import absent, interpreted
from labkit.gpu.interpreted import Buffer, compare, output, ptx, run
from labkit.reader import kernel_child
from labkit.reader.kernel_child import PACKAGES, harness
from labkit.reader.subject import Subject, Wrong, in_child
from labkit.sandbox.process import Child, Surroundings

CELL = """
import triton
import triton.language as tl


@triton.jit
def twice(x, y, size, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    tl.store(y + i, 2 * tl.load(x + i, inside, other=0.0), inside)


def twice_launch(size):
    return [{"kernel": "twice", "grid": (triton.cdiv(size, 4),), "constants": {"BLOCK": 4},
             "num_warps": 1, "num_stages": 1}]
"""


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    with Child(Surroundings(PACKAGES)) as made:
        yield made


def _loaded(child: Child, cell: str = CELL) -> Subject:
    """A cell behind the harness in the jail, as grading loads it."""
    cells = [["interpreter", harness()], ["twice", cell]]
    reply = child.request({"op": "load", "cells": cells, "readable": True})
    assert "error" not in reply, reply
    student = Subject(in_child(child))
    student.source = cell
    return student


def _run(student: Subject, size: int = 6, **buffers: Buffer) -> interpreted.Ran:
    given = {"x": Buffer("fp32", np.arange(float(size))), "y": output("fp32", size)}
    return run(student, "twice_launch", {"size": size}, given | buffers, {"size": size})


def _fault(child: Child, *edits: tuple[str, str], size: int = 6, **buffers: Buffer) -> str:
    """What is said of the cell after some edits."""
    cell = CELL
    for old, new in edits:
        assert cell.count(old) == 1, old
        cell = cell.replace(old, new)
    with pytest.raises(Wrong) as wrong:
        _compared(_loaded(child, cell), size, **buffers)
    return str(wrong.value)


def _compared(student: Subject, size: int, **buffers: Buffer) -> None:
    ran = _run(student, size, **buffers)
    compare(student, ran, "y", 2.0 * np.arange(size), 0.0)


def test_a_right_kernel_runs_and_is_counted(child: Child) -> None:
    ran = _run(_loaded(child))
    assert ran.data["y"].tolist() == [[0, 2, 4, 6, 8, 10]]
    assert ran.written["y"].all()
    (counts,) = ran.launches
    assert (counts["programs"], counts["loads"], counts["stores"], counts["dots"]) == (2, 2, 2, 0)
    assert counts["read"] == {"x": 24, "y": 0}
    assert counts["written"] == {"x": 0, "y": 24}
    assert counts["most_read"] == 16


def test_a_masked_lane_without_other_reads_poison(child: Child) -> None:
    edit = ("tl.load(x + i, inside, other=0.0)", "tl.sum(tl.load(x + i, inside), 0)")
    assert "got array" not in _fault(child, edit)
    assert "nan" in _fault(child, edit)
    largest = ("tl.load(x + i, inside, other=0.0)", "tl.max(tl.load(x + i, inside), 0)")
    assert "inf" in _fault(child, largest)  # a maximum ignores NaN


def test_one_lane_whose_other_is_0_gets_it(child: Child) -> None:
    """Triton's interpreter takes it for missing."""
    cell = CELL.replace("tl.load(x + i, inside, other=0.0)", "tl.load(x + size, size < 0, other=0)")
    ran = _run(_loaded(child, cell))
    assert ran.data["y"].tolist() == [[0] * 6]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (("tl.load(x + i, inside, other=0.0)", "tl.load(x + i)"),
         r"program \(1, 0, 0\): it reads out of bounds: element 6 of `x`, which has 6 \(and 1"),
        (("tl.load(x + i, inside, other=0.0)", "tl.load(x + i - 1)"), "element -1 of `x`"),
        (("other=0.0), inside)", "other=0.0))"), "writes out of bounds: element 6 of `y`"),
        (("tl.store(y", "tl.store(x"), "writes to `x`, which is an input"),
        (("triton.cdiv(size, 4)", "size // 4"), "2 of 6 numbers of `y` never written"),
        (("program_id(0) * BLOCK", "program_id(0) * (BLOCK - 1)"),
         r"writes what program [01] of the launch has written, in `y`: programs have no order"),
        (("tl.load(x + i, inside, other=0.0)", "tl.load(y + size - 1 - i, inside)"),
         "what program . of the launch has|nan"),
        (("tl.store(y + i, ", "tl.atomic_add(y + i, "), "atomic operation, whose order nobody"),
        (("inside, other=0.0)", "inside, other=0.0).to(tl.bfloat16)"), "it uses bfloat16"),
        (('"num_warps": 1', '"num_warps": 3'), "num_warps is a power of two"),
        (('"num_stages": 1', '"num_stages": 0'), "num_stages is 1 to 16"),
        (('"grid": (triton.cdiv(size, 4),)', '"grid": (0,)'), "a grid is a tuple of one to three"),
        (('"grid": (triton.cdiv(size, 4),)', '"grid": (9999,)'), "more than 4096 programs"),
        (('"kernel": "twice"', '"kernel": "thrice"'), "'thrice' is to name a @triton.jit"),
        (('{"BLOCK": 4}', '{"BLOCK": 4, "B": 1}'), "twice takes no constant B"),
        (('{"BLOCK": 4}', "{}"), "twice takes BLOCK: neither among"),
        (("    return [{", "    return [7, {"), "a list of launches, each a dict"),
        (('"num_stages": 1}]', '"num_stages": 1, "shared": 0}]'), "a launch has the keys"),
        (("@triton.jit\n", ""), "'twice' is to name a @triton.jit"),
    ],
)  # fmt: skip
def test_what_a_gpu_would_punish_is_said(child: Child, edit: tuple[str, str], words: str) -> None:
    said = _fault(child, edit)
    assert re.search(words, said), said


def test_rows_far_apart_take_no_memory_and_32_bits_miss_them(child: Child) -> None:
    far = """
@triton.jit
def twice(x, y, size, BLOCK: tl.constexpr):
    row = tl.program_id(0){cast}
    tl.store(y + row, tl.load(x + row * size))


def twice_launch(size):
    return [{{"kernel": "twice", "grid": (5,), "constants": {{"BLOCK": 4}}, "num_warps": 1,
             "num_stages": 1}}]
"""
    head = CELL.partition("\n\n\n")[0]
    buffers = {
        "x": Buffer("fp32", np.arange(5.0)[:, None], stride=1 << 29),
        "y": output("fp32", 5),
    }
    for cast in (".to(tl.int64)", ""):
        student = _loaded(child, head + far.format(cast=cast))
        arguments = "twice_launch", {"size": 1 << 29}, buffers, {"size": 1 << 29}
        if cast:
            assert run(student, *arguments).data["y"].tolist() == [[0, 1, 2, 3, 4]]
        else:
            with pytest.raises(Wrong, match="offsets here pass 2³¹, so they need 64 bits"):
                run(student, *arguments)


def test_float32_products_lose_what_tf32_loses(child: Child) -> None:
    cell = """
import triton
import triton.language as tl


@triton.jit
def square(x, y, PRECISION: tl.constexpr):
    i = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    tile = tl.load(x + i)
    tl.store(y + i, tl.dot(tile, tile, input_precision=PRECISION))


def square_launch(precision):
    return [{"kernel": "square", "grid": (1,), "constants": {"PRECISION": precision},
             "num_warps": 1, "num_stages": 1}]
"""
    student = _loaded(child, cell)
    tile = np.eye(16) * (1 + 2.0**-12)
    for precision, want in (("ieee", (1 + 2.0**-12) ** 2), ("tf32", 1.0)):
        buffers = {"x": Buffer("fp32", tile.reshape(-1)), "y": output("fp32", 256)}
        ran = run(student, "square_launch", {"precision": precision}, buffers)
        assert ran.data["y"][0, 0] == pytest.approx(want, abs=1e-9)
        assert ran.launches[0]["dots"] == 1


def test_the_order_of_programs_follows_the_seed(child: Child) -> None:
    """Two programs that write one number: which of them is at fault depends on the order."""
    cell = CELL.replace("inside = i < size", "inside = i < size\n    i = tl.arange(0, BLOCK)")
    student = _loaded(child, cell)
    buffers = {"x": Buffer("fp32", np.arange(6.0)), "y": output("fp32", 6)}
    said = set()
    for order in range(8):
        with pytest.raises(Wrong) as wrong:
            run(student, "twice_launch", {"size": 6}, buffers, {"size": 6}, order=order)
        said.add(str(wrong.value).partition("program ")[2][:9])
    assert said == {"(0, 0, 0)", "(1, 0, 0)"}


def test_errors_of_the_cell_name_its_line(child: Child) -> None:
    cell = CELL.replace("size, BLOCK", "size, sizes, BLOCK")
    assert "twice takes sizes" in _message(child, cell)
    cell = CELL.replace("2 * tl.load", "tl.dot(i, i) * tl.load")
    assert "line 10 of the cell twice" in _message(child, cell)


def _message(child: Child, cell: str) -> str:
    with pytest.raises(Wrong) as wrong:
        _run(_loaded(child, cell))
    return str(wrong.value)


def test_ptx_is_that_of_a_hopper(child: Child) -> None:
    student = _loaded(child)
    text = ptx(student, "twice_launch", {"size": 8}, {"x": "fp32", "y": "fp32"}, {"size": 8})
    assert ".target sm_90" in text
    assert "ld.global" in text
    with pytest.raises(Wrong, match="does not compile"):
        ptx(_loaded(child, CELL.replace("2 * tl.load", "[2] * tl.load")), "twice_launch",
            {"size": 8}, {"x": "fp32", "y": "fp32"}, {"size": 8})  # fmt: skip


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("import numpy as np", "imports numpy"),
        ("from triton.runtime import interpreter", "imports triton.runtime"),
        ("import os", "imports os"),
        ("triton.runtime.interpreter.x = 1", "attribute"),
        ("tl.load = print", "sets the attribute load"),
        ("print(tl.core)", "attribute core"),
        ("print(twice.fn)", "attribute fn"),
        ("def run_kernels(*a):\n    return {}", "defines run_kernels, a name that is taken"),
        ("class KernelFault(int):\n    pass", "holds a classdef"),
        ("Guard = 1", "defines Guard"),
        ("print(__builtins__)", "uses __builtins__"),
        ("print(().__class__)", "attribute __class__"),
        ("eval('1')", "uses eval"),
        ("getattr(tl, 'x')", "uses getattr"),
        ("print(np)", "uses np"),
        ("print(interpreter_builder)", "uses interpreter_builder"),
        ("def f():\n    global run_kernels", "holds a global"),
        ("try:\n    x = 1\nexcept ValueError:\n    x = 2", "holds a try"),
    ],
)
def test_a_cell_that_reaches_for_more_than_kernels_is_refused(line: str, words: str) -> None:
    said = kernel_child.complaint(f"{CELL}\n\n{line}\n")
    assert said is not None
    assert words in said


def test_plain_cells_are_not_refused() -> None:
    more = """
import math

WIDTH = 4
SIZES = {size: math.sqrt(size) for size in range(3)}


def helper(launches):
    best = max(launches, key=lambda one: one["programs"])
    names = dict.fromkeys(sorted(one["kernel"] for one in launches))
    return [*names.items(), best.get("x", 0)]
"""
    assert kernel_child.complaint(CELL + more) is None


def test_an_answer_of_another_shape_is_no_launch(child: Child) -> None:
    """What a child says is checked, whoever says it."""
    student = _loaded(child)
    student.call = lambda *a, **k: {"data": {}, "written": {}, "launches": []}  # type: ignore[method-assign]
    with pytest.raises(Wrong, match="an answer that no launch gives"):
        _run(student)


def test_cells_run_where_there_is_no_triton(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not absent.stand_in()
    for name in ("triton", "triton.language"):
        monkeypatch.setitem(sys.modules, name, None)  # and as it was, afterwards
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert absent.stand_in()
    assert "no Triton on this system" in capsys.readouterr().out
    namespace: dict[str, Any] = {}
    exec(CELL, namespace)
    assert namespace["twice_launch"](9)[0]["grid"] == (3,)
    assert [sys.modules["triton"].next_power_of_2(n) for n in (1, 3, 8)] == [1, 4, 8]
