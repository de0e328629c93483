"""The lab on parallelism, its tables as the solutions return them, and its frontier's judge."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from fractions import Fraction
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from lab_suite import LabSuite

from labkit.author.build import build_notebook
from labkit.gpu.frontier import KERNEL_MARK, cell_of, compile_cell
from labkit.gpu.runner import Device
from labkit.grading.cells import reference_cells
from labkit.reader.lab import import_folder, load_lab
from labkit.reader.subject import Wrong

VARIANTS = ("experts", "ring", "pipeline")
FILES = ("master.py", "second.py")


class TestParallelism(LabSuite):
    slug = "parallelism"


def _task_text(number: int, variant: str | None = None) -> str:
    cells = build_notebook(load_lab("parallelism"), variant)["cells"]
    (text,) = (c["source"] for c in cells if c["source"].startswith(f"## Task {number}:"))
    return text


def _names(file: str, variant: str) -> dict[str, Any]:
    lab = load_lab("parallelism")
    names: dict[str, Any] = {}
    for source in [lab.given, *reference_cells(lab, variant, file).values()]:
        exec(source, names)
    return names


def _rows(text: str) -> list[list[str]]:
    """The cells of every line of a table, without rules."""
    lines = re.findall(r"^\|.*\|$", text, re.M)
    parts = [[part.strip().strip("`") for part in line.strip("|").split("|")] for line in lines]
    return [row for row in parts if not row[0].startswith("--")]


def _table(text: str, head: str) -> list[list[str]]:
    """The rows below the head that begins with this cell, up to the table's end."""
    rows = _rows(text)
    start = next(i for i, row in enumerate(rows) if row[0] == head)
    width = len(rows[start])
    found = []
    for row in rows[start + 1 :]:
        if len(row) != width or row[0] in ("key", "names", "choice", "step"):
            break
        found.append(row)
    return found


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"-?\d+", text)]


def test_the_minutes_of_the_introduction_are_those_of_the_tasks() -> None:
    tasks = load_lab("parallelism").tasks
    intro = build_notebook(load_lab("parallelism"), None)["cells"][0]["source"]
    *rows, frontier = _rows(intro)[1:]
    assert [int(row[-1]) for row in rows] == [task.minutes for task in tasks]
    assert frontier[1:] == ["frontier", "bonus", "open"]
    assert sum(task.minutes for task in tasks) == 315
    assert "five hours and a quarter" in " ".join(intro.split())


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_parts_of_the_table(file: str, variant: str) -> None:
    text = _task_text(1, variant)
    ratio = _numbers(re.search(r"ratio `([\d ]+)`", " ".join(text.split()))[1])  # type: ignore[index]
    parts = _names(file, variant)["split"](7, ratio)
    table = _table(text, "rank")
    assert len(table) == len(ratio)
    for rank, share, whole, remainder, part in table:
        exact = Fraction(7 * ratio[int(rank)], sum(ratio))
        assert Fraction(share) == exact == int(whole) + Fraction(remainder)
        assert parts[int(rank)] == _numbers(part)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_steps_of_the_table(file: str, variant: str) -> None:
    """What each rank sends, found again by the numbers of its messages."""
    names, table = _names(file, variant), _table(_task_text(2, variant), "step")
    xs = [np.array([1.0, 10, 100]) * (rank + 1) for rank in range(3)]
    values, events = names["run"]("all_reduce", [(rank, x, [1, 1, 1]) for rank, x in enumerate(xs)])
    assert all(value.tolist() == [6, 60, 600] for value in values)
    for rank in range(3):
        sent = [x for _, source, _, x in events if source == rank]
        received = [x for _, _, to, x in events if to == rank]
        for step, row in enumerate(table):
            out, into = _numbers(row[1 + rank])
            assert row[1 + rank] == f"S {out}, R {into}"
            assert len(str(int(sent[step][0]))) == out + 1
            assert len(str(int(received[step][0]))) == into + 1
            if step == 2:  # the first whole part that the rank hands on is what it has completed
                said = re.findall(r"on rank (\d) part (\d)", table[1][-1])
                assert (str(rank), str(out)) in said


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_order_of_the_table(file: str, variant: str) -> None:
    names, rows = _names(file, variant), _table(_task_text(3, variant), "choice")
    choices = [(eval(row[0]), int(row[1])) for row in rows]
    assert len(choices) == 5
    lists: list[list[Any]] = [[], []]
    for choice, rank in reversed(choices):
        lists[rank].append(choice)
    for capacity in range(6):
        calls = [(lists[rank], [rank, 1], capacity) for rank in range(2)]
        values, _ = names["run"]("dispatch", calls)
        tokens = [choice[:2] for choice, _ in choices]
        assert [one[:2] for one in values[0]["kept"][0]] == tokens[:capacity]
        assert [one[:2] for one in values[1]["dropped"]] == sorted(tokens[capacity:])


