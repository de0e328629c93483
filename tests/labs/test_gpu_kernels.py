"""Kernels on a GPU: a right one is timed and judged, every other one earns nothing, in words."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from labkit.gpu.frontier import compile_cell
from labkit.gpu.kernels import (
    KernelTask,
    Problem,
    Roofline,
    Speed,
    from_bfloat16,
    judge_speed,
    measure,
    to_bfloat16,
)
from labkit.gpu.runner import Argument, Device, KernelLost, Launch, Pointer, Runner
from labkit.reader.lab import import_folder, load_lab
from labkit.reader.subject import Wrong

pytestmark = pytest.mark.gpu

# A GPU machine may be a container without namespaces; these kernels are the project's own.
UNSAFE = shutil.which("bwrap") is None
SIZE = 4_000_003  # ragged
TWICE = KernelTask(
    make=lambda rng: [to_bfloat16(rng.normal(size=SIZE))],
    oracle=lambda inputs: 2 * from_bfloat16(inputs[0]).astype(np.float64),
    dtype="bfloat16",
    flops=SIZE,
    moved=4 * SIZE,
    tolerance=0.0,
)
ARGUMENTS: dict[str, Argument] = {
    "x": Pointer("*bf16", 0),
    "y": Pointer("*bf16", 1),
    "size": SIZE,
}
CELL = """
import triton
import triton.language as tl


