"""The layout planner: steps, memory and choices are those of `quire.analysis.layout_clock`."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
from explorable_host import FOLDER, OpenExplorable, answer_in, commit, scroll_width
from playwright.sync_api import Locator, Page, expect

from quire import QuireError
from quire.analysis import catalog_config, catalog_json, find_hardware
from quire.analysis.collectives import LINKS
from quire.analysis.layout_clock import Machine, Steady, steady
from quire.analysis.rank_memory import BLOCK_SIZE
from quire.analysis.shares import Layout, layouts, shares
from quire.analysis.step_parts import DEVICE_PARTS, QUIRE, reachable
from quire.models.config import ModelConfig
from quire.plan import BOUND

pytestmark = pytest.mark.browser


def model(name: str) -> ModelConfig:
    config = catalog_config(name)
    assert config is not None
    return config


def machine(device: str, link: str, captured: bool) -> Machine:
    rates = replace(QUIRE, captures_stages=captured)
    return Machine(reachable(find_hardware(device)), LINKS[link], rates)


def possible(
    config: ModelConfig, gpus: int, on: Machine, batch: int, context: int
) -> dict[Layout, Steady]:
    found = {}
    for layout in layouts(gpus, experts=config.moe is not None):
        try:
            found[layout] = steady(config, layout, on, batch, context)
        except QuireError:
            continue
    return found


@pytest.fixture(scope="module")
def planner() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / "data" / "layout-planner.json").read_text())
    return content


# ---- the arithmetic

BATCHES = [(1, 512), (2, 128), (7, 1000), (64, 512), (256, 4096), (512, 32768)]


def test_every_layout_equals_quires(page: Page, base: str, planner: dict[str, Any]) -> None:
    """Every model on 1 to 12 GPUs, either device, each link, stages with graphs and without."""
    settings = [
        (name, device, link, captured, gpus)
        for name in catalog_json()
        for device, link, captured in (
            ("h200", "direct", False),
            ("h200", "two-shot", True),
            ("h100", "one-shot", False),
        )
        for gpus in (1, 2, 4, 6, 8, 12)
    ]
    page.goto(f"{base}/layout-planner.html")
    answers = page.evaluate(
        """async ([data, settings, batches]) => {
            const { modelConfig } = await import("/explorables/analysis.js");
            const { layouts, steady } = await import("/explorables/layouts.js");
            const tried = (...all) => { try { return steady(...all); } catch { return null; } };
            return settings.map(([name, device, link, captured, gpus]) => {
                const machine = { device: data.devices[device], link: data.links[link],
                    engine: data.engine, products: data.products,
                    rates: { ...data.rates, captures_stages: captured } };
                const config = modelConfig(data.models[name]);
                return layouts(gpus, config.moe !== null).map((layout) => [layout, batches.map(
                    ([batch, context]) => tried(config, layout, machine, batch, context))]);
            });
        }""",
        [planner, settings, BATCHES],
    )
    compared = refused = 0
    for (name, device, link, captured, gpus), answer in zip(settings, answers, strict=True):
        config, on = model(name), machine(device, link, captured)
        listed = layouts(gpus, experts=config.moe is not None)
        assert [Layout(**layout) for layout, _ in answer] == listed
        for batch, at in zip(BATCHES, range(len(BATCHES)), strict=True):
            expected = possible(config, gpus, on, *batch)
            found = {Layout(**layout): each[at] for layout, each in answer if each[at]}
            assert found.keys() == expected.keys()
            refused += len(answer) - len(found)
            for layout, own in expected.items():
                assert_equal(found[layout], own)
                compared += 1
    assert compared > 2000
    assert refused > 100


def assert_equal(found: dict[str, Any], own: Steady) -> None:
    numbers = {
        "seconds": own.decode.seconds,
        "tokensPerS": own.tokens_per_s,
        "numBlocks": own.num_blocks,
    }
    for key, value in numbers.items():
        assert found[key] == pytest.approx(value, rel=1e-9), key
    assert found["bottleneck"] == own.decode.bottleneck
    for name in (*DEVICE_PARTS, "host", "begin"):
        value = getattr(own.decode.parts, name)
        assert found["parts"][name] == pytest.approx(value, rel=1e-9, abs=1e-15), name
    for name in ("weights", "activations", "logits", "reserved", "block", "budget"):
        assert found["memory"][name] == pytest.approx(getattr(own.memory, name), rel=1e-9), name


def test_stages_have_quires_layers(page: Page, base: str, planner: dict[str, Any]) -> None:
    page.goto(f"{base}/layout-planner.html")
    found = page.evaluate(
        """async (models) => {
            const { modelConfig } = await import("/explorables/analysis.js");
            const { splitLayers } = await import("/explorables/layouts.js");
            return Object.values(models).map((raw) =>
                [1, 2, 3, 5, 8].map((stages) => splitLayers(modelConfig(raw), stages)));
        }""",
        planner["models"],
    )
    for name, splits in zip(planner["models"], found, strict=True):
        for stages, sizes in zip((1, 2, 3, 5, 8), splits, strict=True):
            own = shares(model(name), Layout(pipeline=stages))
            assert sizes == [share.num_layers for share in own]


# ---- the form


def table(element: Locator) -> dict[str, list[str]]:
    return {
        row.locator("th").inner_text(): row.locator("td").all_inner_texts()
        for row in element.locator(".layouts tbody tr").all()
    }


def three(value: float) -> float:
    return float(f"{value:.3g}")


def assert_shows(element: Locator, expected: dict[Layout, Steady]) -> None:
    """Table, bars and choice say what Python says; the most tokens stand first."""
    shown = table(element)
    order = sorted(expected, key=lambda layout: -expected[layout].tokens_per_s)
    assert sorted(shown) == sorted(map(str, order))
    rates = [float(row[1].replace(",", "")) for row in shown.values()]
    assert rates == sorted(rates, reverse=True)
    milliseconds = dict(zip(shown, (0.0,) * len(shown), strict=True))
    for layout, own in expected.items():
        step, rate, weights, room, most = shown[str(layout)]
        milliseconds[str(layout)] = 1e3 * own.decode.seconds
        assert float(step.removesuffix(" ms")) == three(1e3 * own.decode.seconds)
        assert float(rate.replace(",", "")) == pytest.approx(own.tokens_per_s, abs=0.51)
        scales = {"k": 1e3, "M": 1e6, "G": 1e9}
        tokens = (own.num_blocks - 1) * BLOCK_SIZE * layout.data
        for text, value in ((weights, own.memory.weights), (room, tokens)):
            match = re.fullmatch(r"([\d.,]+) ([kMG])B?", text)
            assert match is not None, text
            shown_value = float(match[1].replace(",", "")) * scales[match[2]]
            assert shown_value == pytest.approx(value, rel=0.0051)
        assert most == BOUND[own.decode.bottleneck]
    widths = element.evaluate(
        """e => { const found = {}; let name;
            for (const x of e.shadowRoot.querySelectorAll('.chart > *')) {
                if (x.tagName === 'text') name = x.textContent;
                else if (x.tagName === 'rect')
                    found[name] = (found[name] ?? 0) + x.width.baseVal.value; }
            return found; }"""
    )
    longest = max(milliseconds.values())
    for name, width in widths.items():
        assert width / max(widths.values()) == pytest.approx(milliseconds[name] / longest, abs=1e-3)
    choice = element.locator(".choice").inner_text()
    quickest = min(expected.values(), key=lambda own: own.decode.seconds)
    assert f"{three(1e3 * quickest.decode.seconds):#.3g} ms a token" in choice
    assert f"{round(max(own.tokens_per_s for own in expected.values())):,} tokens a sec" in choice


def test_the_planners_form(open_explorable: OpenExplorable, planner: dict[str, Any]) -> None:
    element = open_explorable("layout-planner")
    scenario = planner["scenario"]
    config, on = model(scenario["model"]), machine("h200", "direct", True)
    verdict = commit(element, "2.1")
    answer = steady(config, Layout(2), on, 1, 512)
    assert answer_in(verdict) == three(1e3 * answer.decode.seconds)
    assert_shows(element, possible(config, 2, on, 1, 512))

    batch = element.locator("input[name=batch]")
    batch.focus()
    element.page.keyboard.press("End")
    expect(batch).to_have_attribute("aria-valuetext", "512 requests")
    assert_shows(element, possible(config, 2, on, 512, 512))
    expect(element.get_by_role("status")).to_contain_text("512 requests: the ")

    element.locator("input[name=context]").fill("13")
    element.locator("select[name=gpus]").select_option("8")
    assert_shows(element, possible(config, 8, on, 512, 8192))
    element.locator("input[name=captured]").uncheck()
    on = machine("h200", "direct", False)
    assert_shows(element, possible(config, 8, on, 512, 8192))
    element.locator("input[name=captured]").check()
    element.locator("select[name=link]").select_option("two-shot")
    element.locator("select[name=device]").select_option("h100")
    on = machine("h100", "two-shot", True)
    batch.fill("5")
    assert_shows(element, possible(config, 8, on, 32, 8192))

    element.locator("select[name=model]").select_option("Qwen/Qwen2.5-7B")
    config = model("Qwen2.5-7B")
    assert_shows(element, possible(config, 8, on, 32, 8192))
    expect(element.locator(".refused")).to_contain_text("TP8: 28 heads are not shared evenly by 8")

    element.locator("select[name=model]").select_option("Qwen/Qwen3-30B-A3B")
    assert_shows(element, possible(model("Qwen3-30B-A3B"), 8, on, 32, 8192))
    assert "TP4 DP2 EP4" in table(element)


def test_what_does_not_fit_is_said(open_explorable: OpenExplorable) -> None:
    element = open_explorable("layout-planner")
    commit(element)
    element.locator("select[name=model]").select_option("meta-llama/Llama-3.1-70B")
    element.locator("select[name=device]").select_option("h100")
    expect(element.locator(".choice")).to_contain_text("No layout is possible")
    assert table(element) == {}
    expect(element.locator(".refused")).to_contain_text("DP2: a copy has room for 0 of its 1")


def test_planner_data_follows_from_its_sources(
    make_data: ModuleType, planner: dict[str, Any]
) -> None:
    made = make_data.MAKERS["layout-planner"](make_data.MODEL)
    assert json.loads(json.dumps(made)) == planner


def test_planner_fits_a_phone(open_explorable: OpenExplorable) -> None:
    element = open_explorable("layout-planner", 390)
    commit(element)
    element.locator("select[name=gpus]").select_option("8")
    assert scroll_width(element) <= 390
