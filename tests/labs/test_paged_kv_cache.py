"""The lab on the paged KV cache, and the judge of its frontier task."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import pytest
from lab_suite import LabSuite

from labkit.author.build import build_notebook
from labkit.gpu.frontier import KERNEL_MARK, MARK, cell_of, compile_cell
from labkit.gpu.runner import Device
from labkit.grading.cells import reference_cells
from labkit.grading.grade import Grader
from labkit.reader.lab import import_folder, load_lab
from labkit.reader.notebook import Submission
from labkit.reader.subject import Wrong
from labkit.sandbox.process import Limits

BY_REUSE = '''
class Policy(LeastRecent):
    """Evict what is due latest, if it is asked for as often as so far."""

    def __init__(self):
        super().__init__()
        self.now, self.last, self.gaps = 0, {}, {}

    def served(self, client, blocks, found):
        super().served(client, blocks, found)
        self.now += 1
        for block in blocks:
            gap = self.now - self.last.get(block, self.now - 60)
            self.gaps[block] = (self.gaps.get(block, gap) + gap) / 2
            self.last[block] = self.now

    def victim(self, blocks):
        def due(block):
            return max(self.gaps[block], self.now - self.last[block]), -self.order[block]

        return max(blocks, key=due)
'''


class TestPagedKVCache(LabSuite):
    slug = "paged-kv-cache"


T = [1, 2, 3, 4, 5]  # as in the trace of task 4


def _made(variant: str) -> list[tuple[str, tuple[int, ...]]]:
    """What the starter's traces trace, in their order; the variant's own rule in the third."""
    out_of_the_way: dict[str, tuple[int, ...]] = {"window": (1000,), "swap": (0,), "beam": ()}
    own = {"window": (5, 2, 3), "swap": (5, 2, 2), "beam": (6, 2)}[variant]
    tables = [(6, 4, *out_of_the_way[variant]), own]
    return [("BlockPool", (5, 1)), *(("BlockTables", one) for one in tables), ("Cache", (6, 2, 9))]


def _traces(variant: str) -> list[list[dict[str, str]]]:
    """Tables of a starter whose first column is a call: each row by its column's heading."""
    sources = [cell["source"] for cell in build_notebook(load_lab("paged-kv-cache"), variant).cells]
    traces: list[list[dict[str, str]]] = []
    heads: list[str] | None = None
    for line in "\n".join(sources).split("\n"):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| call |"):
            heads = cells
            traces.append([])
        elif heads and line.startswith("| `"):
            traces[-1].append(dict(zip(heads, cells, strict=True)))
        elif not line.startswith("|"):
            heads = None
    return traces


def _listed(blocks: Iterable[Any]) -> str:
    return ", ".join(map(str, blocks))


def _answer(made: Any, row: dict[str, str]) -> dict[str, str]:
    """Make a row's call; return what its columns for the answer must say.

    Where appends have a column for each part of their answer, `None` stands in the first, and what
    answers nothing leaves both empty.
    """
    call = row["call"].strip("`")
    try:
        answer = eval(f"made.{call}", {"made": made, "T": T})
        said = repr(answer).replace("'", '"')
    except ValueError:
        answer, said = None, "ValueError"
    if "returns" in row:
        return {"returns": f"`{said}`"}
    if answer is None:
        silent = said == "None" and not call.startswith("append")
        return {"new": "" if silent else f"`{said}`", "copies": ""}
    parts = answer if isinstance(answer, list) else [answer]
    return {key: f"`{_listed(part[key] for part in parts)}`" for key in ("new", "copies")}


