"""Every page in a real browser, in both themes, on a desk and on a phone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources
from urllib.parse import urlsplit

import bookmeta
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Response, expect

pytestmark = pytest.mark.browser

PAGES = [*bookmeta.pages(), "genindex", "search"]
WIDTHS = {"desk": (1280, 800), "phone": (390, 844)}

LAYOUT = """() => {
  const root = document.documentElement, complaints = [];
  // On a phone a section cuts what sticks out, so the page's own width says too little.
  const clipped = e =>
    e && (getComputedStyle(e).overflowX !== "visible" || clipped(e.parentElement));
  const wide = [...document.querySelectorAll(".bd-article *")].filter(
    e => e.getBoundingClientRect().right > root.clientWidth + 1 && !clipped(e.parentElement));
  if (wide.length || root.scrollWidth > root.clientWidth) {
    complaints.push(`scrolls sideways: ${wide.slice(0, 5).map(e => e.outerHTML.slice(0, 80))}`);
  }
  for (const icon of document.querySelectorAll("[class*='fa-']")) {
    if (!getComputedStyle(icon).getPropertyValue("--icon")) {
      complaints.push(`css/icons.css lacks the icon of "${icon.className}"`);
    }
  }
  return complaints;
}"""

# site.js makes a box that scrolls reachable by keyboard once its section is laid out, as all are
# when a reader has gone through the page.
LAY_OUT = ".bd-article section { content-visibility: visible !important }"
REACHABLE = """() => [...document.querySelectorAll(
    ".bd-article pre, .pst-scrollable-table-container, .math > .katex-display"
  )].every(box =>
    !box.checkVisibility() || box.scrollWidth <= box.clientWidth || box.tabIndex === 0)"""

# axe takes most of a page's time, so no rule is asked twice for one answer: colours are looked at
# in both themes on a desk, since no width changes them, and all the rest in one theme at both
# widths. In code few kinds of token recur by the thousand: of each kind, in each kind of block, the
# first is looked at.
AXE = """async ([colours, structure]) => {
  const first = new Map();
  for (const token of document.querySelectorAll("div.highlight :is(pre, span)")) {
    const block = token.closest("div.highlight");
    const kind = `${block.parentElement.className}/${block.className}/${token.className}`;
    if (!first.has(kind)) first.set(kind, token);
  }
  const tokens = { include: [document, ...first.values()], exclude: ["div.highlight"] };
  const ofColour = ["color-contrast", "link-in-text-block"], resultTypes = ["violations"];
  const off = Object.fromEntries(ofColour.map(rule => [rule, { enabled: false }]));
  const runs = [];
  if (structure) runs.push(await axe.run(document, { resultTypes, rules: off }));
  if (colours) {
    runs.push(await axe.run(first.size ? tokens : document, { resultTypes, runOnly: ofColour }));
  }
  return runs.flatMap(run => run.violations).map(
    v => `axe ${v.id}: ${v.help}\\n    ` + v.nodes.slice(0, 4).map(
      n => `${n.target.join(" ")} — ${n.html.slice(0, 160)} ${n.any.map(a => a.message).join("; ")}`
    ).join("\\n    "));
}"""


@pytest.fixture(scope="session")
def axe() -> str:
    return (resources.files("axe_playwright_python") / "axe.min.js").read_text("utf8")


@pytest.fixture(scope="module", params=["light", "dark"])
def theme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=list(WIDTHS))
def tab(request: pytest.FixtureRequest, theme: str, browser: Browser) -> Iterator[Page]:
    """One tab that visits the pages in turn, as a reader's does."""
    width, height = WIDTHS[request.param]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=theme, reduced_motion="reduce"
    )
    yield context.new_page()
    context.close()


