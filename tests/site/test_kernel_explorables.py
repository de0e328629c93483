"""The explorables of kernels: orders, misses and running sums are `quire.analysis.kernels`'."""

from __future__ import annotations

import json
import math
import random
import re
from datetime import datetime
from types import ModuleType
from typing import Any

import pytest
from explorable_host import (
    FOLDER,
    OpenExplorable,
    answer_in,
    commit,
    scroll_width,
)
from playwright.sync_api import Locator, Page, expect

from quire.analysis.kernels import OnlineSoftmax, fetched_stripes, fetches, online_softmax

pytestmark = pytest.mark.browser

NAMES = ("tiles-and-l2", "online-softmax")


def committed(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / "data" / f"{name}.json").read_text("utf-8"))
    return content


@pytest.fixture(scope="module")
def tiles() -> dict[str, Any]:
    return committed("tiles-and-l2")


@pytest.fixture(scope="module")
def row() -> dict[str, Any]:
    return committed("online-softmax")


def table(element: Locator, rows: str) -> dict[str, list[str]]:
    return {
        row.locator("th").inner_text(): row.locator("td").all_inner_texts()
        for row in element.locator(rows).all()
    }


@pytest.mark.parametrize("name", NAMES)
def test_committed_data_is_what_the_script_makes(name: str, make_data: ModuleType) -> None:
    assert json.loads(json.dumps(make_data.MAKERS[name](""))) == committed(name)


# ---- the arithmetic


def test_fetches_equal_quires(page: Page, base: str) -> None:
    """300 products: every tile, what it fetched, and what the cache held afterwards."""
    rng = random.Random(0)
    cases = [
        (rng.randint(1, 9), rng.randint(1, 9), rng.randint(1, 10), rng.randint(2, 20))
        for _ in range(300)
    ]
    page.goto(f"{base}/tiles-and-l2.html")
    answers = page.evaluate(
        """async (cases) => {
            const { fetches } = await import("/explorables/kernels.js");
            return cases.map((product) => fetches(...product)); }""",
        cases,
    )
    for case, answer in zip(cases, answers, strict=True):
        assert [tuple(each.values()) for each in answer] == [
            (f.row, f.column, f.rows_fetched, f.columns_fetched, f.count,
             [f"{kind} {number}" for kind, number in f.cached])
            for f in fetches(*case)
        ]  # fmt: skip


def test_running_sums_equal_quires(page: Page, base: str) -> None:
    """200 rows with masked keys, whole blocks of them, ties and large scores."""
    rng = random.Random(1)
    cases = []
    for i in range(200):
        count, block = rng.randint(1, 14), rng.randint(1, 5)
        scores = [rng.gauss(0, 10 ** rng.randint(-1, 3)) for _ in range(count)]
        if i % 3 == 0:
            scores = [-math.inf if rng.random() < 0.6 else round(score) for score in scores]
        if i % 3 == 1:
            scores[:block] = [-math.inf] * len(scores[:block])
        cases.append((scores, [[rng.gauss(0, 1), rng.gauss(0, 1)] for _ in scores], block))
    page.goto(f"{base}/online-softmax.html")
    answers = page.evaluate(
        """async (cases) => {
            const { onlineSoftmax, output } = await import("/explorables/kernels.js");
            const number = (x) => (x === null ? -Infinity : x);
            const written = (x) => (x === -Infinity ? null : x);
            return cases.map(([scores, values, block]) =>
                onlineSoftmax(scores.map(number), values, block).map((state) =>
                    [written(state.maximum), state.total, ...state.mixed, ...output(state)])); }""",
        [[[None if s == -math.inf else s for s in scores], *rest] for scores, *rest in cases],
    )
    for (scores, values, block), answer in zip(cases, answers, strict=True):
        states = online_softmax(scores, values, block)
        for state, (maximum, *numbers) in zip(states, answer, strict=True):
            assert (-math.inf if maximum is None else maximum) == state.maximum
            expected = [state.total, *state.mixed, *state.output()]
            assert numbers == pytest.approx(expected, rel=1e-12, abs=1e-14)


# ---- tiles and the cache


