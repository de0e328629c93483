"""The rules of the corpus and of the measurements: cleaning, copies, windows, parsing."""

from __future__ import annotations

import ast
import heapq
import importlib.metadata
import inspect
import json
import json.decoder
import textwrap

import cleaning
import corpus
import evaluation_data
import optim
import pytest
import scoring
import torch
import train
from recipes import RECIPES

BODY = "\n".join(f"    value_{n} = compute(value, {n})" for n in range(12))
CODE = f'"""What it does."""\n\n\ndef function(value):\n{BODY}\n    return value_3\n'


@pytest.mark.parametrize("module", [heapq, inspect, textwrap, json.decoder, ast])
def test_comments_go_and_code_stays(module: object) -> None:
    source = inspect.getsource(module)  # type: ignore[arg-type]
    stripped = cleaning.strip_comments(source)
    assert ast.dump(ast.parse(stripped)) == ast.dump(ast.parse(source))
    assert len(stripped) < len(source)
    assert cleaning.strip_comments(stripped) == stripped


def test_a_hash_inside_a_string_is_no_comment() -> None:
    source = 'a = "# no"  # yes\n# gone\nb = """\n# stays\n"""\n'
    assert cleaning.strip_comments(source) == 'a = "# no"\nb = """\n# stays\n"""\n'


@pytest.mark.parametrize(
    "line",
    [
        "Written by Ada Example",
        ":author: Ada Example",
        "Copyright (c) 2001 Example Corp.",
        "Mail ada@example.org with questions.",
        "Licensed under the Apache License, Version 2.0",
        "SPDX-License-Identifier: MIT",
    ],
)
def test_notices_leave_docstrings(line: str) -> None:
    source = CODE.replace("What it does.", f"What it does.\n\n{line}\n\nMore of it.\n")
    cleaned = cleaning.clean_source('__author__ = "Ada"\n__version__ = "1"\n' + source)
    assert line not in cleaned
    assert "Ada" not in cleaned
    assert "What it does." in cleaned
    assert "More of it." in cleaned
    assert "return value_3" in cleaned


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def f(:\n", "does not parse"),
        ("x = 1\n", "too short"),
        ("# This file was automatically generated.\n" + CODE, "generated"),
        (CODE + "table = [\n" + "    1, 2, 3, 4, 5, 6, 7, 8,\n" * 60 + "]\n", "mostly data"),
        (CODE + "x = '" + "y" * 500 + "'\n", "minified"),
        (CODE + "mail = 'ada@example.org'\n", "e-mail in code"),
    ],
)
def test_files_are_refused(source: str, reason: str) -> None:
    with pytest.raises(cleaning.Refused, match=reason):
        cleaning.clean_source(source)


def path_in(split: str) -> str:
    """A corpus path that the fixed hash puts into `split`."""
    names = (f"package/module_{n}.py" for n in range(100_000))
    return next(name for name in names if corpus.File("package", name, "").split == split)


def test_a_training_file_that_repeats_a_heldout_file_is_dropped() -> None:
    held = corpus.File("package", path_in("heldout"), CODE)
    copy = corpus.File("package", path_in("train"), CODE.replace("What it does", "Other words"))
    assert corpus.deduplicate([copy, held]) == [held]


def test_a_heldout_file_inside_a_long_training_file_is_dropped() -> None:
    long = "\n".join(f"def g_{n}(a):\n    b = a + {n}\n    return b * {n}\n" for n in range(80))
    held = corpus.File("package", path_in("heldout"), CODE)
    copy = corpus.File("package", path_in("train"), long + CODE)
    assert corpus.deduplicate([copy, held]) == [copy]


def test_unlike_files_stay() -> None:
    held = corpus.File("package", path_in("heldout"), CODE)
    other = corpus.File("package", path_in("train"), inspect.getsource(heapq))
    assert corpus.deduplicate([held, other]) == [held, other]


@pytest.mark.parametrize("length", [2, 100, 2048, 2049, 3072, 10_000])
def test_windows_score_each_position_once(length: int) -> None:
    scored: list[int] = []
    for start, stop, first in scoring.windows(length):
        assert start < first < stop or length == 1
        assert stop - start <= scoring.WINDOW
        assert start == 0 or first - start >= scoring.WINDOW - scoring.STRIDE
        scored += range(first, stop)
    assert scored == list(range(1, length))


