"""Print the built site into one PDF with an outline: `make pdf`.

Chromium prints each page of `_toc.yml` with the site's print style sheet, folded parts
open (site.js), and the sheets are joined in reading order. Links between pages stay
links to the published site.
"""

from __future__ import annotations

import io
import sys
import threading
from pathlib import Path

import chromium
import yaml
from playwright.sync_api import sync_playwright
from pypdf import PdfReader, PdfWriter
from serve import make_server

sys.path.insert(0, "book/_ext")
from bookmeta import ROOT, pages, site_url

TARGET = ROOT / "_build" / "pdf" / "llm-inference-systems.pdf"
MARGIN = {"top": "18mm", "bottom": "20mm", "left": "18mm", "right": "18mm"}
FOOTER = (
    '<div style="width:100%;font:8pt sans-serif;color:#555;text-align:center">'
    '<span class="title"></span></div>'
)


def parts() -> dict[str, str]:
    """The caption of the part that begins with a page, by that page."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf8"))
    return {part["chapters"][0]["file"]: part["caption"] for part in toc["parts"]}


def print_pages(site: Path) -> list[tuple[str, str, bytes]]:
    """(page, title, PDF) for every page, in reading order."""
    server = make_server(site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}/"
    sheets = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium.find(), args=list(chromium.FLAGS)
        )
        tab = browser.new_page(color_scheme="light")
        for page in pages():
            tab.goto(f"{base}{page}.html")
            tab.wait_for_load_state("networkidle")
            tab.emulate_media(media="print", color_scheme="light")
            tab.evaluate("dispatchEvent(new Event('beforeprint'))")
            tab.evaluate("document.fonts.ready.then(() => true)")
            # On paper a link to the loopback server leads nowhere.
            tab.evaluate(
                "([from, to]) => document.querySelectorAll('a[href]').forEach("
                "a => { if (a.href.startsWith(from)) a.href = a.href.replace(from, to); })",
                [base, site_url()],
            )
            title = tab.locator("article h1").first.evaluate(
                "e => [...e.childNodes].filter(n => !n.classList?.contains('headerlink'))"
                ".map(n => n.textContent).join('').trim()"
            )
            data = tab.pdf(
                format="A4",
                print_background=True,
                display_header_footer=True,
                header_template="<span></span>",
                footer_template=FOOTER,
                margin=MARGIN,  # type: ignore[arg-type]
            )
            sheets.append((page, title, data))
        browser.close()
    server.shutdown()
    return sheets


def join(sheets: list[tuple[str, str, bytes]]) -> PdfWriter:
    """One document whose outline has the parts and, under each, its pages."""
    book = PdfWriter()
    captions, parent = parts(), None
    for page, title, data in sheets:
        first = len(book.pages)
        for sheet in PdfReader(io.BytesIO(data)).pages:
            book.add_page(sheet)
        if page in captions:
            parent = book.add_outline_item(title=captions[page], page_number=first, bold=True)
        book.add_outline_item(title=title, page_number=first, parent=parent)
    book.add_metadata({"/Title": "LLM Inference Systems"})
    book.compress_identical_objects()
    return book


def main() -> None:
    site = ROOT / "_build" / "html"
    if not (site / "index.html").is_file():
        raise SystemExit(f"{site.relative_to(ROOT)} holds no site; build it with: make html")
    book = join(print_pages(site))
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    book.write(TARGET)
    size = TARGET.stat().st_size / 1e6
    print(f"{TARGET.relative_to(ROOT)}: {len(book.pages)} pages, {size:.1f} MB")


if __name__ == "__main__":
    main()
