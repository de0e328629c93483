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
# Where a page is read, and the theme it opens in before the reader asks for the other.
READERS = {"desk": (1280, 800, "light"), "phone": (390, 844, "dark")}
OTHER = {"light": "dark", "dark": "light"}

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
  for (const sign of document.querySelectorAll(".bd-article .katex svg")) {
    if (sign.checkVisibility() && sign.getBoundingClientRect().height < 2) {
      const formula = sign.closest(".katex").textContent.slice(0, 60);
      complaints.push(`a sign of a formula is not drawn: ${formula}`);
    }
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
    ".bd-article pre, .bd-article figure:has(> svg.q-figure), " +
    ".pst-scrollable-table-container, .math > .katex-display"
  )].every(box =>
    !box.checkVisibility() || box.scrollWidth <= box.clientWidth || box.tabIndex === 0)"""
# An explorable loads its data when it comes near.
READY = """() => document.fonts.status === "loaded" &&
  [...document.querySelectorAll("[data-src]")].every(figure =>
    figure.dataset.state || figure.getBoundingClientRect().top > innerHeight + 600)"""

# Contrast is a matter of a text's colour and size and of what is behind it, so of a chapter's
# thousands of texts axe looks at the first of each kind. Of code, whose tokens are most of a
# page, the other tokens of a kind become plain text before axe walks over them; there the class
# counts, too, for two colours that are one in this theme may be two in the other.
AXE = """async (rules) => {
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
      const token = element.matches("pre span") && element.className;
      const kind = [element.localName, token, color, fontSize, fontWeight, behind].join();
      if (!kinds.has(kind)) mark(element);
      kinds.add(kind);
    }
    element.shadowRoot?.querySelectorAll("*").forEach(mark);
    for (const child of element.children) seen(child, behind);
  };
  seen(document.body, "");
  for (const token of document.querySelectorAll("pre span:not([data-first-of-kind])")) {
    token.replaceWith(...token.childNodes);
  }
  axe.configure({ rules: [{ id: "color-contrast", selector: "[data-first-of-kind]" }] });
  const chosen = rules ? { runOnly: rules } : {};
  const { violations } = await axe.run(document, { resultTypes: ["violations"], ...chosen });
  return violations.map(
    v => `axe ${v.id}: ${v.help}\\n    ` + v.nodes.slice(0, 4).map(
      n => `${n.target.join(" ")} — ${n.html.slice(0, 160)} ${n.any.map(a => a.message).join("; ")}`
    ).join("\\n    "));
}"""


@pytest.fixture(scope="session")
def axe() -> str:
    return (resources.files("axe_playwright_python") / "axe.min.js").read_text("utf8")


@pytest.fixture(scope="module", params=list(READERS))
def reader(request: pytest.FixtureRequest, browser: Browser) -> Iterator[tuple[Page, str]]:
    """One tab that visits the pages in turn, as a reader's does, and the theme they open in."""
    width, height, theme = READERS[request.param]
    context = browser.new_context(
        viewport={"width": width, "height": height}, reduced_motion="reduce"
    )
    yield context.new_page(), theme
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
def test_page_is_sound(page_name: str, reader: tuple[Page, str], site_url: str, axe: str) -> None:
    tab, theme = reader
    tab.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
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
        complaints += [f"{theme}: {said}" for said in tab.evaluate(AXE)]
        other = OTHER[theme]
        tab.emulate_media(color_scheme=other)  # type: ignore[arg-type]
        tab.wait_for_function(f"document.documentElement.dataset.theme === '{other}'", timeout=5000)
        # A theme changes colours and nothing else.
        complaints += [f"{other}: {said}" for said in tab.evaluate(AXE, ["color-contrast"])]
    assert not complaints, "\n".join(complaints)


def test_axe_sees_a_pale_word_among_thousands(browser: Browser, site_url: str, axe: str) -> None:
    context = browser.new_context()
    tab = context.new_page()
    tab.goto(f"{site_url}chapters/{bookmeta.slugs()[0]}.html")
    tab.evaluate(axe)
    pale = [".bd-article figcaption p", "pre .k"]
    tab.add_style_tag(content=f"{', '.join(pale)} {{ color: #bbb !important }}")
    complaints = "\n".join(tab.evaluate(AXE))
    context.close()
    assert "color-contrast" in complaints
    assert '<span class="caption-text"' in complaints
    assert '<span class="k"' in complaints  # of code


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
        # A formula outside a folded box is typeset, an explorable shows its static figure.
        for selector in (".katex-html:not(details *)", "figure.q-explorable > * > *"):
            for part in tab.locator(selector).all()[:3]:
                assert part.is_visible(), f"{slug}: {selector} is hidden without JavaScript"
    context.close()
