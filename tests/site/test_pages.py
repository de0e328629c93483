"""Every page in a real browser, in both themes, on a desk and on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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

# site.js makes a box that scrolls reachable by keyboard once its section is laid out.
LAY_OUT = ".bd-article section { content-visibility: visible !important }"
REACHABLE = """() => [...document.querySelectorAll(
    ".bd-article pre, .pst-scrollable-table-container, .math > .katex-display"
  )].every(box =>
    !box.checkVisibility() || box.scrollWidth <= box.clientWidth || box.tabIndex === 0)"""
# An explorable loads its data when it comes near.
READY = """() => document.fonts.status === "loaded" &&
  [...document.querySelectorAll("[data-src]")].every(figure =>
    figure.dataset.state || figure.getBoundingClientRect().top > innerHeight + 600)"""

# Contrast is a matter of a text's colour and size and of what is behind it, so of a chapter's
# thousands of texts axe looks at the first of each kind.
AXE = """async () => {
  const kinds = new Set();
  const mark = element => element.toggleAttribute("data-first-of-kind", true);
  const seen = (element, behind) => {
    if (!element.checkVisibility()) return;
    const style = getComputedStyle(element);
    const ground = style.backgroundColor, clear = ground === "rgba(0, 0, 0, 0)";
    behind = clear ? behind : ground.startsWith("rgba") ? behind + ground : ground;
    behind += style.backgroundImage + style.opacity;
    const text = [...element.childNodes].some(n => n.nodeType === Node.TEXT_NODE && n.data.trim());
    if (text || element.matches("input, select, textarea")) {
      const { color, fontSize, fontWeight } = style;
      const kind = [element.localName, color, fontSize, fontWeight, behind].join();
      if (!kinds.has(kind)) mark(element);
      kinds.add(kind);
    }
    element.shadowRoot?.querySelectorAll("*").forEach(mark);
    for (const child of element.children) seen(child, behind);
  };
  seen(document.body, "");
  axe.configure({ rules: [{ id: "color-contrast", selector: "[data-first-of-kind]" }] });
  const { violations } = await axe.run(document, { resultTypes: ["violations"] });
  return violations.map(
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


@contextmanager
def complaints_of(tab: Page, url: str) -> Iterator[list[str]]:
    """Open an address; what goes wrong until the block ends is in the list."""
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
    try:
        tab.goto(url)
        yield complaints
    finally:
        for event, listener in listeners.items():
            tab.remove_listener(event, listener)


@pytest.mark.parametrize("page_name", PAGES)
def test_page_is_sound(page_name: str, tab: Page, theme: str, site_url: str, axe: str) -> None:
    with complaints_of(tab, f"{site_url}{page_name}.html") as complaints:
        complaints += tab.evaluate(LAYOUT)
        shown = tab.evaluate("document.documentElement.dataset.theme")
        if shown != theme:
            complaints.append(f"the reader asks for {theme} and gets {shown}")
        # As when a reader has gone through the page.
        tab.add_style_tag(content=LAY_OUT)
        tab.wait_for_function(REACHABLE, timeout=5000)
        tab.wait_for_function(READY)
        tab.evaluate(axe)
        complaints += tab.evaluate(AXE)
    assert not complaints, "\n".join(complaints)


def test_axe_sees_a_pale_word_among_thousands(browser: Browser, site_url: str, axe: str) -> None:
    context = browser.new_context()
    tab = context.new_page()
    tab.goto(f"{site_url}chapters/{bookmeta.slugs()[0]}.html")
    tab.evaluate(axe)
    tab.add_style_tag(content=".bd-article section:last-of-type p:last-of-type { color: #bbb }")
    complaints = tab.evaluate(AXE)
    context.close()
    assert any("color-contrast" in complaint for complaint in complaints)


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
