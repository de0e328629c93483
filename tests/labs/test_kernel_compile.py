"""A reader's kernel compiled in the jailed child, and what of its answer is believed."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from labkit.gpu.frontier import KERNEL_MARK, cell_of, checked, compile_cell
from labkit.gpu.runner import Argument, Device, Launch, NoGpu, Pointer, Runner
from labkit.reader.lab import import_folder, load_lab
from labkit.reader.subject import Wrong

HOPPER = Device("NVIDIA H100", 90, 232_448, 1024, (2**31 - 1, 65_535, 65_535), 50 << 20)
ARGUMENTS: dict[str, Argument] = {
    "x": Pointer("*bf16", 0),
    "y": Pointer("*bf16", 1),
    "size": 5000,
}
CELL = """
import triton
import triton.language as tl


@triton.jit
def twice(x, y, size, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, 2 * tl.load(x + i, mask=i < size), mask=i < size)


def launch(size):
    grid = (triton.cdiv(size, 1024),)
    return {"grid": grid, "constants": {"BLOCK": 1024}, "num_warps": 4, "num_stages": 1}
"""


def compiled(cell: str, device: Device = HOPPER) -> Launch:
    return compile_cell(cell, "twice", ARGUMENTS, {"size": 5000}, device)


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_the_jail_makes_ptx_of_a_kernel(capability: int) -> None:
    launch = compiled(CELL, Device(**{**vars(HOPPER), "capability": capability}))
    assert f".target sm_{capability}" in launch.ptx
    assert launch.entry == "twice"
    assert launch.arguments == tuple(ARGUMENTS.values())
    # The kernel's own, then Triton's pointers to scratch memory.
    assert launch.parameters[:3] == (64, 64, 32)
    assert set(launch.parameters[3:]) <= {64}
    assert launch.grid == (5, 1, 1)
    assert (launch.num_warps, launch.shared) == (4, 0)


def test_parameters_may_come_in_any_order_and_be_constants() -> None:
    cell = CELL.replace("(x, y, size, BLOCK", "(size, y, BLOCK: tl.constexpr, x, HALF")
    launch = compiled(cell.replace("1024}", '1024, "HALF": None}'))
    assert launch.arguments == (5000, ARGUMENTS["y"], ARGUMENTS["x"])
    assert launch.parameters[:3] == (32, 64, 64)


def _replaced(old: str, new: str) -> str:
    assert old in CELL
    return CELL.replace(old, new)


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (_replaced("2 * tl.load", "2 * tl.loud"), "does not compile in .*tl.loud"),
        (_replaced("BLOCK)\n    tl.store", "BLOCK)\n    tl.store(nowhere"), "syntax error in line"),
        (_replaced("2 *", "nowhere *"), r"NameError\('nowhere is not defined'\)"),
        (_replaced('{"BLOCK": 1024}', '{"BLOCK": 1000}'), "must be a power of 2"),
        (_replaced("@triton.jit", ""), "under @triton.jit"),
        (_replaced("def twice", "def thrice"), "twice is to be a function"),
        (_replaced("def launch", "def start"), "launch is not defined"),
        (_replaced("return {", "return 7 #"), "launch is to return a dict .*, not 7"),
        (_replaced('"num_warps": 4, ', ""), "launch is to return a dict"),
        (_replaced('"num_warps": 4', '"num_warps": 3'), "num_warps is to be"),
        (_replaced('"num_stages": 1', '"num_stages": 0'), "num_stages is to be"),
        (_replaced('{"BLOCK": 1024}', "[1024]"), "constants is to be a dict"),
        (_replaced('{"BLOCK": 1024}', "{}"), "takes BLOCK: neither"),
        (_replaced('{"BLOCK": 1024}', '{"BLOCK": 1024, "B": 1}'), "takes no constant B"),
        (_replaced("grid = (", "grid = (1 << 31, "), "expected 1 to 2147483647 programs"),
        (_replaced("grid = (", "grid = (0, "), "programs, got 0"),
        (_replaced("grid = (", "grid = (1, 1, 1, "), "grid: expected 1 to 3 of int"),
        (_replaced("grid = (", "grid = 5 # ("), "TypeError"),
        (_replaced("grid = (", "1 / 0 # ("), "ZeroDivisionError.*line 13 of the cell"),
        (_replaced("tl.store(", "tl.device_print('x', i)\n    tl.store("), "calls vprintf"),
        (_replaced("grid = (", "import os; os.fork() # ("), "PermissionError"),
        (_replaced("grid = (", "open('/x', 'w') # ("), "OSError|PermissionError|Error"),
        (_replaced("grid = (", "import os; os._exit(0) # ("), "process ended"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_cell_is_said_in_words(cell: str, words: str) -> None:
    with pytest.raises(Wrong, match=words):
        compiled(cell)


def test_a_cell_that_answers_in_the_compilers_place_is_checked_all_the_same() -> None:
    with pytest.raises(Wrong, match="one entry, 'twice', got \\['another'\\]"):
        compiled(
            f"{CELL}\ntrue_compile = compile_kernel\ndef compile_kernel(*asked):\n"
            "    reply = true_compile(*asked)\n"
            "    return {**reply, 'ptx': reply['ptx'].replace('twice', 'another')}\n"
        )


PTX = ".visible .entry twice(.param .u64 a, .param .u64 b, .param .u32 c, .param .u64 s) { }"
REPLY: dict[str, Any] = {
    "ptx": PTX, "entry": "twice", "arguments": ["x", "y", "size"], "shared": 0, "num_warps": 4,
    "grid": [5],
}  # fmt: skip


def test_a_plain_reply_is_a_launch() -> None:
    launch = checked(REPLY, "twice", ARGUMENTS, HOPPER)
    assert launch == Launch(
        PTX, "twice", (64, 64, 32, 64), tuple(ARGUMENTS.values()), 0, 4, (5, 1, 1)
    )


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"grid": [True]}, "grid"),
        ({"grid": []}, "grid"),
        ({"grid": [1, 65_536]}, "1 to 65535"),
        ({"grid": "5"}, "grid"),
        ({"shared": 232_449}, "shared: expected 0 to 232448"),
        ({"shared": 1.0}, "shared"),
        ({"num_warps": 33}, "num_warps"),
        ({"num_warps": None}, "num_warps"),
        ({"arguments": ["x", "x", "size"]}, "takes"),
        ({"arguments": ["x", "y", "secret"]}, "takes"),
        ({"arguments": ["size", "x", "y"]}, "declares parameters"),
        ({"arguments": ["x", "y", 3]}, "arguments"),
        ({"arguments": ["x"]}, "declares parameters"),
        ({"ptx": PTX.replace(", .param .u32 c, .param .u64 s", "")}, "declares parameters"),
        ({"ptx": 7}, "no PTX"),
        ({"ptx": PTX + " " * (1 << 20)}, "no PTX"),
        ({"ptx": PTX + "\0"}, "no PTX"),
        ({"ptx": ""}, "got \\[\\]"),
        ({"ptx": PTX + PTX}, "one entry"),
        ({"ptx": PTX + ".entry odd"}, "one entry"),
        ({"ptx": f"// {PTX}\n.entry other() {{ }}"}, "got \\['other'\\]"),
        ({"ptx": f"/* {PTX} */ .file 1 \"{PTX}\" .entry other() {{ }}"}, "got \\['other'\\]"),
        ({"ptx": PTX.replace(".u64 s", ".align 64 .b8 s[128]")}, "neither a pointer nor a number"),
        ({"ptx": ".extern .func vprintf (.param .b64 a);" + PTX}, "calls vprintf"),
    ],
)  # fmt: skip
def test_a_reply_that_is_no_launch_is_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(Wrong, match=words):
        checked(REPLY | changed, "twice", ARGUMENTS, HOPPER)
    nothing: Any
    for nothing in (None, [], "ptx", {}):
        with pytest.raises(Wrong):
            checked(nothing, "twice", ARGUMENTS, HOPPER)


LAB = load_lab("paged-kv-cache")
STARTER = LAB.folder / f"{LAB.slug}.ipynb"


def test_the_labs_reference_kernel_compiles_for_its_arguments() -> None:
    judge = import_folder(LAB.folder, "kernel_of_paged_kv_cache", "kernel")
    launch = compile_cell(judge.REFERENCE, "cache_write", judge.ARGUMENTS, judge.SIZES, HOPPER)
    assert launch.parameters[:6] == (64, 64, 64, 64, 64, 32)
    assert "ld.global.v4" in launch.ptx  # 16 bytes at a time
    starter = cell_of(STARTER, KERNEL_MARK)
    with pytest.raises(Wrong, match="NotImplementedError: write launch"):
        compile_cell(starter, "cache_write", judge.ARGUMENTS, judge.SIZES, HOPPER)


def test_without_a_gpu_the_judge_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(NoGpu, match="a GPU is needed: "):
        Runner()
    command = [sys.executable, str(LAB.folder / "kernel.py"), str(STARTER)]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 1
    assert answer.stdout == ""
    assert answer.stderr.startswith("a GPU is needed: ")
    assert len(answer.stderr.splitlines()) == 1