def assert_tiles(element: Locator, tiles: int, group: int, capacity: int, step: int) -> None:
    """Colours of tiles, stripes in the cache, the sentence and the table are the model's."""
    played = fetches(tiles, tiles, group, capacity)[:step]
    colours = element.evaluate(
        "e => [...e.shadowRoot.querySelectorAll('.chart .tile')].map(t =>"
        "t.classList.contains('done') ? t.style.getPropertyValue('--colour').trim() : '')"
    )
    expected = [""] * tiles**2
    for fetch in played:
        place = fetch.row * tiles + fetch.column
        expected[place] = ("var(--c3)", "var(--c5)", "var(--c2)")[fetch.count]
    assert colours == expected
    cached = element.locator(".chart .cached").count()
    assert cached == (len(played[-1].cached) if played else 0)
    said = element.locator(".said").inner_text()
    if played:
        last, total = played[-1], sum(fetch.count for fetch in played)
        words = ["in the cache", "from memory"]
        assert said == (
            f"Tile {step} of {tiles**2}, row {last.row + 1}, column {last.column + 1}: its stripe "
            f"of rows {words[last.rows_fetched]}, of columns {words[last.columns_fetched]}. "
            f"Fetched so far: {total} stripes."
        )
    plain = fetched_stripes(tiles, tiles, 1, capacity)
    for name, (stripes, times) in table(element, ".orders tbody tr").items():
        digits = re.findall(r"\d+", name)
        width = int(digits[0]) if digits else {"row by row": 1, "column by column": tiles}[name]
        total = fetched_stripes(tiles, tiles, width, capacity)
        assert stripes == str(total)
        assert times == f"{plain / total:.2f}×"


def test_tiles_by_keyboard(open_explorable: OpenExplorable, tiles: dict[str, Any]) -> None:
    count, capacity, asked = tiles["tiles"], tiles["capacity"], tiles["asked"]
    element = open_explorable("tiles-and-l2")
    keyboard, status = element.page.keyboard, element.get_by_role("status")
    assert element.locator("table, svg, select").count() == 0
    plain = fetched_stripes(count, count, 1, capacity)
    grouped = fetched_stripes(count, count, asked, capacity)
    assert answer_in(commit(element, "2")) == pytest.approx(plain / grouped, rel=5e-3)
    assert_tiles(element, count, asked, capacity, count**2)
    expect(element.locator("input[name=capacity]")).to_be_hidden()  # waits for its gate

    slider = element.locator("input[name=step]")
    slider.focus()
    keyboard.press("Home")
    assert_tiles(element, count, asked, capacity, 0)
    for _ in range(3):
        keyboard.press("ArrowRight")
    assert_tiles(element, count, asked, capacity, 3)
    expect(status).to_contain_text(f"Tile 3 of {count**2}, row 3, column 1")
    slider.fill("41")
    assert_tiles(element, count, asked, capacity, 41)
    element.locator("select[name=order]").select_option("1")
    assert_tiles(element, count, 1, capacity, count**2)
    expect(status).to_contain_text(f"row by row, cache of {capacity} stripes: {plain} stripes")

    second = element.locator(".gate").nth(1)
    second.get_by_role("button").click()
    expect(second.get_by_role("alert")).to_contain_text("Choose one")
    second.locator("select").select_option("row by row")
    second.get_by_role("button").click()
    best = min(tiles["choices"], key=lambda g: fetched_stripes(count, count, g, tiles["small"]))
    assert answer_in(second.locator(".verdict")) == fetched_stripes(
        count, count, best, tiles["small"]
    )
    expect(second.locator(".verdict")).to_contain_text(f"in groups of {best} rows: not row by row")
    assert_tiles(element, count, best, tiles["small"], count**2)
    element.locator("input[name=group]").focus()
    keyboard.press("ArrowRight")
    assert_tiles(element, count, best + 1, tiles["small"], count**2)
    element.locator("input[name=capacity]").focus()
    keyboard.press("End")
    assert_tiles(element, count, best + 1, 2 * count + 2, count**2)


def test_tiles_play_and_reduced_motion(open_explorable: OpenExplorable) -> None:
    element = open_explorable("tiles-and-l2")
    commit(element)
    element.page.clock.install(time=datetime(2026, 1, 1))
    element.page.clock.pause_at(datetime(2026, 1, 2))
    element.get_by_role("button", name="Play").click()
    element.page.clock.run_for(60 * 7)
    expect(element.locator(".said")).to_contain_text("Tile 7 of")
    element.get_by_role("button", name="Pause").click()
    element.page.clock.run_for(600)
    expect(element.get_by_role("status")).to_contain_text("Tile 7 of")
    still = open_explorable("tiles-and-l2", reduced_motion="reduce")
    commit(still)
    assert still.get_by_role("button", name="Play").count() == 0
    still.locator("input[name=step]").fill("0")
    still.get_by_role("button", name="Show all steps").click()
    expect(still.locator(".said")).to_contain_text("Tile 256 of 256")


# ---- the softmax in blocks


