"""The expert balancer: placements and loads are those of `quire.parallel.expert_placement`."""

from __future__ import annotations

import json
import random
from types import ModuleType
from typing import Any

import pytest
from explorable_host import FOLDER, OpenExplorable, answer_in, commit, scroll_width
from playwright.sync_api import Locator, Page, expect

from quire.parallel.expert_placement import ExpertPlacement, contiguous, packed, replicated

pytestmark = pytest.mark.browser

EXPERTS = 16


@pytest.fixture(scope="module")
def balancer() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / "data" / "expert-balancer.json").read_text())
    return content


def loads_of(balancer: dict[str, Any], kind: str, layer: int) -> list[int]:
    loads: list[int] = balancer["loads"][kind][layer]
    return loads


# ---- the arithmetic


def test_placements_are_quires(page: Page, base: str, balancer: dict[str, Any]) -> None:
    """Recorded loads and drawn ones with ties, on 1 to 8 ranks, with all numbers of copies."""
    rng = random.Random(3)
    loads = [layer for kind in balancer["loads"].values() for layer in kind]
    loads += [[rng.choice((0, 1, 1, 2, 7, 50)) for _ in range(EXPERTS)] for _ in range(12)]
    loads += [[1000 // (1 + i) for i in range(12)], [0] * 8, [5] * 6]
    cases = []
    for each in loads:
        for ranks in (1, 2, 3, 4, 8):
            if len(each) % ranks == 0:
                most = len(each) * ranks
                slots = sorted({*range(len(each), min(most, 3 * len(each)) + 1, ranks), most})
                cases.append((each, ranks, slots))
    page.goto(f"{base}/expert-balancer.html")
    answers = page.evaluate(
        """async (cases) => {
            const p = await import("/explorables/expert-placement.js");
            const all = (slots, loads) =>
                [slots, p.rankLoads(slots, loads), p.imbalance(slots, loads)];
            return cases.map(([loads, ranks, sizes]) => [
                all(p.contiguous(loads.length, ranks), loads), all(p.packed(loads, ranks), loads),
                ...sizes.map((size) => all(p.replicated(loads, ranks, size), loads))]);
        }""",
        cases,
    )
    compared = 0
    for (each, ranks, sizes), answer in zip(cases, answers, strict=True):
        expected = [contiguous(len(each), ranks), packed(each, ranks)]
        expected += [replicated(each, ranks, size) for size in sizes]
        for (slots, rank_loads, ratio), own in zip(answer, expected, strict=True):
            assert tuple(map(tuple, slots)) == own.slots
            assert rank_loads == pytest.approx(own.rank_loads(each), rel=1e-12)
            assert ratio == pytest.approx(own.imbalance(each), rel=1e-12)
            compared += 1
    assert compared > 500


# ---- the form


def held(element: Locator) -> list[list[int | None]]:
    """What the table shows: the expert of each slot, None where it is empty."""
    return [
        [None if text == "+" else int(text) for text in row.locator("button").all_inner_texts()]
        for row in element.locator("tbody tr").all()
    ]


def assert_shows(element: Locator, loads: list[int], other: list[int]) -> None:
    """Table, bars and sentence say what Python says of the placement in the table."""
    shown = held(element)
    copies = [sum(row.count(expert) for row in shown) for expert in range(EXPERTS)]
    assert min(copies) >= 1
    by_rank = [sum(loads[e] / copies[e] for e in row if e is not None) for row in shown]
    mean = sum(by_rank) / len(by_rank)
    cells = element.locator("tbody td:last-child").all_inner_texts()
    assert cells == [f"{load / mean:.2f}" for load in by_rank]
    reading = element.locator(".reading").inner_text()
    assert f"Fullest rank: {max(by_rank) / mean:.2f} times the mean" in reading
    by_rank_other = [sum(other[e] / copies[e] for e in row if e is not None) for row in shown]
    assert f": {max(by_rank_other) * len(shown) / sum(other):.2f} times the mean." in reading
    widths = element.evaluate(
        """e => { const found = {};
            for (const x of e.shadowRoot.querySelectorAll('.chart rect')) {
                const y = x.y.baseVal.value; found[y] = (found[y] ?? 0) + x.width.baseVal.value; }
            return Object.entries(found).sort((a, b) => a[0] - b[0]).map(x => x[1]); }"""
    )
    assert [w / max(widths) for w in widths] == pytest.approx(
        [load / max(by_rank) for load in by_rank], abs=1e-3
    )


def slot(element: Locator, rank: int, at: int) -> Locator:
    return element.locator(f"tbody tr:nth-child({rank + 1}) button:nth-child({at + 1})")


def test_the_balancers_form(open_explorable: OpenExplorable, balancer: dict[str, Any]) -> None:
    element = open_explorable("expert-balancer")
    prose, code = (loads_of(balancer, kind, 3) for kind in ("prose", "code"))
    verdict = commit(element, "5")
    by_number = contiguous(EXPERTS, 4)
    assert answer_in(verdict) == float(f"{by_number.imbalance(prose):.2f}")
    assert held(element) == [list(row) for row in by_number.slots]
    assert_shows(element, prose, code)

    element.locator("select[name=spares]").select_option("1")
    assert [row[-1] for row in held(element)] == [None] * 4
    assert_shows(element, prose, code)
    element.locator("button[name=replicated]").click()
    expected = replicated(prose, 4, EXPERTS + 4)
    assert held(element) == [list(row) for row in expected.slots]
    assert_shows(element, prose, code)
    assert f"{expected.imbalance(code):.2f} times" in element.locator(".reading").inner_text()

    element.locator("select[name=ranks]").select_option("8")
    element.locator("select[name=kind]").select_option("code")
    element.locator("select[name=layer]").select_option("0")
    element.locator("select[name=spares]").select_option("2")
    element.locator("button[name=replicated]").click()
    code, prose = (loads_of(balancer, kind, 0) for kind in ("code", "prose"))
    assert held(element) == [list(row) for row in replicated(code, 8, EXPERTS + 16).slots]
    assert_shows(element, code, prose)


def test_by_keyboard_alone(open_explorable: OpenExplorable, balancer: dict[str, Any]) -> None:
    element = open_explorable("expert-balancer")
    prose, code = (loads_of(balancer, kind, 3) for kind in ("prose", "code"))
    commit(element)
    element.locator("select[name=spares]").select_option("1")
    before = held(element)
    keyboard = element.page.keyboard

    slot(element, 0, 1).focus()
    keyboard.press("Enter")
    expect(slot(element, 0, 1)).to_have_attribute("aria-pressed", "true")
    expect(element.get_by_role("status")).to_contain_text("Expert 1 of rank 0 is picked up")
    expect(slot(element, 0, 1)).to_be_focused()
    slot(element, 2, 0).focus()
    keyboard.press("Space")
    after = held(element)
    assert (after[0][1], after[2][0]) == (before[2][0], before[0][1])
    expect(slot(element, 2, 0)).to_be_focused()
    expect(element.get_by_role("status")).to_contain_text("Fullest rank: ")
    assert_shows(element, prose, code)

    keyboard.press("Enter")  # a copy into an empty slot
    slot(element, 3, 4).focus()
    keyboard.press("Enter")
    assert held(element)[3][4] == after[2][0] == held(element)[2][0]
    expect(slot(element, 3, 4)).to_have_accessible_name("expert 1, one of 2 copies, on rank 3")
    assert_shows(element, prose, code)
    keyboard.press("Delete")
    assert held(element) == after

    keyboard.press("Enter")  # an empty slot cannot be picked up
    expect(element.locator(".refused")).to_contain_text("This slot is empty")
    slot(element, 0, 0).focus()
    keyboard.press("Enter")
    keyboard.press("Escape")
    assert element.locator("[aria-pressed=true]").count() == 0
    keyboard.press("Delete")
    expect(element.locator(".refused")).to_contain_text("Expert 0 is held once")
    assert held(element) == after


def test_no_rank_gets_twins(open_explorable: OpenExplorable, balancer: dict[str, Any]) -> None:
    element = open_explorable("expert-balancer")
    commit(element)
    element.locator("select[name=spares]").select_option("1")
    before = held(element)
    slot(element, 1, 0).click()
    slot(element, 1, 4).click()
    expect(element.locator(".refused")).to_contain_text("Rank 1 holds expert 4 already")
    assert held(element) == before

    slot(element, 1, 0).click()  # a copy of 4 on rank 0, then 5 of rank 1 against it
    slot(element, 0, 4).click()
    after = held(element)
    slot(element, 0, 4).click()
    slot(element, 1, 1).click()
    expect(element.locator(".refused")).to_contain_text("Rank 1 holds expert 4 already")
    assert held(element) == after
    slot(element, 0, 0).click()  # within a rank slots may change places
    slot(element, 0, 1).click()
    assert held(element)[0][:2] == [1, 0]
    loads = [loads_of(balancer, kind, 3) for kind in ("prose", "code")]
    assert_shows(element, *loads)


def test_by_dragging(open_explorable: OpenExplorable, balancer: dict[str, Any]) -> None:
    element = open_explorable("expert-balancer")
    commit(element)
    element.locator("select[name=spares]").select_option("1")
    before = held(element)
    slot(element, 0, 2).drag_to(slot(element, 3, 1))
    after = held(element)
    assert (after[0][2], after[3][1]) == (before[3][1], before[0][2])
    slot(element, 0, 0).drag_to(slot(element, 2, 4))
    assert held(element)[2][4] == after[0][0] == held(element)[0][0]
    loads = [loads_of(balancer, kind, 3) for kind in ("prose", "code")]
    assert_shows(element, *loads)


def test_the_bound_is_one(open_explorable: OpenExplorable, balancer: dict[str, Any]) -> None:
    """What an expert alone brings to a rank is below every placement with as many copies."""
    element = open_explorable("expert-balancer")
    commit(element)
    loads = loads_of(balancer, "prose", 3)
    bound = max(loads) * 4 / sum(loads)
    expect(element.locator(".bound")).to_contain_text(f"alone brings {bound:.2f} times the mean")
    assert packed(loads, 4).imbalance(loads) >= bound
    rng = random.Random(0)
    for _ in range(200):
        order = rng.sample(range(EXPERTS), EXPERTS)
        drawn = ExpertPlacement(tuple(tuple(order[4 * r : 4 * r + 4]) for r in range(4)))
        assert drawn.imbalance(loads) >= bound - 1e-9


def test_balancer_data_follows_from_its_sources(
    make_data: ModuleType, balancer: dict[str, Any]
) -> None:
    made = make_data.MAKERS["expert-balancer"](make_data.MODEL)
    assert json.loads(json.dumps(made)) == balancer


def test_balancer_fits_a_phone(open_explorable: OpenExplorable) -> None:
    element = open_explorable("expert-balancer", 390)
    commit(element)
    for ranks in ("2", "8"):
        element.locator("select[name=ranks]").select_option(ranks)
        element.locator("select[name=spares]").select_option("2")
        element.locator("button[name=replicated]").click()
        assert scroll_width(element) <= 390
