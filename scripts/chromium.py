"""Find a Chromium for the browser tests, Lighthouse and the PDF, or install one.

`python scripts/chromium.py` prints the path of one; `--install` fetches it if there is
none: Debian's package as root, Playwright's own build where there is no such package.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MACOS = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")

# What every use here passes: no sandbox (root in a container has none), and none of the
# browser's own traffic, so that a request to another host can only be the page's.
FLAGS = (
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find() -> str | None:
    """The path of a Chromium: `$CHROME`, one on the PATH, then Playwright's; else None."""
    if chosen := os.environ.get("CHROME"):
        path = shutil.which(chosen)
        if path is None:
            raise SystemExit(f"CHROME={chosen} is not a program; unset it or name one")
        return path
    for name in NAMES:
        if path := shutil.which(name):
            return path
    if MACOS.is_file():
        return str(MACOS)
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        return None
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).is_file() else None


DEBIAN = (
    ("apt-get", "update", "-qq"),
    ("apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"),
)
PLAYWRIGHT = (sys.executable, "-m", "playwright")


def install() -> None:
    """Install a Chromium. Raises SystemExit, with one line to act on, if none came."""
    root = os.geteuid() == 0
    if root and shutil.which("apt-get") and all(_failure(command) is None for command in DEBIAN):
        return
    # Only root can install the system's libraries along with it.
    command = (*PLAYWRIGHT, "install", *(["--with-deps"] if root else []), "chromium")
    failure = _failure(command)
    if failure is None and (path := find()):
        failure = _failure((path, "--version"))
    if failure is not None:
        libraries = "" if root else " (its libraries: `sudo .venv/bin/playwright install-deps`)"
        raise SystemExit(
            f"no Chromium, and {failure}{libraries}: install Chromium or Chrome, "
            "or set CHROME to one"
        )


def _failure(command: Sequence[str]) -> str | None:
    """Run a command; return None, or the command and the last line of what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    detail = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
    return f"`{' '.join(command)}` failed ({' '.join(detail)})"


def main() -> None:
    path = find()
    if path is None and "--install" in sys.argv[1:]:
        print("installing Chromium", file=sys.stderr)
        install()
        path = find()
    if path is None:
        raise SystemExit("no Chromium: install Chromium or Chrome, or set CHROME to one")
    print(path)


if __name__ == "__main__":
    main()
