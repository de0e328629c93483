"""What every test shares: where it may run, and the browser it drives.

Without `--require-gpu` no test sees a GPU, so `make test` means the same on every machine.
With it (`make test-gpu`) nothing may skip: a test that would, fails and says why.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Their files take minutes, so they come first: no worker waits at the end for another. The site
# is built meanwhile.
LONGEST = ("notebooks", "labs", "site")
# Of tests/engine, those that take ten seconds and more: `make quick` leaves them out.
LONG = {
    "aot", "attention_kernels", "cli", "expert_parallel", "fuzz", "kernel_ladders", "kernels",
    "launched", "length_controller", "length_controller_loads", "model_config", "moe", "oracle",
    "overlapped_guesses", "parallel_engines", "prompt_graphs", "rank_processes", "ring_attention",
    "scheduler_protocol", "speculation", "speculation_laws",
}  # fmt: skip
SEVERAL_GPUS = {"two_gpus": 2, "four_gpus": 4}  # markers
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores; one thread each keeps them from waiting on one another. Other
    # conftest files import torch, which looks once.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
for folder in ("book/_ext", "scripts", "tests/book"):
    sys.path.insert(0, str(ROOT / folder))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-gpu",
        action="store_true",
        help="run what needs a CUDA device, and fail whatever would otherwise skip",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "notebook: a cell of a notebook, run by nbval")
    if not config.getoption("--require-gpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # A shell starts what it sends to the background with interrupts ignored; tests raise some.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses by marker
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker("notebook")
        if item.path.stem.removeprefix("test_") in LONG:
            item.add_marker("long")
    folders = [ROOT / "tests" / name for name in LONGEST]

    def place(item: pytest.Item) -> int:
        return next((i for i, f in enumerate(folders) if f in item.path.parents), len(folders))

    items.sort(key=place)
    if config.getoption("--require-gpu"):
        _leave_out_several_gpus(config, items)


def _leave_out_several_gpus(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With too few GPUs those tests are left out and counted: to fail would fault a machine."""
    import torch

    count = torch.cuda.device_count()
    needed = {name: number for name, number in SEVERAL_GPUS.items() if number > count}
    wanting = [item for item in items if any(item.get_closest_marker(name) for name in needed)]
    if wanting:
        config.hook.pytest_deselected(items=wanting)
        items[:] = [item for item in items if item not in wanting]


@pytest.fixture(autouse=True)
def _the_same_numbers_each_run() -> None:
    """What a test draws without a seed of its own is the same in every run and every order."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is None:
        return
    if not item.config.getoption("--require-gpu"):
        pytest.skip("runs on a GPU: make test-gpu")
    import torch

    if not torch.cuda.is_available():
        pytest.fail("--require-gpu, and torch finds no CUDA device", pytrace=False)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Hold a worker to its one thread: with two a small product takes ten times as long."""
    torch = sys.modules.get("torch")
    if "PYTEST_XDIST_WORKER" in os.environ and torch and torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        pytest.fail("left torch with several threads for the tests after it", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if (
        report.skipped
        and item.config.getoption("--require-gpu")
        and not hasattr(report, "wasxfail")
    ):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"--require-gpu allows no skip: {reason}"
    return report


@pytest.fixture(scope="session")
def base_url() -> None:
    """pytest-base-url's own fixture is written in a form that this pytest warns about."""
    return None


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args: dict[str, Any]) -> dict[str, Any]:
    """The machine's own Chromium, with nothing of its own to ask the network."""
    import chromium

    path = chromium.find()
    if path is None:
        pytest.fail("no Chromium: run `make test`, which installs one, or set CHROME to one")
    return {**browser_type_launch_args, "executable_path": path, "args": list(chromium.FLAGS)}
