"""Search needs no server and no network, and works from the keyboard."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser


def test_search_from_the_keyboard_finds_a_page(page: Page, site_url: str) -> None:
    page.goto(f"{site_url}book/index.html")
    page.wait_for_load_state("networkidle")
    page.keyboard.press("Control+k")
    field = page.locator("#pst-search-dialog input[name=q]")
    expect(field).to_be_focused()
    field.fill("autoregressive")
    field.press("Enter")
    page.wait_for_url("**/search.html?q=autoregressive*")
    hits = page.locator("#search-results li a")
    expect(hits.first).to_be_visible()
    assert any("autoregressive-decoding" in (hit.get_attribute("href") or "") for hit in hits.all())


def test_a_word_that_is_nowhere_is_said_to_be_nowhere(page: Page, site_url: str) -> None:
    page.goto(f"{site_url}search.html?q=xylophonequartz")
    expect(page.locator("#search-results")).to_contain_text("did not match any documents")
