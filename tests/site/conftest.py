"""The built site on a loopback server, for the tests that meet it as a reader does."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from explorable_host import base, data, make_data, open_explorable  # noqa: F401 (fixtures)
from filelock import FileLock
from serve import make_server

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"


def bring_up_to_date(run: str) -> str | None:
    """Build the site unless this test run has; what went wrong, or None.

    In `make test`, which sets CLEAN_SITE, it is built from nothing with warnings as errors.
    """
    built = ROOT / "_build" / "site.built"
    built.parent.mkdir(exist_ok=True)
    with FileLock(built.with_suffix(".lock")):
        if not built.is_file() or built.read_text("utf8") != run:
            target = "site" if "CLEAN_SITE" in os.environ else "html"
            done = subprocess.run(
                ["make", target], cwd=ROOT, capture_output=True, text=True, check=False
            )
            if done.returncode:
                return done.stderr[-2000:]
            built.write_text(run, "utf8")
    return None


def pytest_collection_finish(session: pytest.Session) -> None:
    """Let the first worker of `make test` build in the background: nobody waits for it then."""
    worker = getattr(session.config, "workerinput", {})
    if "CLEAN_SITE" in os.environ and worker.get("workerid") == "gw0":
        run = (worker["testrunuid"],)
        threading.Thread(target=bring_up_to_date, args=run, daemon=True).start()


@pytest.fixture(scope="session")
def site(testrun_uid: str) -> Path:
    """The folder of the built site."""
    if complaint := bring_up_to_date(testrun_uid):
        pytest.fail(f"the site does not build:\n{complaint}", pytrace=False)
    return SITE


@pytest.fixture(scope="session")
def site_url(site: Path) -> Iterator[str]:
    """`http://127.0.0.1:<port>/`, the site as a static host would send it (gzip, types)."""
    server = make_server(site)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()
