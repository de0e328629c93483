"""The lab on batching, and the judge of its frontier task."""

from __future__ import annotations

import re
import statistics
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
from labkit.reader.tried import doubts
from labkit.reader.work import Work

AS_GIVEN = """
def policy(budget, block, wishes, now):
    return shortest_first(budget, block, wishes, now)
"""
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
    judge.TRACES = 5  # a twenty-fourth of the time
    return judge


@pytest.fixture(scope="module")
def given() -> dict[str, Any]:
    """The names of the cell that the notebook gives to task 5."""
    cells = build_notebook(load_lab("batching"))["cells"]
    names: dict[str, Any] = {}
    exec(next(cell["source"] for cell in cells if "def traffic" in cell["source"]), names)
    return names


def test_a_policy_earns_what_it_gains_over_the_shortest_first(
    frontier: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert frontier.judge(AS_GIVEN, seed=4) == 0
    assert "bonus 0.0 ± 0.0 of 10\n" in capsys.readouterr().out
    assert 0 < frontier.judge(BY_HOPE, seed=4) <= 10


def test_a_policy_is_judged_alike_twice_and_told_no_seed(
    frontier: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert frontier.judge(BY_HOPE, seed=4) == frontier.judge(BY_HOPE, seed=4)
    printed = capsys.readouterr().out
    assert re.search(r"\nbonus \d+\.\d ± \d+\.\d of 10\n", printed)
    seeds = frontier.seeds_of(4)
    assert len(set(seeds)) == frontier.TRACES
    assert not set(seeds) & set(frontier.seeds_of(5))
    assert max(seeds).bit_length() > 60
    assert not [seed for seed in seeds if str(seed)[-4:] in printed]


def test_the_bonus_has_the_standard_error_of_the_gain(
    given: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Over pairs, one a trace: what both policies find hard is no noise of their difference."""
    names = dict(given)
    exec(BY_HOPE, names)
    seeds = range(40, 46)
    bonus = names["report"](names["policy"], iter(seeds))
    gains = []
    for seed in seeds:
        shares = [
            names["serve"](names[policy], names["traffic"](seed))[0]
            for policy in ("policy", "shortest_first")
        ]
        gains.append(300 * (shares[0] - shares[1]))
    assert bonus == round(min(10, max(0, statistics.mean(gains))), 1)
    error = statistics.stdev(gains) / len(gains) ** 0.5
    assert capsys.readouterr().out.endswith(f"\nbonus {bonus:.1f} ± {error:.1f} of 10\n")


def test_the_notebook_says_what_the_judge_allows() -> None:
    lab = load_lab("batching")
    text = " ".join((lab.folder / "master.py").read_text("utf8").replace("\n# ", " ").split())
    judge = import_folder(lab.folder, "judge_of_batching", "frontier")
    assert judge.TRACES == 120
    assert (judge.LIMITS.cpu_seconds, judge.LIMITS.call_seconds) == (600, 10)
    assert judge.LIMITS.wall_seconds > judge.LIMITS.cpu_seconds + 120  # what its pipe takes
    assert "The judge draws 120 traces with" in text
    assert "the judge draws 120 and allows 600 s" in text
    assert "All 120 traces together may take ten minutes (600 s) on one core" in text
    assert "and one call ten seconds" in text


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
        ("return [n for n in counts]", r"policy gave \d+ tokens in all, which is not 1 to 256"),
        ("return [0] * len(wishes)", "policy gave 0 tokens in all, which is not 1 to 256"),
        (
            "return [n + 1 for n in counts]",
            r"policy gave \d+ tokens to wishes\[0\], which takes 0 to \d+",
        ),
        ("return [-1] * len(wishes)", r"policy gave -1 tokens to wishes\[0\], which takes 0 to"),
        (
            "return [10**90] * len(wishes)",
            r"policy gave 10{59} tokens to wishes\[0\], which takes 0 to \d+",
        ),
        ("return counts + [0]", r"policy returned \d+ numbers for \d+ wishes"),
        (
            "return [True] * len(wishes)",
            r"policy returned \[True.*, which is no list of whole numbers",
        ),
        ("return None", "policy returned None, which is no list of whole numbers"),
        ("raise SystemExit", "policy: SystemExit"),
        ("raise ValueError('two\\nlines')", "policy: ValueError: two lines"),
        ("return open('/etc/passwd')", "policy: .*Error"),
    ],
)
def test_a_policy_without_usable_counts_is_told_so(
    frontier: ModuleType, body: str, words: str
) -> None:
    """In one line, with the place and without the counts."""
    source = (
        "def policy(budget, block, wishes, now):\n"
        "    counts = [wish['count'] for wish in wishes]\n"
        f"    if len(counts) < 20:\n        return shortest_first(budget, block, wishes, now)\n"
        f"    {body}\n"
    )
    where = r"bonus 0\.0 of 10: trace [12] of 5, step \d+ at \d+\.\d{3} s: "
    with pytest.raises(Wrong, match=where + words) as told:
        frontier.judge(source, seed=0)
    assert len(str(told.value)) < 300
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def polisy():\n    pass\n", r"trace 1 of 5, step 1 at \d\.\d{3} s: policy: NameError"),
        ("1 / 0\n", "running the cell: ZeroDivisionError"),
    ],
)
def test_a_cell_without_a_policy_is_told_so(frontier: ModuleType, source: str, words: str) -> None:
    with pytest.raises(Wrong, match=r"bonus 0\.0 of 10: " + words):
        frontier.judge(source, seed=0)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return [0]", r"ValueError: policy gave 0 tokens in all, which is not 1 to 256"),
        ("return wishes[-1]['deadline']", r"KeyError: 'deadline' (line 3 of the cell policy)"),
        ("return shortest_first(budget, block, wishes, now)", None),
    ],
)
def test_submit_plays_a_policy_on_a_short_trace(body: str, words: str | None) -> None:
    lab = load_lab("batching")
    source = f"# frontier: policy\ndef policy(budget, block, wishes, now):\n    {body}\n"
    others = [cell["source"] for cell in build_notebook(lab)["cells"]]
    frontier = {"policy": source, "why": "# frontier: why\nWHY = ''\n"}
    work = Work(lab, lab.default_variant, others=others, frontier=frontier)
    said = doubts(work)
    assert len(said) == (words is not None)
    assert all(one.startswith(f"frontier policy: {words}") for one in said)
