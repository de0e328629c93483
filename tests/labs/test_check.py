"""`labkit.check` as a reader meets it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import labkit
from labkit.reader.lab import Lab, LabError
from labkit.reader.subject import LATEST, Instance, Subject, Wrong, in_notebook
from labkit.reader.values import difference
from labkit.reader.work import SaveError


class Agreeable:
    """Equal to everything."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


class Zero(int):
    """An int that says it equals anything."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


def _check(draw: Any) -> str:
    """Run the sampler's public check with a `draw` of ours; return its words."""
    namespace = {"LAB": "autoregressive-decoding", "draw": draw}
    with pytest.raises(labkit.CheckFailed) as failed:
        labkit.check("sampler", namespace)
    return str(failed.value)


def test_a_wrong_value_is_told_with_call_expectation_and_answer() -> None:
    words = _check(lambda probabilities, u: 0)
    assert "called draw([0. , 0.25, 0. , 0.75], 0.0)" in words
    assert "expected 1" in words
    assert "got 0" in words


def test_printing_satisfies_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def draw(probabilities: Any, u: float) -> None:
        print("sampler: 4 of 4 public checks pass")

    assert "got None" in _check(draw)


@pytest.mark.parametrize("value", [Agreeable(), Zero(0)])
def test_a_lying_eq_satisfies_nothing(value: Any) -> None:
    assert "which is no plain value" in _check(lambda probabilities, u: value)


def test_an_endless_loop_is_stopped() -> None:
    def draw(probabilities: Any, u: float) -> int:
        while True:
            try:
                while True:
                    pass
            except Exception:
                continue

    assert "no answer within 5 s: is there an endless loop?" in _check(draw)


def test_an_exception_is_told_and_a_missing_function_too() -> None:
    def draw(probabilities: Any, u: float) -> int:
        raise KeyError("top_p")

    words = _check(draw)
    assert "KeyError: 'top_p'" in words
    assert "NameError: distribution is not defined" in words


def test_an_interrupt_from_the_keyboard_is_the_readers() -> None:
    def draw(probabilities: Any, u: float) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        labkit.check("sampler", {"LAB": "autoregressive-decoding", "draw": draw})


def test_it_works_from_a_wheel(lab: Lab, tmp_path: Path) -> None:
    """A wheel holds lab.toml, checks.py and given.py under labkit/_data, nothing else of a lab."""
    package = tmp_path / "labkit"
    shutil.copytree(Path(labkit.__file__).parent, package)
    (package / "_data" / lab.slug).mkdir(parents=True)
    for name in ("lab.toml", "checks.py", "given.py"):
        shutil.copy(lab.folder / name, package / "_data" / lab.slug / name)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import labkit\n"
        f"assert labkit.__file__.startswith({str(tmp_path)!r})\n"
        f"LAB = {lab.slug!r}\n"
        "def draw(probabilities, u): return 0\n"
        "labkit.check('sampler')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert "CheckFailed: sampler: 0 of 6 public checks pass" in done.stderr


def _counter() -> Instance:
    class Counter:
        def add(self, number: int) -> int:
            return number

    return Subject(in_notebook({"Counter": Counter})).new("Counter")


def test_all_of_a_few_calls_are_told() -> None:
    counter = _counter()
    for number in range(LATEST - 1):
        counter.expect("add", number, want=number)
    with pytest.raises(Wrong) as failed:
        counter.expect("add", 7, want=8)
    words = str(failed.value)
    assert words.startswith("called Counter(); .add(0); .add(1); ")
    assert "before" not in words


@pytest.mark.parametrize(("more", "cut"), [(1, "… 1 call before …"), (5, "… 5 calls before …")])
def test_calls_that_a_message_leaves_out_are_counted(more: int, cut: str) -> None:
    counter = _counter()
    for number in range(LATEST - 1 + more):
        counter.expect("add", number, want=number)
    with pytest.raises(Wrong) as wrong_value:
        counter.expect("add", 70, want=80)
    assert f"called Counter(); {cut}; .add({more}); " in str(wrong_value.value)
    assert str(wrong_value.value).count(".add") == LATEST
    with pytest.raises(Wrong) as error:
        counter.call("subtract", 1)
    assert "before …; .add(" in str(error.value)
    assert "; .add(70); .subtract(1)\ngot AttributeError" in str(error.value)
    with pytest.raises(Wrong, match=r"; .subtract\(1\)\nexpected 69  \(why\)\ngot AttributeError"):
        counter.expect("subtract", 1, want=69, because="why")


def test_a_call_can_be_worded() -> None:
    def half(number: float) -> float:
        return number / 2

    subject = Subject(in_notebook({"half": half}))
    with pytest.raises(Wrong, match=r"called half of four\nexpected 3"):
        subject.expect("half", 4, want=3.0, said=lambda: "half of four")
    with pytest.raises(Wrong, match=r"called half of a word\nexpected 3  \(why\)\ngot TypeError"):
        subject.expect("half", "a", want=3.0, because="why", said=lambda: "half of a word")


