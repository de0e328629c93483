"""A least page for each explorable, served alone, and what their tests share.

The fixtures reach the tests through conftest.py; no built site is needed.
"""

from __future__ import annotations

import importlib.util
import json
import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, expect

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "book" / "_static" / "explorables"
NAMES = (
    "decode-stepper",
    "latency-calculator",
    "sampler-playground",
    "block-table-player",
    "prefix-cache-explorer",
    "batching-timeline",
    "load-explorer",
    "shared-race",
    "speculation-payoff",
    "quantization-grid",
    "quantization-crossover",
    "tiles-and-l2",
    "online-softmax",
    "layout-planner",
    "expert-balancer",
)
FALLBACK = "The static form of this figure."

VARIABLES = """
:root { --q-ink: rgb(29, 33, 41); --q-paper: #fff; --q-rule: #d5d9de; --q-muted: rgb(91, 98, 109);
  --q-1: #2f74b8; --q-2: #b84a1f; --q-3: #137a65; --q-4: #9a5fb0; --q-5: #8a6600; --q-6: #64748b; }
@media (prefers-color-scheme: dark) { :root { --q-ink: rgb(230, 232, 235); --q-paper: #14181f;
  --q-rule: #3a414c; --q-muted: #a4acb8; --q-1: #6fa8e0; --q-2: #ee8a5d; --q-3: #4cc2a5; } }
body { background: var(--q-paper); color: var(--q-ink); margin: 0 12px; }
"""


def host_page(name: str, style: str = VARIABLES, data: str | None = None) -> str:
    """The least page that holds one explorable."""
    source = data or f"/explorables/data/{name}.json"
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><style>{style}</style></head><body><main><h1>{name}</h1>
<quire-{name} data-src="{source}"><p>{FALLBACK}</p></quire-{name}></main>
<script type="module" src="/explorables/{name}.js"></script></body></html>"""


class Handler(SimpleHTTPRequestHandler):
    """`book/_static` plus the host pages: /<name>.html, /bare-<name>.html, /broken-<name>.html."""

    extensions_map = {  # noqa: RUF012 (the base class declares it so)
        **SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".json": "application/json",
    }

    def do_GET(self) -> None:
        match = re.fullmatch(r"/(bare-|broken-)?([a-z0-9-]+)\.html", self.path)
        if match is None:
            super().do_GET()
            return
        kind, name = match.groups()
        content = host_page(
            name,
            "" if kind == "bare-" else VARIABLES,
            "/explorables/data/missing.json" if kind == "broken-" else None,
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a test's output is its own."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`http://127.0.0.1:<port>`, with `book/_static` at the root."""
    handler = partial(Handler, directory=str(FOLDER.parent))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def make_data() -> ModuleType:
    """The script that makes the data, as a module."""
    spec = importlib.util.spec_from_file_location("make_data", FOLDER / "make_data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    """The committed data, by explorable."""
    return {name: json.loads((FOLDER / "data" / f"{name}.json").read_text()) for name in NAMES}


OpenExplorable = Callable[..., Locator]


@pytest.fixture
def open_explorable(browser: Browser, base: str) -> Iterator[OpenExplorable]:
    """Open an explorable in a page of its own; fail on a console error or a foreign request."""
    contexts = []
    problems: list[str] = []

    def opened(name: str, width: int = 1280, **options: Any) -> Locator:
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "console",
            lambda message: (
                problems.append(message.text) if message.type in ("error", "warning") else None
            ),
        )
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((base, "data:"))
                else problems.append(f"request to {request.url}")
            ),
        )
        page.goto(f"{base}/{name}.html")
        element = page.locator(f"quire-{name}")
        expect(element).to_have_attribute("data-state", "ready")
        return element

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


def commit(element: Locator, guess: str = "40") -> Locator:
    """Enter a prediction and return the verdict."""
    field = element.locator("input[name=prediction]")
    field.fill(guess)
    field.press("Enter")
    verdict = element.locator(".verdict")
    expect(verdict).to_be_visible()
    return verdict


def answer_in(verdict: Locator) -> float:
    """The number a verdict opens with."""
    match = re.match(r"[\d,.]+", verdict.inner_text())
    assert match is not None
    return float(match.group().replace(",", ""))


def scroll_width(element: Locator) -> int:
    width: int = element.page.evaluate("document.documentElement.scrollWidth")
    return width