def _state(made: Any, row: dict[str, str]) -> dict[str, str]:
    """What a row's other columns must say after its call, by what the reference holds."""
    pool = made if hasattr(made, "allocate") else made._pool
    free, labels = sorted(pool._free), pool._labels
    if made is pool:
        named = {block: f" ({name.decode()}, {n} uses)" for block, (name, _, n) in labels.items()}
        times = {1: "", 2: " twice"}
        held = {block: times[n] for block, n in pool._references.items() if n > 0}
        return {
            "held": _listed(f"{block}{words}" for block, words in held.items()),
            "free": _listed(f"{block}{named.get(block, '')}" for block in free),
        }
    said = {f"table of {request}": _listed(made._tables.get(request, [])) for request in "ab"}
    said |= {"free": _listed(free), "named": _listed(sorted(labels))}
    said["free on the host"] = _listed(sorted(getattr(made, "_host", [])))
    return {head: words for head, words in said.items() if head in row}


@pytest.mark.parametrize("variant", ["window", "swap", "beam"])
def test_the_worked_traces_are_the_references(variant: str) -> None:
    lab = load_lab("paged-kv-cache")
    namespace: dict[str, Any] = {}
    for source in [lab.given, *reference_cells(lab, variant).values()]:
        exec(source, namespace)
    traces = _traces(variant)
    for (name, arguments), trace in zip(_made(variant), traces, strict=True):
        made = namespace[name](*arguments)
        if name == "BlockTables" and "start" not in trace[0]["call"]:
            made.start("a")
        assert 5 <= len(trace) <= 9
        for row in trace:
            assert row == {"call": row["call"], **_answer(made, row), **_state(made, row)}


@pytest.fixture(scope="module")
def frontier() -> ModuleType:
    judge = import_folder(
        load_lab("paged-kv-cache").folder, "frontier_of_paged_kv_cache", "frontier"
    )
    judge.TRACES = 3  # a fortieth of the time
    return judge


@pytest.fixture(scope="module")
def given() -> dict[str, Any]:
    """The names of the cell that the notebook gives to task 5, and of its report."""
    cells = [cell["source"] for cell in build_notebook(load_lab("paged-kv-cache")).cells]
    names: dict[str, Any] = {}
    exec(next(cell for cell in cells if "def make_trace" in cell), names)
    exec(next(cell for cell in cells if "def report" in cell).partition("\nbonus = ")[0], names)
    return names


def _found_by_kind(given: dict[str, Any], policy: Any, trace: list[Any]) -> Counter[str]:
    """Blocks found, of each kind of client."""
    found: Counter[str] = Counter()
    told = policy.served

    def served(client: str, blocks: list[int], count: int) -> None:
        found[client] += count
        told(client, blocks, count)

    policy.served = served
    given["simulate"](policy, trace)
    return found


def test_the_table_of_kinds_is_what_the_baselines_find(given: dict[str, Any]) -> None:
    asked: Counter[str] = Counter()
    found: list[Counter[str]] = [Counter(), Counter(), Counter()]
    wins = 0
    for seed in range(100, 160):
        trace = given["make_trace"](seed)
        for kind, blocks in trace:
            asked[kind] += len(blocks)
        policies = [given["LeastRecent"](), given["LeastUsed"](), given["Clairvoyant"](trace)]
        each = [_found_by_kind(given, policy, trace) for policy in policies]
        for total, one in zip(found, each, strict=True):
            total.update(one)
        old, used, best = (sum(one.values()) for one in each)
        assert best > max(old, used)
        assert each[0]["scan"] > each[1]["scan"]
        wins += old > used
    text = (load_lab("paged-kv-cache").folder / "master.py").read_text("utf8")
    for kind in ("scan", "template", "loop", "chat"):
        shares = " | ".join(f"{one[kind] / asked[kind]:.0%}".replace("%", " %") for one in found)
        assert f"# | {kind} | {shares} |" in text
    assert f"one on {wins} of the 60" in text


