"""The lab on batching, and the judge of its frontier task."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from lab_suite import LabSuite

from labkit.author.build import build_notebook
from labkit.cli import main
from labkit.gpu.frontier import FIRST_SEED, MARK, cell_of, run
from labkit.grading.cells import reference_cells
from labkit.reader.lab import import_folder, load_lab
from labkit.reader.subject import Wrong

BY_HOPE = """
def policy(budget, block, wishes, now):
    whole = budget  # and a step with it takes about 15 ms

    def order(i):
        wish = wishes[i]
        late = now + wish["count"] / whole * 0.015 > wish["due"]
        return not wish["decode"], late and wish["count"] > 300, wish["count"]

    given = [0] * len(wishes)
    for i in sorted(range(len(wishes)), key=order):
        given[i] = min(wishes[i]["count"], budget)
        budget -= given[i]
    return given
"""


class TestBatching(LabSuite):
    slug = "batching"


def _task_texts(variant: str | None = None) -> list[str]:
    cells = build_notebook(load_lab("batching"), variant)["cells"]
    return [cell["source"] for cell in cells if re.match(r"## Task \d", cell["source"])]


def _classes(file: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for source in reference_cells(load_lab("batching"), None, file).values():
        exec(source, names)
    return names


@pytest.mark.parametrize("file", ["master.py", "second.py"])
def test_the_traces_are_what_the_solutions_return(file: str) -> None:
    """Each row of a table of calls, from the one that makes the object on."""
    names, calls, free = _classes(file), 0, 0
    for text in _task_texts():
        made: Any = None
        for line in re.findall(r"^\| `.*\|$", text, re.M):
            call, returned, *more = [part.strip() for part in line.strip("|").split(" | ")]
            if re.match(r"`[A-Z]", call):
                made = eval(call.strip("`"), dict(names))
            elif re.match(r"`\w+\(", call):
                got = eval(f"made.{call.strip('`')}", {"made": made})
                assert got == eval(returned.strip("`")), line
                calls += 1
                if hasattr(made, "num_free"):
                    assert made.num_free() == int(more[0]), line
                    free += 1
    assert (calls, free) == (8 + 10 + 11 + 6, 6)


@pytest.mark.parametrize("file", ["master.py", "second.py"])
@pytest.mark.parametrize("variant", ["shortest", "fair", "deadline"])
def test_the_packing_of_the_text_is_what_the_solutions_return(file: str, variant: str) -> None:
    """Budget, pairs, block and the numbers of each wish are read from the table."""
    (text,) = (t for t in _task_texts(variant) if t.startswith("## Task 3"))
    numbers = re.search(r"`budget` (\d+), `pairs` (\d+), `block` (\d+)", text)
    assert numbers
    budget, pairs, block = map(int, numbers.groups())
    names: dict[str, Any] = {}
    lab = load_lab("batching")
    exec(reference_cells(lab, variant, file)["chunked"], names)
    wishes: list[dict[str, Any]] = []
    gets, left = [], ""
    rows = re.findall(r"^\| (a|b|c|)[, |].*\|$", text, re.M)
    assert "".join(rows) == ("abcb" if variant == "fair" else "abc")
    for line in re.findall(r"^\| (?:a|b|c),.*\|$", text, re.M):
        _, sizes, _, _, got, left = [part.strip() for part in line.strip("|").split("|")]
        start, count = map(int, sizes.split(","))
        more = {"since": 1, "client": len(wishes), "served": 0, "deadline": 40 + len(wishes)}
        name = line[2]
        wishes.append(
            {"request": name, "start": start, "count": count, "decode": name == "a"} | more
        )
        gets.append(int(got) if got else block)
    assert names["pack"](budget, pairs, block, wishes, 10) == gets == [1, 4, 0]
    assert names["pack"](budget, 300, block, wishes, 10) == [1, 4, 2]
    attended = [
        sum(range(w["start"] + 1, w["start"] + 1 + n)) for w, n in zip(wishes, gets, strict=True)
    ]
    assert left == f"{budget - sum(gets)}, {pairs - sum(attended)}"


@pytest.fixture(scope="module")
def frontier() -> ModuleType:
    judge = import_folder(load_lab("batching").folder, "frontier_of_batching", "frontier")
    judge.TRACES = 5  # a sixth of the time
    return judge


def test_a_policy_earns_what_it_gains_over_the_shortest_first(frontier: ModuleType) -> None:
    assert 0 < frontier.judge(BY_HOPE, seed=4) <= 10


def test_judges_draw_from_seeds_that_no_notebook_shows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Without a key anybody knows them all the same, which is said; the sentences are printed."""
    lab = load_lab("batching")
    key = tmp_path / "course.key"
    assert main(["key", str(key)]) == 0
    seeds: list[int] = []

    def judge(source: str, seed: int) -> float:
        assert "def policy" in source
        seeds.append(seed)
        return 0.0

    starter = str(lab.folder / "batching.ipynb")
    for arguments, words in (([], True), (["--course-key-file", str(key)], False)):
        capsys.readouterr()
        monkeypatch.setattr("sys.argv", ["frontier.py", starter, *arguments])
        run(lab, "judge", judge)
        out = capsys.readouterr().out
        assert ("the seed is public" in out) is words
        assert out.endswith("no sentences\n")  # those of the starter count for nothing
    assert seeds[0] == FIRST_SEED
    assert seeds[1] > FIRST_SEED


def test_the_starter_has_the_frontier_cell() -> None:
    lab = load_lab("batching")
    assert "def policy" in cell_of(lab.folder / f"{lab.slug}.ipynb", MARK)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return [budget + 1] * len(wishes)", "in all 1 to 256"),
        ("return [budget] + [0] * (len(wishes) - 1)", "expected at most these"),
        ("return [0] * len(wishes)", "in all 1 to 256"),
        ("return [True] * len(wishes)", "in all 1 to 256"),
        ("raise SystemExit", "SystemExit"),
        ("return open('/etc/passwd')", "Error"),
    ],
)
def test_a_policy_without_usable_counts_is_told_so(
    frontier: ModuleType, body: str, words: str
) -> None:
    source = f"def policy(budget, block, wishes, now):\n    {body}\n"
    with pytest.raises(Wrong, match=words):
        frontier.judge(source, seed=0)