def test_nats_of_a_uniform_model() -> None:
    documents = [[0, *range(1, n)] for n in (5, 3000)]
    totals = scoring.nats(lambda ids: torch.zeros(*ids.shape, 4096), documents, batch=3)
    expected = torch.tensor(4096.0).log().item()
    assert totals == pytest.approx([4 * expected, 2999 * expected], rel=1e-4)


HEAD = 'def f(x):\n    """Doubles x."""\n    '


@pytest.mark.parametrize(
    ("completion", "good"),
    [
        ("y = 2 * x\n    return y\n", True),
        ("y = 2 * x\n    if y > 3:\n", True),  # the open block is cut, y = … stands
        ("y = 2 * x\n    return (y +\n        1,", True),  # so is the open bracket
        ("return 2 * x\n\n\ndef g(:\n    oops", True),  # what follows the function is not judged
        ("if x:\n", False),  # nothing is left
        ("y = = 2\n    return y\n", False),
        ("return 2 * x", False),  # no line break: not known to be complete
        ("for y in x:\n    return y\n    z", False),  # block not indented
    ],
)
def test_what_counts_as_a_function_that_parses(completion: str, good: bool) -> None:
    assert evaluation_data.parses(HEAD, completion) is good


def test_heads_and_prompts_are_fixed_and_heldout() -> None:
    heads = evaluation_data.function_heads(100)
    assert len(set(heads)) == 100
    assert heads == evaluation_data.function_heads(100)
    for head in heads:
        assert isinstance(ast.parse(head + "pass\n").body[0], ast.FunctionDef)
    prompts = evaluation_data.prompts(50, 128)
    assert {len(prompt) for prompt in prompts} == {128}
    assert len({tuple(prompt) for prompt in prompts}) == 50


def test_another_version_of_a_package_stops_the_corpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = json.loads((corpus.MODELS / "corpus.json").read_text())["packages"]
    installed = {row["name"]: row["version"] for row in rows}
    collected: list[int] = []

    def version(package: str) -> str:
        if package not in installed:
            raise importlib.metadata.PackageNotFoundError(package)
        return installed[package]

    def collect(jobs: int) -> None:
        collected.append(jobs)
        raise KeyboardInterrupt  # far enough: nothing is written

    monkeypatch.setattr(corpus, "installed_version", version)
    monkeypatch.setattr(corpus, "collect", collect)
    assert corpus.version_differences() == []

    recorded = installed["numpy"], installed["rich"]
    installed["numpy"] = "0.1"
    del installed["rich"]
    monkeypatch.setattr("sys.argv", ["corpus.py", "--jobs", "3"])
    with pytest.raises(SystemExit, match="--any-version") as stopped:
        corpus.main()
    assert f"numpy: 0.1, recorded {recorded[0]}\n" in str(stopped.value)
    assert f"rich: not installed, recorded {recorded[1]}\n" in str(stopped.value)
    assert not collected

    monkeypatch.setattr("sys.argv", ["corpus.py", "--jobs", "3", "--any-version"])
    with pytest.raises(KeyboardInterrupt):
        corpus.main()
    assert collected == [3]


@pytest.mark.parametrize("shape", [(3, 64, 128), (2, 128, 64)])
def test_orthogonalize_flattens_the_spectrum(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(optim.orthogonalize(torch.randn(shape)).float())
    assert values.min() > 0.5
    assert values.max() < 1.3


@pytest.mark.parametrize("name", list(RECIPES))
def test_schedule_rises_holds_and_ends_at_the_floor(name: str) -> None:
    recipe = RECIPES[name]
    factors = [train.schedule(recipe, step, 1000) for step in range(1000)]
    assert max(factors) == pytest.approx(1.0)
    assert factors[0] < 0.2
    assert factors[-1] == pytest.approx(recipe.floor, abs=5e-3)
    top = factors.index(max(factors))
    assert all(a >= b for a, b in zip(factors[top:], factors[top + 1 :], strict=False))
