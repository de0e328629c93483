"""`Scheduler`: the suite, that it tells right from wrong, and ten thousand requests.

pytest tests/engine/protocols/test_scheduler_protocol.py --impl package.module:Class
"""

from __future__ import annotations

import mutants.schedulers
import pytest
import scheduler_suite
from implementations import Check, checks_of, classes_of, killed_by
from naive_scheduler import NaiveScheduler

from quire.scheduler import TokenBudgetScheduler

IMPLEMENTATIONS = (TokenBudgetScheduler, NaiveScheduler)


@pytest.mark.parametrize("check", checks_of(scheduler_suite))
def test_protocol(implementation: type, check: Check) -> None:
    check(implementation)


@pytest.mark.parametrize("mutant", classes_of(mutants.schedulers))
def test_the_suite_kills(mutant: type) -> None:
    assert killed_by(checks_of(scheduler_suite), mutant) is not None