@pytest.mark.parametrize("file", FILES)
def test_the_replicas_of_the_table(file: str) -> None:
    """Each line follows from those before it, and `share` returns what they say."""
    text = _task_text(4, "experts")
    flat = " ".join(text.split())
    loads = _numbers(re.search(r"loads are `([\d ]+)`", flat)[1])  # type: ignore[index]
    slots = _numbers(re.search(r"with `([\d ]+)` slots", flat)[1])  # type: ignore[index]
    table = _table(text, "expert")
    copies = [sum(int(row[0]) == expert for row in table) for expert in range(len(loads))]
    placed: list[list[int]] = [[] for _ in slots]
    load = [Fraction(0) for _ in slots]
    for expert, share, rank, _, *after in table:
        assert Fraction(share) == Fraction(loads[int(expert)], copies[int(expert)])
        placed[int(rank)].append(int(expert))
        load[int(rank)] += Fraction(share)
        assert [Fraction(one) for one in after] == [a / b for a, b in zip(load, slots, strict=True)]
    calls = [(np.array(loads) * (rank == 0), slots) for rank in range(len(slots))]
    assert _names(file, "experts")["run"]("share", calls)[0] == [placed] * len(slots)


@pytest.mark.parametrize("file", FILES)
def test_the_positions_of_the_table(file: str) -> None:
    table = _table(_task_text(4, "ring"), "rank")
    found = _names(file, "ring")["share"](10, [2, 1])
    for rank, early, late, pairs in table:
        positions = found[int(rank)].tolist()
        assert positions == _numbers(early) + _numbers(late)
        assert sum(one + 1 for one in positions) == int(pairs)


@pytest.mark.parametrize("file", FILES)
def test_the_blocks_of_the_table(file: str) -> None:
    x = [np.full((1, 1), 10.0 + rank) for rank in range(3)]
    calls = [(rank, [1, 1, 1], x[rank], x[rank], x[rank], np.array([rank])) for rank in range(3)]
    _, events = _names(file, "ring")["run"]("work", calls)
    table = _table(_task_text(4, "ring"), "step")
    for rank in range(3):
        sent = [int(block[0, 0]) for _, source, _, block in events if source == rank]
        received = [int(block[0, 0]) for _, _, to, block in events if to == rank]
        told = [_numbers(row[1 + rank]) for row in table]
        assert told == [list(pair) for pair in zip(sent, received, strict=True)]


@pytest.mark.parametrize("file", FILES)
def test_the_wishes_of_the_table(file: str) -> None:
    names, table = _names(file, "pipeline"), _table(_task_text(4, "pipeline"), "rank")
    calls = [(rank, 3, np.eye(2), np.eye(2), [0, 1], 2) for rank in range(3)]
    _, events = names["run"]("work", calls)
    for rank, wishes in table:
        got, sent, received = [], 0, 0
        for _, source, to, _ in events:
            if source == int(rank):
                got.append(f"S {sent}")
                sent += 1
            elif to == int(rank):
                got.append(f"R {received}")
                received += 1
        assert ", ".join(got) == wishes


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_logits_of_the_text(file: str, variant: str) -> None:
    text = " ".join(_task_text(5, variant).split())
    found = re.search(r"the logits `([\d ]+)` and `([\d ]+)` of one token", text)
    assert found
    first, second = (np.array([_numbers(one)], float) for one in found.groups())
    want = _numbers(re.search(r"both return `\[(\d)\]`", text)[1])  # type: ignore[index]
    values, _ = _names(file, variant)["run"]("pick", [(first, 0), (second, 2)])
    assert values == [want, want]


def test_the_network_says_who_waits_for_whom() -> None:
    names: dict[str, Any] = {}
    exec(load_lab("parallelism").given, names)
    exec(
        "def both(rank, n):\n    yield Send(1 - rank, np.zeros(n))\n"
        "def unlike(rank):\n    yield AllReduce(np.zeros(rank + 1))\n"
        "def other(rank):\n    yield AllReduce(np.zeros(1)) if rank else AllGather(0)\n"
        "def shape(rank):\n    yield Receive(1, (3,)) if rank == 0 else Send(0, np.zeros(2))\n"
        "def early(rank):\n    if rank == 0:\n        yield AllGather(1)\n",
        names,
    )
    for name, calls, words in (
        ("both", [(0, 2), (1, 3)], r"rank 0 sends \(2,\) to rank 1; rank 1 sends \(3,\) to rank 0"),
        ("unlike", [(0,), (1,)], r"unlike shapes: rank 0 is in AllReduce with \(1,\)"),
        ("other", [(0,), (1,)], r"unlike things: rank 0 is in AllGather; rank 1 is in AllReduce"),
        ("shape", [(0,), (1,)], r"a shape that the receiver does not expect: rank 0 waits for"),
        ("early", [(0,), (1,)], r"nobody can go on: rank 0 is in AllGather; rank 1 has returned"),
    ):
        with pytest.raises(names["Stuck"], match=words):
            names["run"](name, calls)


