"""The built site on a loopback server, for the tests that meet it as a reader does."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from explorable_host import base, data, make_data, open_explorable  # noqa: F401 (fixtures)
from filelock import FileLock
from serve import make_server

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"


@pytest.fixture(scope="session")
def site() -> Path:
    """The folder of the built site.

    `make test` has just built it from nothing and says so in SITE_IS_FRESH; otherwise it
    is brought up to date here, by one worker while the others wait.
    """
    if "SITE_IS_FRESH" not in os.environ:
        jupyter_book = Path(sys.executable).parent / "jupyter-book"
        command = [str(jupyter_book), "build", ".", "--path-output", ".", "-q"]
        (ROOT / "_build").mkdir(exist_ok=True)
        with FileLock(ROOT / "_build" / "site.lock"):
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(f"the site does not build:\n{done.stderr[-2000:]}", pytrace=False)
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
