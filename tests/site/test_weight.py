"""What a first visit costs on the wire, from the gzip server the reader's host stands for."""

from __future__ import annotations

import bookmeta
import pytest
from playwright.sync_api import Browser, Response

pytestmark = pytest.mark.browser

CHAPTER_LIMIT = 900_000
PAGE_LIMIT = 450_000


def heaviest_pages() -> list[str]:
    """The home page, the chapters, and the longest of the pages that are less than a chapter."""
    home, *others = bookmeta.pages()
    chapters = [name for name in others if name.startswith("chapters/")]
    rest = {name: (bookmeta.ROOT / f"{name}.md").stat().st_size for name in others}
    longest = sorted(set(others) - set(chapters), key=lambda name: -rest[name])
    return [home, *chapters, *longest[:4]]


@pytest.mark.parametrize("page_name", heaviest_pages())
def test_first_load_is_within_its_budget(page_name: str, browser: Browser, site_url: str) -> None:
    context = browser.new_context()  # an empty cache
    tab = context.new_page()
    sizes: dict[str, int] = {}

    def weigh(response: Response) -> None:
        sizes[response.url] = int(response.headers.get("content-length", 0))

    tab.on("response", weigh)
    tab.goto(f"{site_url}{page_name}.html")
    tab.wait_for_load_state("networkidle")
    context.close()
    limit = CHAPTER_LIMIT if page_name.startswith("chapters/") else PAGE_LIMIT
    heaviest = sorted(sizes.items(), key=lambda item: -item[1])[:8]
    assert sum(sizes.values()) <= limit, f"{sum(sizes.values())} bytes; heaviest: {heaviest}"
    assert len(sizes) > 5
