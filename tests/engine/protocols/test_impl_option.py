"""`--impl` runs a suite on the class it names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from implementations import load
from naive_pool import NaiveBlockPool

SUITE = Path(__file__).parent / "test_block_pool.py"


def test_a_name_is_a_module_and_a_class() -> None:
    assert load("naive_pool:NaiveBlockPool") is NaiveBlockPool
    with pytest.raises(pytest.UsageError, match=r"'naive_pool': must read package\.module:Class"):
        load("naive_pool")


def test_the_suite_runs_on_the_class_that_is_named() -> None:
    command = [sys.executable, "-m", "pytest", "-q", str(SUITE), "-k", "once_per_reference"]
    command += ["-p", "no:cacheprovider", "--impl", "mutants.pools:FreesTwice"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.stdout + run.stderr
    assert "test_protocol[FreesTwice-check_a_block_is_released_once_per_reference]" in run.stdout
    assert "LRUBlockPool" not in run.stdout
    assert "1 failed" in run.stdout