@triton.jit
def twice(x, y, size, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    tl.store(y + i, 2 * tl.load(x + i, mask=inside), mask=inside)


def launch(size):
    grid = (triton.cdiv(size, 1024),)
    return {"grid": grid, "constants": {"BLOCK": 1024}, "num_warps": 4, "num_stages": 1}
"""
ANY_MACHINE = Roofline(1e18, 1e18)  # so fast that no time is too short on it


def _replaced(old: str, new: str) -> str:
    assert old in CELL
    return CELL.replace(old, new)


def _compiled(cell: str, device: Device) -> Launch:
    return compile_cell(cell, "twice", ARGUMENTS, {"size": SIZE}, device, unsafe_local=UNSAFE)


def _load(runner: Runner, cell: str) -> None:
    runner.load(_compiled(cell, runner.device))


@pytest.fixture(scope="module")
def reference() -> Iterator[Runner]:
    """A runner of the right kernel, which goes on through all of the others' failures."""
    with Runner() as runner:
        _load(runner, CELL)
        yield runner


def _measured(cell: str, reference: Runner, calls: int = 3, call_seconds: float = 30.0) -> object:
    """What `measure` says of a cell, or the words with which its runner was lost."""
    with Runner(call_seconds) as reader:
        try:
            _load(reader, cell)
            rng = np.random.default_rng(5)
            return measure(TWICE, reader.run, reference.run, rng, calls=calls)
        except KernelLost as lost:
            return str(lost)


def test_the_device_says_what_it_is(reference: Runner) -> None:
    import torch

    device = reference.device
    properties = torch.cuda.get_device_properties(0)
    assert device.name == properties.name
    assert device.capability == 10 * properties.major + properties.minor
    assert device.max_threads == 1024
    assert device.max_grid == (2**31 - 1, 65_535, 65_535)
    assert device.shared_bytes >= 48 << 10
    assert device.cache_bytes == properties.L2_cache_size


@pytest.mark.whole_gpu  # times, which a neighbour would spoil
def test_a_right_kernel_is_timed_above_the_bound(reference: Runner) -> None:
    speed = _measured(CELL, reference, calls=9)
    assert isinstance(speed, Speed), speed
    assert judge_speed(speed, TWICE, ANY_MACHINE, at_least=0.5) is None
    # The faster of memory and cache: 16 MB stay in a Hopper's cache, whose rate is no 20 TB/s.
    assert TWICE.moved / 20e12 < speed.seconds < 1e-3
    # Where all of it must cross a slower bus, the same time is no speed.
    slow = Roofline(1e18, TWICE.moved / (2 * speed.seconds))
    assert "its speed is not graded" in str(judge_speed(speed, TWICE, slow, at_least=0.5))


def test_other_orders_and_types_reach_the_kernel(reference: Runner) -> None:
    cell = _replaced("(x, y, size, BLOCK", "(size, y, BLOCK: tl.constexpr, x, ONE")
    speed = _measured(cell.replace("1024}", '1024, "ONE": 1}'), reference)
    assert isinstance(speed, Speed), speed


# A cumulative sum over several warps goes through shared memory; what it adds here is nothing.
SHARES = _replaced(
    "2 * tl.load(x + i, mask=inside)",
    "2 * tl.load(x + i, mask=inside) + (tl.cumsum(i * 0, 0) != 0).to(tl.bfloat16)",
)


def test_shared_memory_is_passed(reference: Runner) -> None:
    assert _compiled(SHARES, reference.device).shared > 0
    assert isinstance(_measured(SHARES, reference), Speed)


WRONG = {
    "leaves a part unwritten": (
        _replaced("inside = i < size", "inside = i < size - 1000"),
        f"1000 of {SIZE} numbers of the output were never written",
    ),
    "does nothing": (
        _replaced("tl.store(", "if size < 0:\n        tl.store("),
        f"{SIZE} of {SIZE} numbers of the output were never written",
    ),
    "adds instead": (
        _replaced("2 * tl.load(x + i, mask=inside)", "2 + tl.load(x + i, mask=inside)"),
        "at index 0: expected",
    ),
    "writes behind its output": (
        _replaced("inside = i < size", "inside = i < size + 7"),
        "bytes outside of its output",
    ),
    "writes to its inputs": (
        _replaced("tl.store(", "tl.store(x + i, 0.0, mask=i < 8)\n    tl.store("),
        "bytes outside of its output",
    ),
    "writes where no memory is": (
        _replaced("y + i, 2", "y + i + 0x40000000000, 2"),
        "the kernel failed: ",
    ),
    "never ends": (
        _replaced(
            "    tl.store(",
            "    while tl.load(y + size, volatile=True) != 1:\n        inside = i < size\n"
            "    tl.store(",
        ),
        "the kernel did not end within 5 s",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_kernel_earns_nothing_and_the_grader_goes_on(name: str, reference: Runner) -> None:
    cell, words = WRONG[name]
    said = _measured(cell, reference, call_seconds=5.0)
    assert isinstance(said, str), said
    assert words in said
    assert isinstance(_measured(CELL, reference), Speed)  # the next submission


def test_what_the_first_calls_inputs_give_is_wrong_for_the_second(reference: Runner) -> None:
    kept: list[Problem] = []
    with Runner() as reader:
        _load(reader, CELL)

        def remembers(problem: Problem) -> tuple[Any, float]:
            kept.append(problem)
            return reader.run(Problem(kept[0].inputs, problem.output))

        said = measure(TWICE, remembers, reference.run, np.random.default_rng(5), calls=3)
    assert len(kept) == 2
    assert "at index 0: expected" in str(said)


def test_a_ptx_that_the_driver_does_not_take_is_said(reference: Runner) -> None:
    with Runner() as runner:
        launch = _compiled(CELL, runner.device)
        assert "ret;" in launch.ptx
        with pytest.raises(KernelLost, match="the driver does not load the PTX: "):
            runner.load(replace(launch, ptx=launch.ptx.replace("ret;", "rat;")))
        with pytest.raises(KernelLost, match="the driver does not load the PTX: "):
            runner.load(launch)  # this runner is gone, and says so again
    assert isinstance(_measured(CELL, reference), Speed)


# ---- the lab's judge


@pytest.fixture(scope="module")
def judge() -> ModuleType:
    return import_folder(load_lab("paged-kv-cache").folder, "kernel_of_paged_kv_cache", "kernel")


@pytest.mark.whole_gpu
def test_the_labs_reference_is_as_fast_as_itself(
    judge: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judge.judge(judge.REFERENCE, seed=3, unsafe_local=UNSAFE, calls=5) > 8
    assert "bonus: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        # What it writes before its output, and over the last row, depends on who is last.
        (
            "(slot >= 0)[:, None]",
            "(slot >= -1)[:, None]",
            "outside of its output|written that no|were never written",
        ),
        ("(slot >= 0)[:, None]", "(slot > 40)[:, None]", "were never written"),
        ("value_cache + target, values", "value_cache + target, keys", "at index .*: expected"),
        ("cdiv(num_tokens, 4)", "cdiv(num_tokens, 5)", "were never written"),
    ],
)
def test_a_cache_write_with_a_bug_gets_no_bonus(
    judge: ModuleType, old: str, new: str, words: str
) -> None:
    assert old in judge.REFERENCE
    with pytest.raises(Wrong, match=words):
        judge.judge(judge.REFERENCE.replace(old, new), seed=3, unsafe_local=UNSAFE, calls=1)
