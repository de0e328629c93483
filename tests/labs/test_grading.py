"""Grading one submission: fair to what works, deaf to what does not, the same every time."""

from __future__ import annotations

import ast
import itertools
import re

import numpy as np
import pytest

from labkit.grading import grade
from labkit.grading.cells import reference_cells
from labkit.grading.grade import Grader, grade_submission
from labkit.grading.report import BROKEN, UNSAFE
from labkit.grading.variants import CourseKey, choose
from labkit.reader.lab import Lab, labs_folder, load_lab
from labkit.reader.notebook import Submission
from labkit.reader.subject import Subject
from labkit.reader.values import difference
from labkit.sandbox import process
from labkit.sandbox.process import Child, Limits, Request

RAISES = """# task: engine
def choose_tokens(rows):
    raise ValueError("in the middle of a step")
"""


def test_a_submission_broken_in_every_way_keeps_what_works(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = reference_cells(lab)
    cells["decode-step"] = "# task: decode-step\nimport ctypes\nctypes.string_at(0)\n"
    cells["sampler"] = "# task: sampler\nwhile True:\n    pass\n"
    cells["stream"] = "# task: stream\nimport os\nos._exit(0)\n"
    del cells["latency"]
    submission = Submission(cells=cells, problems={"latency": "syntax error in line 1"})
    grader, started = Grader(lab, limits=Limits(call_seconds=3.0)), []
    start = grader._start
    monkeypatch.setattr(grader, "_start", lambda *helper: started.append(1) or start(*helper))
    report = grader.grade(submission)
    assert {task.name: report.task_score(task.name) for task in lab.tasks} == {
        "decode-step": 0,
        "sampler": 0,
        "stream": 0,
        "latency": 0,
        "engine": 7,  # the reference stands in for the sampler, but for the whole notebook
    }
    assert report.reasons("decode-step") == [
        "running the cell: the process ended: it crashed, or the code ended it"
    ]
    assert report.reasons("sampler") == ["running the cell: no answer within 3 s"]
    assert report.reasons("latency") == ["syntax error in line 1"]
    assert report.reasons("engine") == [
        "your sampler is needed here: running the cell: no answer within 3 s"
    ]
    assert report.broken == []
    assert all(outcome.title for outcome in report.outcomes)
    assert report.seconds > 0
    # A cell that ends its process is loaded once; the engine's cell and the reference's make two.
    assert len(started) == 1 + 1 + 1 + 2
    assert set(submission.problems) == {"latency"}  # nothing of it is written to the hand-in


def test_an_engine_that_a_submission_broke_off_serves_the_next_one(lab: Lab) -> None:
    grader, engine = Grader(lab), [lab.task("engine")]
    cells = reference_cells(lab)
    bad = grader.grade(Submission(cells=cells | {"engine": RAISES}), engine)
    assert bad.score == 0
    assert "ValueError: in the middle of a step" in bad.reasons("engine")[0]
    assert grader.grade(Submission(cells=cells), engine).score == 10


def test_the_same_submission_gets_the_same_words_and_another_key_other_questions(
    lab: Lab,
) -> None:
    wrong = Submission(
        cells={"sampler": "# task: sampler\ndef distribution(*a): return None\ndraw = None"},
        problems={task.name: "not handed in" for task in lab.tasks if task.name != "sampler"},
    )
    keys = [None, None, CourseKey(b"1" * 32), CourseKey(b"2" * 32)]
    reports = [grade_submission(lab, wrong, key) for key in keys]
    assert [report.score for report in reports] == [0, 0, 0, 0]
    assert [report.variant for report in reports] == [choose(lab, key).variant for key in keys]
    words = ["\n".join(report.reasons("sampler")) for report in reports]
    assert words[0] == words[1]
    assert len(set(words)) == 3


def test_without_a_sandbox_the_report_says_so(lab: Lab) -> None:
    cells = {"stream": reference_cells(lab)["stream"]}
    report = Grader(lab, unsafe_local=True).grade(Submission(cells=cells), [lab.task("stream")])
    assert report.score == 15
    assert report.text().startswith(UNSAFE)
    assert UNSAFE in report.gradescope()["output"]


FORGETS = """# task: stream
def penalise(logits, prompt_ids, output_ids, params):
    return logits  # an array, as it came


class TextStream:
    def __init__(self, stop):
        self.stopped_by = None

    def push(self, data):
        return ""

    def finish(self):
        return ""
"""


def test_a_smaller_failing_input_is_looked_for_a_bounded_number_of_times(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Request] = []
    request = Child.request

    def counted(self: Child, message: Request, seconds: float | None = None) -> Request:
        asked.append(message)
        return request(self, message, seconds)

    monkeypatch.setattr(Child, "request", counted)
    reasons, calls = {}, {}
    for smaller in (0, 4, grade.SMALLER):
        asked.clear()
        report = Grader(lab, smaller=smaller).grade(
            Submission(cells={"stream": FORGETS}), [lab.task("stream")]
        )
        assert report.broken == []
        reasons[smaller] = report.reasons("stream")
        calls[smaller] = sum(message.get("name") == "penalise" for message in asked)
    assert len(reasons[0]) == len(reasons[4]) == len(reasons[grade.SMALLER])
    assert calls[0] < calls[4] < calls[grade.SMALLER] <= calls[0] + grade.SMALLER
    assert sum(map(len, reasons[grade.SMALLER])) < sum(map(len, reasons[0]))


def test_a_task_may_end_with_the_first_test_that_fails(lab: Lab) -> None:
    cells, tasks = {"stream": FORGETS}, [lab.task("stream")]
    whole = Grader(lab, smaller=0).grade(Submission(cells=cells), tasks)
    short = Grader(lab, smaller=0, until_lost=True).grade(Submission(cells=cells), tasks)
    words = "not run: a test before it failed"
    assert words not in [outcome.reason for outcome in whole.outcomes]
    first = next(i for i, outcome in enumerate(whole.outcomes) if outcome.points == 0)
    assert [o.reason for o in short.outcomes[: first + 1]] == [
        o.reason for o in whole.outcomes[: first + 1]
    ]
    assert {outcome.reason for outcome in short.outcomes[first + 1 :]} == {words}


def test_a_hand_in_that_answers_slowly_gives_its_place_back(lab: Lab) -> None:
    """Each call is in time, and so are a task's calls together."""
    cells = reference_cells(lab)
    slow = {name: f"import time as _t\n_t.sleep(1.0)\n{source}" for name, source in cells.items()}
    grader = Grader(lab, limits=Limits(handin_seconds=1.5))
    report = grader.grade(Submission(cells=slow), list(lab.tasks)[:2])
    reasons = [outcome.reason for outcome in report.outcomes]
    words = "not run: the 1.5 s of the whole hand-in are used up"
    assert reasons[0] is None
    assert reasons[-1] == words
    assert set(report.reasons(lab.tasks[1].name)) == {words}
    assert not report.broken


def _lose_the_request(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """End the child that gets the request of that number, as a machine out of memory does."""
    left = itertools.count(1 - number)
    request = Child.request

    def counted(self: Child, message: Request, seconds: float | None = None) -> Request:
        if message.get("cells") != [] and next(left) == 0:
            self._process.kill()
        return request(self, message, seconds)

    monkeypatch.setattr(Child, "request", counted)


def test_a_reference_that_does_not_load_is_not_the_cells_fault(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    _lose_the_request(monkeypatch, 1)
    task = lab.task("engine")
    report = Grader(lab).grade(Submission(cells=reference_cells(lab)), [task])
    assert [words.split(":")[:2] for words in report.broken] == [[BROKEN, " loading the reference"]]
    assert report.score == task.points - task.tests[0].points


def test_a_reference_that_is_lost_costs_the_test_that_lost_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    _lose_the_request(monkeypatch, 4)  # the reference loads, the cell loads, it calls, it asks
    task = lab.task("engine")
    report = Grader(lab).grade(Submission(cells=reference_cells(lab)), [task])
    assert [o.points for o in report.outcomes] == [0, *(t.points for t in task.tests[1:])]
    assert re.search("the reference's \\w+: the process ended", report.reasons("engine")[0])


def test_a_machine_too_busy_is_not_the_cells_fault(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "START_SECONDS", 0.0)
    report = Grader(lab).grade(Submission(cells=reference_cells(lab)), [lab.task("sampler")])
    assert report.broken == [
        f"{BROKEN}: the sandbox did not start within 0 s: the machine is busy"
    ] * len(lab.task("sampler").tests)


ANYTHING = ("None", "[None]", "'x'")
BUILT = sorted(path.parent.name for path in labs_folder().glob("*/*.ipynb"))


class _Answers(ast.NodeTransformer):
    """Puts one answer in place of what every function does."""

    def __init__(self, answer: str) -> None:
        self.answer = answer

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        if node.name != "__init__":
            node.body = ast.parse(f"return {self.answer}").body
        return node


@pytest.mark.parametrize("answer", ANYTHING)
@pytest.mark.parametrize("slug", BUILT)
def test_no_answer_breaks_a_hidden_test(slug: str, answer: str) -> None:
    """Whatever a task's functions give, the fault is told as theirs."""
    lab = load_lab(slug)
    grader, reference = Grader(lab), reference_cells(lab)
    for task in lab.tasks:
        changed = ast.unparse(_Answers(answer).visit(ast.parse(reference[task.name])))
        cells = reference | {task.name: f"# task: {task.name}\n{changed}"}
        report = grader.grade(Submission(cells=cells), [task])
        assert report.broken == []
        assert report.score < task.points


def test_a_test_that_fails_by_itself_is_the_graders_fault(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def test_broken(student: Subject, variant: str) -> None:
        raise ZeroDivisionError("of the test")

    names = [test.name for test in lab.task("sampler").tests]
    monkeypatch.setattr(grade, "_functions", lambda lab, task: dict.fromkeys(names, test_broken))
    submission = Submission(cells={"sampler": "# task: sampler\n"})
    report = Grader(lab).grade(submission, [lab.task("sampler")])
    assert report.score == 0
    assert report.broken == [f"{BROKEN}: ZeroDivisionError: of the test"] * len(names)


def test_a_string_among_numbers_is_not_given_to_numpy() -> None:
    """It would make room for the longest string in each of the items: 4 TB here."""
    got = ["9" * 2_000_000] + [1] * 500_000
    words = str(difference(got, np.zeros(3)))
    assert words == "expected numbers of shape (3,), got a value of type list"
    assert difference([[1, 2.5], [True, 3]], np.array([[1, 2.5], [1, 3]])) is None