def test_a_refusal_is_a_value_error() -> None:
    """Of a function or of a class; another exception, or an answer, is told beside it."""

    class Positive:
        def __init__(self, number: int) -> None:
            if number < 0:
                raise ValueError("below 0")

    def root(number: int) -> float:
        if number < 0:
            raise ValueError("below 0")
        return float(number / number)

    subject = Subject(in_notebook({"root": root, "Positive": Positive}))
    subject.refuses("root", -1)
    subject.refuses("Positive", -1)
    with pytest.raises(Wrong, match=r"called root\(4\)\nexpected ValueError  \(why\)\ngot 1$"):
        subject.refuses("root", 4, because="why")
    with pytest.raises(Wrong, match=r"expected ValueError\ngot ZeroDivisionError: "):
        subject.refuses("root", 0)
    with pytest.raises(Wrong, match=r"called Positive\(4\)\nexpected ValueError\ngot it returned"):
        subject.refuses("Positive", 4)


def test_the_words_stand_alone_in_a_notebook() -> None:
    failed = labkit.CheckFailed("sampler: 0 of 4")
    assert failed._render_traceback_() == ["sampler: 0 of 4"]
    unfound = SaveError("which notebook? name its file")
    assert unfound._render_traceback_() == ["which notebook? name its file"]


def test_a_task_that_is_not_there_and_a_notebook_without_its_first_cell(lab: Lab) -> None:
    with pytest.raises(LabError, match=r"no task 'smapler' .* there are: decode-step, sampler"):
        labkit.check("smapler", {"LAB": lab.slug})
    with pytest.raises(labkit.CheckFailed, match="first cell"):
        labkit.check("sampler", {})


def test_arguments_are_copies() -> None:
    seen: list[Any] = []

    def draw(probabilities: Any, u: float) -> int:
        seen.append(probabilities.tolist())
        probabilities[:] = 0
        return 1

    _check(draw)
    assert seen[0] == [0.0, 0.25, 0.0, 0.75]


@pytest.mark.parametrize(
    ("got", "want"),
    [(True, 1), (1.0, 1), ("1", 1), (None, 0), (float("nan"), 0.0), ([1, 2], [1]), ([], [1])],
)
def test_values_of_another_type_or_length_differ(got: Any, want: Any) -> None:
    assert difference(got, want, 1e-9) is not None


INTEGERS = ("int8", "uint8", "int32", "uint32", "uint64", "int64")


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [*((name, "int64") for name in INTEGERS), ("bool", "bool"), ("float16", "float64"),
     ("float32", "float32"), ("float64", "float64"), (">f8", "float64"), (">i4", "int64")],
)  # fmt: skip
def test_an_array_may_have_any_integer_or_floating_dtype(dtype: str, wide: str) -> None:
    import numpy as np

    _travels(np.array([[1, 0, 1], [0, 1, 1]], dtype), wide)


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [*((name, "int64") for name in INTEGERS), ("bool", "bool"), ("bfloat16", "float64"),
     ("float16", "float64"), ("float32", "float64"), ("float64", "float64")],
)  # fmt: skip
def test_a_tensor_may_have_any_integer_or_floating_dtype(dtype: str, wide: str) -> None:
    import torch

    _travels(torch.tensor([[1, 0, 1], [0, 1, 1]], dtype=getattr(torch, dtype)), wide)


def _travels(made: Any, wide: str) -> None:
    """An answer arrives with all of its numbers, in this dtype."""
    got = Subject(in_notebook({"answer": lambda: {"of": made}})).call("answer")["of"]
    assert got.tolist() == [[1, 0, 1], [0, 1, 1]]
    assert got.dtype.name == wide


def test_an_array_whose_numbers_have_no_wide_dtype_is_named() -> None:
    import numpy as np

    for made in (np.array([1 << 63], np.uint64), np.array([1j]), np.array(["a"])):
        subject = Subject(in_notebook({"answer": lambda made=made: made}))
        with pytest.raises(Wrong, match=f"dtype {made.dtype.name}.*no plain value"):
            subject.call("answer")


def test_integers_are_told_whole_and_words_in_hexadecimal_too() -> None:
    import numpy as np

    found = difference(np.array([[16975104, -66051]]), np.array([[16975104, -66052]]))
    assert found is not None
    assert "at index (0, 1): expected -66052 (FFFEFDFC), got -66051 (FFFEFDFD)" in found
    found = difference(np.array([7000.5]), np.array([7001]))
    assert found is not None
    assert "expected 7001, got 7000.5" in found


def test_nan_and_infinity_never_pass_for_a_number() -> None:
    import numpy as np

    want = np.array([1.0, 2.0])
    for bad in ([float("nan")] * 2, [float("inf")] * 2, [1.0], [[1.0, 2.0]], ["a", "b"], None):
        assert difference(bad, want, 1e-6) is not None
    assert difference([1.0, 2.0 + 1e-9], want, 1e-6) is None
    lowest = np.array([1.0, -np.inf])
    for bad in ([1.0, -1e30], [1.0, np.inf], [1.0, np.nan], [-np.inf, -np.inf]):
        assert difference(bad, lowest, 1e-6) is not None
    assert difference([1.0, -np.inf], lowest, 1e-6) is None
    assert difference([1.0, -np.inf], lowest) is None