def test_a_seed_gives_a_trace_again_and_no_name_of_it(given: dict[str, Any]) -> None:
    """So a policy finds no seed by a block's number, and what looks at equality alone is equal."""
    first, second = given["make_trace"](7), given["make_trace"](7)
    renamed: dict[int, int] = {}
    for (kind, blocks), (again, others) in zip(first, second, strict=True):
        assert (kind, len(blocks)) == (again, len(others))
        for block, other in zip(blocks, others, strict=True):
            assert renamed.setdefault(block, other) == other
    assert len(set(renamed.values())) == len(renamed)
    assert not set(renamed) & set(renamed.values())
    for name in ("LeastRecent", "LeastUsed"):
        one, two = (given["simulate"](given[name](), trace) for trace in (first, second))
        assert one == two


def test_a_victim_out_of_the_list_is_said_in_the_notebook(given: dict[str, Any]) -> None:
    base: Any = given["LeastRecent"]

    class Stray(base):  # type: ignore[misc]
        def victim(self, blocks: list[int]) -> int:
            return -1

    with pytest.raises(ValueError, match=r"victim returned -1, which is not one of the \d+ blocks"):
        given["simulate"](Stray(), given["make_trace"](0))


def test_a_policy_is_judged_by_the_gap_it_closes(frontier: ModuleType) -> None:
    assert frontier.judge("class Policy(LeastRecent):\n    pass\n", seed=4) == 0
    assert 0 < frontier.judge(BY_REUSE, seed=4) <= 10


def test_a_policy_is_judged_alike_twice_and_told_no_seed(
    frontier: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert frontier.judge(BY_REUSE, seed=4) == frontier.judge(BY_REUSE, seed=4)
    printed = capsys.readouterr().out
    assert re.search(r"mean share \d+\.\d% ± \d+\.\d%: bonus \d+\.\d ± \d+\.\d of 10\n", printed)
    seeds = frontier.seeds_of(4)
    assert len(set(seeds)) == frontier.TRACES
    assert max(seeds).bit_length() > 60
    assert not [seed for seed in seeds if str(seed)[-4:] in printed]


def test_the_notebook_says_what_the_judge_allows(given: dict[str, Any]) -> None:
    lab = load_lab("paged-kv-cache")
    text = " ".join((lab.folder / "master.py").read_text("utf8").replace("\n# ", " ").split())
    judge = import_folder(lab.folder, "judge_of_paged_kv_cache", "frontier")
    assert judge.TRACES == 120
    assert (judge.LIMITS.cpu_seconds, judge.LIMITS.call_seconds) == (600, 10)
    assert judge.LIMITS.wall_seconds > judge.LIMITS.cpu_seconds + 120  # what its pipe takes
    assert "The judge draws 120 traces with" in text
    assert "the judge draws 120 and allows 600 s" in text
    assert "ten minutes (600 s) on one core, and one call ten seconds" in text
    assert len(given["make_trace"](0)) == 400
    assert "each trace has 400 requests" in text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return -1", r"victim returned -1, which is not one of the \d+ blocks it was given"),
        ("return [blocks[0]]", r"victim returned \[\d+\], which is not one of the \d+ blocks"),
        ("raise SystemExit", "victim: SystemExit"),
        ("return open('/etc/passwd')", "victim: .*Error"),
    ],
)
def test_a_policy_that_names_no_candidate_is_told_so(
    frontier: ModuleType, body: str, words: str
) -> None:
    source = f"class Policy(LeastRecent):\n    def victim(self, blocks):\n        {body}\n"
    where = r"bonus 0\.0 of 10: trace 1 of 3, request \d+: "
    with pytest.raises(Wrong, match=where + words) as told:
        frontier.judge(source, seed=0)
    assert len(str(told.value)) < 300


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "class Polisy(LeastRecent):\n    pass\n",
            r"trace 1 of 3, request 1: Policy\(\): NameError",
        ),
        ("1 / 0\n", "running the cell: ZeroDivisionError"),
    ],
)
def test_a_cell_without_a_policy_is_told_so(frontier: ModuleType, source: str, words: str) -> None:
    with pytest.raises(Wrong, match=r"bonus 0\.0 of 10: " + words):
        frontier.judge(source, seed=0)