def assert_states(element: Locator, row: dict[str, Any], scores: list[float], step: int) -> None:
    """The table holds the states up to a step and nothing of later ones."""
    block = row["block"]
    values = [[value] for value in row["values"]]
    states = [OnlineSoftmax(), *online_softmax(scores, values, block)]
    found = table(element, ".states tbody tr")
    assert list(found) == [str(i) for i in range(1, len(states))] or step < len(states) - 1
    shown = element.evaluate(
        "e => [...e.shadowRoot.querySelectorAll('.states tbody tr')].map(r =>"
        "[...r.querySelectorAll('td')].map(d => d.textContent.replaceAll('−', '-')))"
    )
    for number, cells in enumerate(shown, 1):
        if number > step:
            assert cells == [""] * 5
            continue
        state = states[number]
        factor = states[number - 1].factor(scores[(number - 1) * block : number * block])
        assert cells[0] == ("-∞" if state.maximum == -math.inf else f"{state.maximum:.1f}")
        expected = [factor, state.total, state.mixed[0], state.output()[0]]
        assert [float(cell) for cell in cells[1:]] == pytest.approx(expected, abs=0.000501)


def test_online_softmax_by_keyboard(open_explorable: OpenExplorable, row: dict[str, Any]) -> None:
    scores, block = list(row["scores"]), row["block"]
    element = open_explorable("online-softmax")
    keyboard, status = element.page.keyboard, element.get_by_role("status")
    first, second = max(scores[:block]), max(scores[block : 2 * block])
    assert answer_in(commit(element, "0.5")) == pytest.approx(math.exp(first - second), rel=5e-3)
    assert_states(element, row, scores, 2)
    slider = element.locator("input[name=step]")
    slider.focus()
    keyboard.press("End")  # the third block is the second question's
    assert_states(element, row, scores, 2)
    keyboard.press("Home")
    assert_states(element, row, scores, 0)
    expect(status).to_contain_text("Nothing has arrived")
    keyboard.press("ArrowRight")
    assert_states(element, row, scores, 1)
    expect(status).to_contain_text("Block 1 of 4: 0.5, 1.0, −0.4, 0.2. m goes from −∞ to 1.0")

    gate = element.locator(".gate").nth(1)
    assert answer_in(commit(gate, "0.4")) == 1
    assert_states(element, row, scores, 3)
    slider.focus()
    keyboard.press("End")
    assert_states(element, row, scores, 4)
    element.locator("select[name=key]").select_option("9")
    value = element.locator("input[name=score]")
    value.focus()
    keyboard.press("End")
    scores[9] = 6.0
    assert_states(element, row, scores, 4)
    slider.fill("3")
    assert_states(element, row, scores, 3)
    element.get_by_role("button", name="Put all back").click()
    assert_states(element, row, row["scores"], 3)


def test_masked_blocks(open_explorable: OpenExplorable, row: dict[str, Any]) -> None:
    """Without a maximum 0 is subtracted: no NaN anywhere, and the rest is as if they were away."""
    block, hidden = row["block"], -math.inf
    element = open_explorable("online-softmax")
    commit(element)
    commit(element.locator(".gate").nth(1))
    slider = element.locator("input[name=step]")
    for name, blocks in (
        ("the first block", [0]),
        ("the third block", [2]),
        ("all blocks", range(4)),
    ):
        scores = [hidden if i // block in blocks else s for i, s in enumerate(row["scores"])]
        element.locator("select[name=mask]").select_option(name)
        for step in (1, 3, 4):
            slider.fill(str(step))
            assert_states(element, row, scores, step)
        assert "NaN" not in element.evaluate("e => e.shadowRoot.innerHTML")
    slider.fill("1")
    expect(element.locator(".said")).to_contain_text("0 is subtracted, for there is no maximum")


@pytest.mark.parametrize("name", NAMES)
def test_all_that_opens_later_fits_a_phone(name: str, open_explorable: OpenExplorable) -> None:
    element = open_explorable(name, 390)
    commit(element)
    second = element.locator(".gate").nth(1)
    if name == "tiles-and-l2":
        second.locator("select").select_option("row by row")
        second.get_by_role("button").click()
    else:
        commit(second)
        element.locator("select[name=mask]").select_option("the third block")
    assert scroll_width(element) <= 390
    overflowing = element.evaluate(
        "e => [...e.shadowRoot.querySelectorAll('.app *')]"
        ".filter(x => !x.closest('.sr') && x.getBoundingClientRect().right > innerWidth)"
        ".map(x => x.outerHTML.slice(0, 80))"
    )
    assert overflowing == []