@pytest.fixture(scope="module")
def frontier() -> ModuleType:
    return import_folder(load_lab("parallelism").folder, "frontier_of_parallelism", "kernel")


TOTAL = "old + fourth + third + second + first"
# Kernels that are wrong, each by a replacement in the reference, and what their reader is told.
KERNELS = {
    "quire's order": (TOTAL, "first + second + third + fourth + old", "in different orders"),
    "a tree": (TOTAL, "old + ((fourth + third) + (second + first))", "in different orders"),
    "rounded on the way": (
        "old + fourth",
        "(old + fourth).to(tl.float16).to(tl.float32)",
        "looked at `stream`|in different orders",
    ),
    "a rank is missing": (f"{TOTAL}", "old + fourth + third + second", "looked at `stream`"),
    "the mean": (TOTAL, f"old + ({TOTAL} - old) / 4", "looked at `stream`"),
    "no residual": (TOTAL, "fourth + third + second + first", "looked at `stream`"),
    "the sum of squares": ("/ WIDTH", "", "looked at `normed`"),
    "the norm of the terms": ("total * total", "(total - old) * (total - old)", "at `normed`"),
    "no eps": ("mean + 1e-6", "mean", "looked at `normed`"),
    "no weight": ("* scale)", ")", "looked at `normed`"),
    "another row": ("term_3 + place", "term_3 + place + WIDTH", "out of bounds.*term_3"),
    "one token too few": ('"grid": (tokens,)', '"grid": (max(tokens - 1, 1),)', "never written"),
    "one token more": ('"grid": (tokens,)', '"grid": (tokens + 1,)', "out of bounds"),
    "changes a term": ("normed + place", "term_0 + place", "never written|term_0"),
}


def test_the_kernel_of_the_judge_is_right(
    frontier: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert frontier.judge(frontier.REFERENCE, seed=3, interpreted=True) == 0
    said = capsys.readouterr().out
    each = ", ".join(f"'{name}': {5 * 256 * 2}" for name in frontier.INPUTS)
    assert f"(5, 256): right; bytes read: {{{each}}}" in said  # each number once


@pytest.mark.parametrize("name", KERNELS)
def test_a_wrong_kernel_is_told_what_is_wrong(frontier: ModuleType, name: str) -> None:
    old, new, words = KERNELS[name]
    assert frontier.REFERENCE.count(old) == 1
    with pytest.raises(Wrong, match=words):
        frontier.judge(frontier.REFERENCE.replace(old, new), seed=3, interpreted=True)


def test_the_kernels_cell_runs_without_triton_and_compiles_with_it(frontier: ModuleType) -> None:
    lab = load_lab("parallelism")
    cell = cell_of(lab.folder / f"{lab.slug}.ipynb", KERNEL_MARK)
    without = f"import sys\n\nsys.modules['triton'] = None\n{cell}\nlaunch_is_there = launch\n"
    done = subprocess.run([sys.executable, "-c", without], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    plan = '{"grid": (1,), "constants": {}, "num_warps": 4, "num_stages": 1}'
    written = cell.replace('raise NotImplementedError("write launch")', f"return {plan}")
    assert written != cell
    hopper = Device("NVIDIA H100", 90, 232_448, 1024, (2**31 - 1, 65_535, 65_535), 50 << 20)
    for source in (written, frontier.REFERENCE):
        launch = compile_cell(source, frontier.NAME, frontier.arguments(), frontier.SIZES, hopper)
        assert launch.entry == "one_shot"


@pytest.mark.gpu
@pytest.mark.whole_gpu  # times, which a neighbour would spoil
def test_the_judge_times_a_right_kernel_and_refuses_another_order(frontier: ModuleType) -> None:
    unsafe = shutil.which("bwrap") is None  # a GPU machine may be a container without namespaces
    assert frontier.judge(frontier.REFERENCE, seed=4, unsafe_local=unsafe) > 7
    tree = frontier.REFERENCE.replace(TOTAL, "first + second + third + fourth + old")
    with pytest.raises(Wrong, match="in different orders"):
        frontier.judge(tree, seed=4, unsafe_local=unsafe)
