"""One suite a protocol, run on quire's class and on a naive one, or on `--impl`'s."""

from __future__ import annotations

import pytest
from implementations import load

# What a reader's class got wrong is to be seen in the message.
pytest.register_assert_rewrite(
    "desk", "fake_cache", "fake_device", "manager_suite", "pool_suite", "rig", "scheduler_suite"
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "implementation" in metafunc.fixturenames:
        named = metafunc.config.getoption("--impl", default=None)
        classes = metafunc.module.IMPLEMENTATIONS if named is None else [load(named)]
        metafunc.parametrize("implementation", classes, ids=lambda cls: cls.__name__)
