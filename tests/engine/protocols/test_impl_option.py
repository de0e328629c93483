"""`--impl` runs a suite on the class it names."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mutants.pools
import pytest
import test_block_pool
from implementations import load
from naive_pool import NaiveBlockPool


def test_a_name_is_a_module_and_a_class() -> None:
    assert load("naive_pool:NaiveBlockPool") is NaiveBlockPool
    with pytest.raises(pytest.UsageError, match=r"'naive_pool': must read package\.module:Class"):
        load("naive_pool")


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (None, list(test_block_pool.IMPLEMENTATIONS)),
        ("mutants.pools:FreesTwice", [mutants.pools.FreesTwice]),
    ],
)
def test_a_suite_runs_on_the_class_that_is_named(
    named: str | None, expected: list[type], pytestconfig: pytest.Config
) -> None:
    chosen: list[type] = []

    def parametrize(name: str, classes: Any, ids: Any) -> None:
        chosen.extend(classes)

    metafunc = SimpleNamespace(
        fixturenames=["implementation"],
        module=test_block_pool,
        config=SimpleNamespace(getoption=lambda option, default: named),
        parametrize=parametrize,
    )
    conftest = pytestconfig.pluginmanager.get_plugin(str(Path(__file__).parent / "conftest.py"))
    conftest.pytest_generate_tests(metafunc)
    assert chosen == expected