def test_the_starter_has_the_frontier_cell() -> None:
    lab = load_lab("paged-kv-cache")
    assert "class Policy" in cell_of(lab.folder / f"{lab.slug}.ipynb", MARK)


WITHOUT_TRITON = """
import sys

sys.modules["triton"] = None  # an import of it fails, as where it is not installed
{cell}
launch_is_there = launch
"""


def test_the_kernels_cell_runs_without_triton_and_compiles_with_it() -> None:
    lab = load_lab("paged-kv-cache")
    cell = cell_of(lab.folder / f"{lab.slug}.ipynb", KERNEL_MARK)
    alone = [sys.executable, "-c", WITHOUT_TRITON.replace("{cell}", cell)]
    done = subprocess.run(alone, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    plan = '{"grid": (1,), "constants": {}, "num_warps": 4, "num_stages": 1}'
    written = cell.replace('raise NotImplementedError("write launch")', f"return {plan}")
    assert written != cell
    judge = import_folder(lab.folder, "frontier_of_paged_kv_cache", "kernel")
    hopper = Device("NVIDIA H100", 90, 232_448, 1024, (2**31 - 1, 65_535, 65_535), 50 << 20)
    launch = compile_cell(written, "cache_write", judge.ARGUMENTS, judge.SIZES, hopper)
    assert launch.entry == "cache_write"


HOSTILE = {
    "reads the reference's pool": (
        "self._pool = BlockPool(num_blocks, quota)\n        self._rest = self._pool._labels",
        "AttributeError: _labels",
    ),
    "asks the reference for its cells": (
        "self._pool = BlockPool(num_blocks, quota)\n"
        "        import inspect\n        raise RuntimeError(inspect.getsource(BlockPool.allocate))",
        "got (OSError|TypeError)",
    ),
    "never answers": ("while True:\n            pass", "no answer|time"),
    "ends the process": ("import os\n        os._exit(0)", "ended"),
    "claims to be equal to everything": (
        "self._pool = BlockPool(num_blocks, quota)\n"
        "        self.num_free = lambda: type('E', (), {'__eq__': lambda *a: True})()",
        "no plain value|expected",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_cache_wins_nothing_and_spoils_nothing(name: str) -> None:
    lab = load_lab("paged-kv-cache")
    body, words = HOSTILE[name]
    task, reference = lab.task("engine"), reference_cells(lab)
    honest = reference["engine"]
    source = honest.replace("self._pool = BlockPool(num_blocks, quota)", body)
    assert source != honest
    grader = Grader(lab, limits=Limits(call_seconds=1.0, wall_seconds=2.0))
    report = grader.grade(Submission(cells=reference | {"engine": source}), [task])
    # In the whole notebook the pool is the reader's own, whose attributes it may read.
    assert sum(outcome.points for outcome in report.outcomes if not outcome.test.whole) == 0
    assert report.broken == []
    assert re.search(words, "\n".join(report.reasons("engine"))), report.reasons("engine")


def test_a_cache_that_fails_inside_the_engine_leaves_it_usable() -> None:
    lab = load_lab("paged-kv-cache")
    task, reference = lab.task("engine"), reference_cells(lab)
    late = reference["engine"].replace(
        "        needed = ",
        "        if '-' in request and start > 20:\n"
        "            raise KeyError(request)\n        needed = ",
    )
    assert late != reference["engine"]
    spoiled = Grader(lab).grade(Submission(cells=reference | {"engine": late}), [task])
    lost = {outcome.test.name for outcome in spoiled.outcomes if outcome.reason is not None}
    assert lost == {"test_tokens_in_quire", "test_whole_notebook"}
    assert spoiled.broken == []
    assert Grader(lab).grade(Submission(cells=reference), [task]).score == task.points