def visit(tab: Page, url: str) -> list[str]:
    """Open an address and wait until it is quiet; what went wrong on the way."""
    complaints: list[str] = []
    host = urlsplit(url).netloc

    def on_console(message: ConsoleMessage) -> None:
        if message.type == "error":
            complaints.append(f"console: {message.text}")

    def on_response(response: Response) -> None:
        if urlsplit(response.url).netloc != host and not response.url.startswith(
            ("data:", "blob:")
        ):
            complaints.append(f"asked another host: {response.url}")
        elif response.status >= 400:
            complaints.append(f"{response.status}: {response.url}")

    listeners = {
        "console": on_console,
        "pageerror": lambda error: complaints.append(f"script: {error}"),
        "requestfailed": lambda request: complaints.append(f"failed: {request.url}"),
        "response": on_response,
    }
    for event, listener in listeners.items():
        tab.on(event, listener)  # type: ignore[call-overload]
    tab.goto(url)
    tab.wait_for_load_state("networkidle")
    for event, listener in listeners.items():
        tab.remove_listener(event, listener)
    return complaints


def width_of(tab: Page) -> int:
    """The width of a tab's window, in CSS pixels."""
    size = tab.viewport_size
    assert size
    return size["width"]


@pytest.mark.parametrize("page_name", PAGES)
def test_page_is_sound(page_name: str, tab: Page, theme: str, site_url: str, axe: str) -> None:
    complaints = visit(tab, f"{site_url}{page_name}.html")
    complaints += tab.evaluate(LAYOUT)
    shown = tab.evaluate("document.documentElement.dataset.theme")
    if shown != theme:
        complaints.append(f"the reader asks for {theme} and gets {shown}")
    colours, structure = width_of(tab) == WIDTHS["desk"][0], theme == "light"
    if colours or structure:
        tab.add_style_tag(content=LAY_OUT)
        tab.wait_for_function(REACHABLE, timeout=5000)
        tab.evaluate(axe)
        complaints += tab.evaluate(AXE, [colours, structure])
    assert not complaints, "\n".join(complaints)


def test_no_style_sheet_of_ours_changes_a_colour_with_the_width() -> None:
    """Or else axe must look at colours on a phone, too."""
    for path in (bookmeta.ROOT / "book/_static/css").glob("*.css"):
        sheet = path.read_text("utf8")
        for block in re.findall(r"@media [^{]*-width[^{]*{((?:[^{}]*{[^{}]*})*)[^{}]*}", sheet):
            assert not re.search(r"color|background|fill|stroke|opacity|--q-\d", block), path.name


def test_a_phone_makes_a_box_reachable_when_its_section_is_laid_out(
    browser: Browser, site_url: str
) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844})
    tab = context.new_page()
    tab.goto(f"{site_url}chapters/{bookmeta.slugs()[0]}.html")
    # Early, or every section would have been laid out to find out.
    last = tab.locator(".bd-article div.highlight pre:visible").last
    assert last.get_attribute("tabindex") is None
    tab.add_style_tag(content=".bd-article div.highlight pre { width: 4rem }")
    last.scroll_into_view_if_needed()
    expect(last).to_have_attribute("tabindex", "0")
    context.close()


def test_the_theme_button_works_and_is_remembered(browser: Browser, site_url: str) -> None:
    context = browser.new_context(color_scheme="light", viewport={"width": 1280, "height": 800})
    tab = context.new_page()
    tab.goto(f"{site_url}{PAGES[0]}.html")
    seen = set()
    for _ in range(3):
        tab.locator(".theme-switch-button:visible").first.click()
        seen.add(tab.evaluate("document.documentElement.dataset.mode"))
    assert seen == {"light", "dark", "auto"}
    while tab.evaluate("document.documentElement.dataset.mode") != "dark":
        tab.locator(".theme-switch-button:visible").first.click()
    tab.goto(f"{site_url}{PAGES[1]}.html")
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
    context.close()


def test_a_page_reads_without_javascript(browser: Browser, site_url: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    for slug in bookmeta.slugs():
        tab.goto(f"{site_url}chapters/{slug}.html")
        assert tab.locator("article h1").is_visible()
        # A formula is typeset, an explorable shows its static figure.
        for selector in (".katex-html", "figure.q-explorable > * > *"):
            for part in tab.locator(selector).all()[:3]:
                assert part.is_visible(), f"{slug}: {selector} is hidden without JavaScript"
    context.close()
