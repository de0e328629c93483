"""The explorables in a real browser: gate, keyboard, themes, and equality with Python.

They are served alone with a minimal page, so these tests need no built site.
"""

from __future__ import annotations

import base64
import json
import random
import re
from datetime import datetime
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from explorable_host import (
    FALLBACK,
    FOLDER,
    NAMES,
    OpenExplorable,
    answer_in,
    commit,
    scroll_width,
)
from playwright.sync_api import Browser, Locator, Page, expect

from quire import LLM, SamplingParams
from quire.analysis import find_hardware, load_hardware, predict
from quire.analysis.memory import dense_layers
from quire.kernels.cutoff import apply_min_p, apply_top_k_top_p
from quire.kernels.sampling import apply_temperature
from quire.models.config import ModelConfig
from quire.sampling.sampler import TorchSampler
from quire.sampling.tensors import SamplingTensors

pytestmark = pytest.mark.browser

# ---- what all share


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_revealed_before_a_prediction(
    name: str, open_explorable: OpenExplorable
) -> None:
    element = open_explorable(name)
    revealed = element.evaluate(
        "e => { e.seen = []; e.addEventListener('reveal', "
        "v => e.seen.push(v.detail.guess)); return e.seen.length; }"
    )
    assert revealed == 0
    assert element.locator("table, svg, input[type=range], select").count() == 0
    before = element.evaluate("e => e.shadowRoot.querySelector('.app').textContent")

    field = element.locator("input[name=prediction]")
    for nonsense in ("", "0", "-3"):
        field.fill(nonsense)
        field.press("Enter")
        expect(element.get_by_role("alert").first).to_contain_text("greater than 0")
        assert element.locator(".verdict").count() == 0
    verdict = commit(element, "12")
    assert element.evaluate("e => e.seen") == [12]
    expect(verdict).to_be_focused()
    expect(element.get_by_role("status")).to_have_text(verdict.inner_text())
    opening = re.match(r"[\d,.]+", verdict.inner_text())
    assert opening is not None
    # Nor is the answer in the page, hidden, before the reader commits to one.
    assert not re.search(rf"(?<![\d,.]){re.escape(opening.group())}(?![\d,.])", before)
    assert element.locator(".gate").first.locator("input[name=prediction]").count() == 0
    assert element.locator("table").count() > 0


INK = {"light": "rgb(29, 33, 41)", "dark": "rgb(230, 232, 235)"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [1280, 390])
def test_fits_the_screen_in_both_themes(
    name: str, width: int, open_explorable: OpenExplorable
) -> None:
    element = open_explorable(name, width, color_scheme="light")
    assert scroll_width(element) <= width
    commit(element)
    if name == "decode-stepper":
        element.get_by_role("slider").fill("30")
    if name == "block-table-player":
        element.get_by_role("slider").fill("4")
    if name == "sampler-playground":
        element.get_by_role("button", name="Draw 100").click()
    if name == "latency-calculator":
        element.locator("summary").click()
        element.locator("select[name=model]").select_option("paste")
    assert scroll_width(element) <= width
    overflowing = element.evaluate(
        "e => [...e.shadowRoot.querySelectorAll('.app *')]"
        ".filter(x => !x.closest('.sr') && x.getBoundingClientRect().right > innerWidth)"
        ".map(x => x.outerHTML.slice(0, 80))"
    )
    assert overflowing == []
    for scheme, ink in INK.items():
        element.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        colours = element.evaluate(
            "e => [...e.shadowRoot.querySelectorAll('button, .question, th[scope=row]')]"
            ".map(x => getComputedStyle(x).color)"
        )
        # A struck-out token is muted; a button under the pointer takes the accent.
        assert colours.count(ink) >= len(colours) / 2


@pytest.mark.parametrize("name", NAMES)
def test_accessible_before_and_after_the_reveal(name: str, open_explorable: OpenExplorable) -> None:
    element = open_explorable(name)
    axe = (resources.files("axe_playwright_python") / "axe.min.js").read_text("utf8")
    element.page.evaluate(axe)
    check = """async (options) => (await axe.run(document, options)).violations
        .map(v => `${v.id}: ${v.nodes.map(n => n.html).slice(0, 3)}`)"""

    def assert_accessible() -> None:
        element.page.emulate_media(color_scheme="dark")
        assert element.page.evaluate(check, {"runOnly": ["color-contrast"]}) == []
        element.page.emulate_media(color_scheme="light")
        assert element.page.evaluate(check, {}) == []

    assert_accessible()
    commit(element)
    assert_accessible()


@pytest.mark.parametrize("name", NAMES)
def test_works_on_a_page_without_the_sites_colours(name: str, page: Page, base: str) -> None:
    page.goto(f"{base}/bare-{name}.html")
    page.add_style_tag(content="body { color: rgb(1, 2, 3); }")
    element = page.locator(f"quire-{name}")
    commit(element)
    question = element.locator(".question").first
    assert question.evaluate("x => getComputedStyle(x).color") == "rgb(1, 2, 3)"
    swatch = element.evaluate("e => getComputedStyle(e).getPropertyValue('--c1').trim()")
    assert swatch == "#2f74b8"


@pytest.mark.parametrize("name", NAMES)
def test_static_form_without_javascript_in_print_and_without_data(
    name: str, browser: Browser, base: str
) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{base}/{name}.html")
    expect(page.get_by_text(FALLBACK)).to_be_visible()
    context.close()

    page = browser.new_page()
    page.goto(f"{base}/{name}.html")
    element = page.locator(f"quire-{name}")
    expect(element).to_have_attribute("data-state", "ready")
    expect(page.get_by_text(FALLBACK)).to_be_hidden()
    page.emulate_media(media="print")
    expect(page.get_by_text(FALLBACK)).to_be_visible()
    expect(element.locator(".question")).to_be_hidden()
    page.close()

    page = browser.new_page()
    page.goto(f"{base}/broken-{name}.html")
    expect(page.locator(f"quire-{name}")).to_have_attribute("data-state", "failed")
    expect(page.get_by_text(FALLBACK)).to_be_visible()
    expect(page.get_by_text("could not be loaded")).to_be_visible()
    page.close()


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.js")), ids=lambda path: path.name)
def test_modules_are_short_and_self_contained(path: Path) -> None:
    source = path.read_text("utf-8")
    assert source.count("\n") < 300
    assert set(re.findall(r"https?://[^\"'` ]+", source)) <= {"http://www.w3.org/2000/svg"}
    for imported in re.findall(r'from "([^"]+)"', source):
        assert (FOLDER / imported).is_file()


# ---- decode stepper


def test_stepper_by_keyboard_alone(open_explorable: OpenExplorable, data: dict[str, Any]) -> None:
    trace = data["decode-stepper"]
    element = open_explorable("decode-stepper")
    keyboard = element.page.keyboard
    keyboard.press("Tab")
    keyboard.type("500")
    keyboard.press("Enter")
    expect(element.locator(".verdict")).to_be_focused()
    keyboard.press("Tab")
    expect(element.get_by_role("button", name="Back")).to_be_focused()
    keyboard.press("Enter")  # at the start: goes nowhere, keeps the focus
    keyboard.press("Tab")
    for _ in range(2):
        keyboard.press("Enter")
    keyboard.press("Space")
    status = element.get_by_role("status")
    expect(status).to_contain_text(f"Step 3 of {len(trace['steps'])}, decode: computes 1 position")
    expect(element.get_by_role("button", name="Step")).to_be_focused()
    keyboard.press("Tab")
    keyboard.press("Tab")
    keyboard.press("End")
    expect(status).to_contain_text(f"Step {len(trace['steps'])} of")
    keyboard.press("ArrowLeft")
    expect(status).to_contain_text(f"Step {len(trace['steps']) - 1} of")
    text = element.get_by_role("group").inner_text().replace("⏎", "")
    written = "".join(step["token"] for step in trace["steps"][:-1])
    assert text.strip() == ("".join(trace["prompt_tokens"]) + written).strip()


def test_stepper_shows_the_trace(open_explorable: OpenExplorable, data: dict[str, Any]) -> None:
    trace = data["decode-stepper"]
    element = open_explorable("decode-stepper")
    recomputed = sum(step["without"]["positions"] for step in trace["steps"])
    prompt, steps = len(trace["prompt_tokens"]), len(trace["steps"])
    assert recomputed == sum(prompt + i for i in range(steps))
    assert answer_in(commit(element)) == recomputed
    slider = element.get_by_role("slider")
    for number in (1, 2, steps // 2, steps):
        slider.fill(str(number))
        step = trace["steps"][number - 1]
        states = element.evaluate(
            "e => [...e.shadowRoot.querySelectorAll('.strips svg')]"
            ".map(s => [...s.children].map(c => c.getAttribute('class').split(' ')[2] ?? ''))"
        )
        computed = step["with"]["positions"]
        assert states[0].count("cached") == step["start"]
        assert states[0].count("computed") == computed
        assert states[1].count("computed") == step["without"]["positions"]
        row = element.locator("tbody tr").first.locator("td")
        so_far = sum(each["without"]["positions"] for each in trace["steps"][:number])
        assert row.nth(1).inner_text().split("\n") == [
            f"{step['without']['positions']:,}",
            f"{so_far:,}",
        ]


def test_stepper_plays_and_pauses(open_explorable: OpenExplorable, data: dict[str, Any]) -> None:
    element = open_explorable("decode-stepper")
    commit(element)
    # Time stands still but for `run_for`: a busy machine takes no step of its own.
    element.page.clock.install(time=datetime(2026, 1, 1))
    element.page.clock.pause_at(datetime(2026, 1, 2))
    element.get_by_role("button", name="Play").click()
    element.page.clock.run_for(350 * 5)
    expect(element.locator("p", has_text="Step 5 of").first).to_be_visible()
    element.get_by_role("button", name="Pause").click()
    element.page.clock.run_for(3500)
    expect(element.get_by_role("status")).to_contain_text("Step 5 of")
    element.get_by_role("button", name="Play").click()
    element.page.clock.run_for(350 * 100)
    last = len(data["decode-stepper"]["steps"])
    expect(element.get_by_role("status")).to_contain_text(f"Step {last} of {last}")
    expect(element.get_by_role("button", name="Play")).to_be_visible()


def test_reduced_motion_is_honoured(open_explorable: OpenExplorable, data: dict[str, Any]) -> None:
    element = open_explorable("decode-stepper", reduced_motion="reduce")
    commit(element)
    assert element.get_by_role("button", name="Play").count() == 0
    element.get_by_role("button", name="Show all steps").click()
    last = len(data["decode-stepper"]["steps"])
    expect(element.get_by_role("status")).to_contain_text(f"Step {last} of {last}")
    duration = "x => getComputedStyle(x).transitionDuration"
    assert element.locator(".moves").first.evaluate(duration) == "0s"
    moving = open_explorable("decode-stepper", reduced_motion="no-preference")
    commit(moving)
    assert moving.locator(".moves").first.evaluate(duration) == "0.2s"


# ---- latency calculator


def random_case(rng: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
    """A config.json of one of the six architectures, and a workload in Python's names."""
    families = ["Llama", "Mistral", "Mixtral", "Qwen2", "Qwen3", "Qwen3Moe"]
    architecture = rng.choice(families) + "ForCausalLM"
    kv_heads, group = rng.choice([1, 2, 3, 8, 16]), rng.choice([1, 2, 4, 7])
    head_size = 2 * rng.randint(4, 96)
    layers = rng.randint(1, 90)
    config: dict[str, Any] = {
        "architectures": [architecture],
        "vocab_size": rng.randint(100, 260_000),
        "hidden_size": kv_heads * group * rng.choice([head_size, 32, 64]),
        "intermediate_size": rng.randint(16, 30_000),
        "num_hidden_layers": layers,
        "num_attention_heads": kv_heads * group,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": rng.random() < 0.5,
    }
    if rng.random() < 0.5:
        config["head_dim"] = head_size
    else:
        config["hidden_size"] = kv_heads * group * head_size
    if rng.random() < 0.3:
        config["attention_bias"] = True
        config["mlp_bias"] = rng.random() < 0.5
    if architecture.startswith("Llama") and rng.random() < 0.4:  # elsewhere it has a number
        del config["num_key_value_heads"]
    window = rng.choice([None, 16, 1024, 4096])
    if architecture.startswith(("Mixtral", "Qwen3Moe")):
        config |= random_experts(rng, architecture, layers)
    if architecture.startswith("Mi"):
        config["sliding_window"] = window
    elif rng.random() < 0.4:
        config["sliding_window"] = window or 64
        if rng.random() < 0.5:
            config["layer_types"] = rng.choices(["full_attention", "sliding_attention"], k=layers)
            config["use_sliding_window"] = True
        else:
            config["use_sliding_window"] = rng.random() < 0.5
            config["max_window_layers"] = rng.randint(0, layers)
    workload = {
        "batch": rng.choice([1, 2, 16, 255, 1024]),
        "prompt_tokens": rng.choice([1, 8, 64, rng.randint(1, 20_000)]),
        "output_tokens": rng.randint(2, 300),
        "weight_dtype": rng.choice(["fp32", "bf16", "fp16", "fp8", "int8", "int4"]),
        "kv_dtype": rng.choice(["fp32", "bf16", "fp8", "int4"]),
        "mfu": rng.choice([1.0, rng.uniform(0.1, 1)]),
        "mbu": rng.choice([1.0, rng.uniform(0.1, 1)]),
        "step_overhead_s": rng.choice([0.0, rng.uniform(0, 1e-2)]),
        "max_num_batched_tokens": rng.choice([1, 2048, 8192]),
    }
    return config, workload


def random_experts(rng: random.Random, architecture: str, layers: int) -> dict[str, Any]:
    """Keys of a mixture of experts; each may be left out, and the number has two names."""
    keys: dict[str, Any] = {
        rng.choice(["num_experts", "num_local_experts"]): rng.randint(8, 256),
        "num_experts_per_tok": rng.randint(1, 8),
    }
    if architecture.startswith("Qwen3Moe"):
        keys["moe_intermediate_size"] = rng.randint(16, 4000)
        keys["decoder_sparse_step"] = rng.choice([1, 1, 2, 100])  # of 100 few models have a layer
        keys["mlp_only_layers"] = rng.sample(range(layers), rng.randint(0, layers // 2))
        if rng.random() < 0.2:
            keys["num_local_experts"] = 0  # which overrides the other: no layer has experts
    return {key: value for key, value in keys.items() if rng.random() < 0.8}


def camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


def test_calculator_equals_quire_analysis(page: Page, base: str, make_data: ModuleType) -> None:
    """400 random models, devices and workloads, every result to one part in 10⁹."""
    rng = random.Random(0)
    devices = [d for device in load_hardware().values() for d in (device, device.measured())]
    cases = [(*random_case(rng), rng.choice(devices)) for _ in range(400)]
    page.goto(f"{base}/latency-calculator.html")
    answers = page.evaluate(
        """async (cases) => {
            const { modelConfig, predict } = await import("/explorables/analysis.js");
            return cases.map(([raw, workload, device]) =>
                predict(modelConfig(raw), device, workload));
        }""",
        [
            [raw, {camel(k): v for k, v in workload.items()}, make_data.hardware_row(device)]
            for raw, workload, device in cases
        ],
    )
    bounds, mixed = set(), set()
    for (raw, workload, device), answer in zip(cases, answers, strict=True):
        config = ModelConfig.from_dict(raw)
        mixed.add((config.moe is not None, dense_layers(config) > 0))
        result = predict(config, device, **workload)
        numbers = {
            "ttft": result.ttft_s,
            "tpot": result.tpot_s,
            "latency": result.request_latency_s,
            "throughput": result.output_tokens_per_s,
            "usdPerMillion": result.usd_per_million_output_tokens,
            "joules": result.joules_per_output_token,
        }
        for key, expected in numbers.items():
            assert answer[key] == pytest.approx(expected, rel=1e-9), (key, raw, workload)
        for step in ("prefill", "decode"):
            work = getattr(result, step)
            assert answer[step]["flops"] == pytest.approx(work.flops, rel=1e-9)
            assert answer[step]["bytesMoved"] == pytest.approx(work.bytes_moved, rel=1e-9)
            assert answer[f"{step}Bound"] == getattr(result, f"{step}_bound")
        assert answer["computeDtype"] == result.compute_dtype
        for key in ("weights", "kv_cache", "activations", "logits", "total", "max_batch", "fits"):
            expected = getattr(result.memory, key)
            assert answer["memory"][camel(key)] == pytest.approx(expected, rel=1e-9), (key, raw)
        bounds.add((result.prefill_bound, result.decode_bound, result.memory.fits))
    assert mixed == {(False, True), (True, False), (True, True)}
    assert len(bounds) >= 5  # the cases reach both ceilings in both phases, fitting or not


def rows_of(element: Locator) -> dict[str, str]:
    return {
        row.locator("th").inner_text(): row.locator("td").inner_text()
        for row in element.locator("tbody tr").all()
    }


def test_calculator_form(open_explorable: OpenExplorable, data: dict[str, Any]) -> None:
    element = open_explorable("latency-calculator")
    page = element.page
    scenario = data["latency-calculator"]["scenario"]
    model = data["latency-calculator"]["models"][scenario["model"]]
    config = ModelConfig.from_dict({"max_position_embeddings": 4096, **model})
    device = find_hardware("h200").measured()
    one = predict(config, device, prompt_tokens=512, output_tokens=256)
    assert answer_in(commit(element)) == pytest.approx(1 / one.tpot_s, rel=5e-3)
    assert rows_of(element)["TPOT"] == f"{one.tpot_s * 1e3:.3g} ms"

    for field in ("batch", "prompt", "output"):  # by keyboard: select all, type
        element.locator(f"input[name={field}]").focus()
        page.keyboard.press("ControlOrMeta+a")
        page.keyboard.type("64")
    element.locator("select[name=hardware]").select_option("h100-sxm")
    element.locator("select[name=weight-dtype]").select_option("fp8")
    many = predict(
        config,
        find_hardware("h100"),
        batch=64,
        prompt_tokens=64,
        output_tokens=64,
        weight_dtype="fp8",
    )
    rows = rows_of(element)
    assert rows["TPOT"] == f"{many.tpot_s * 1e3:.3g} ms"
    assert rows["output throughput"] == f"{many.output_tokens_per_s:,.0f} tok/s"
    assert rows["per 10⁶ output tokens"] == f"${many.usd_per_million_output_tokens:.3g}"
    assert rows["prefill bound by"] == many.prefill_bound
    expect(element.get_by_role("status")).to_contain_text("tokens a second on NVIDIA H100 SXM.")

    element.locator("select[name=model]").select_option("meta-llama/Llama-3.1-70B")
    element.locator("select[name=weight-dtype]").select_option("bf16")
    expect(element.get_by_text("does not fit on one NVIDIA H100 SXM")).to_be_visible()
    element.locator("input[name=batch]").fill("0")
    expect(element.get_by_role("alert").last).to_contain_text("batch=0")
    assert element.locator("tbody").is_hidden()


def test_calculator_takes_a_pasted_config(
    open_explorable: OpenExplorable, data: dict[str, Any]
) -> None:
    element = open_explorable("latency-calculator")
    commit(element)
    element.locator("select[name=model]").select_option("paste")
    box, alert = element.locator("textarea"), element.get_by_role("alert").last
    assert element.locator("tbody").is_hidden()
    raw = dict(data["latency-calculator"]["models"]["Qwen/Qwen3-0.6B"])
    for content, message in (
        ("{", "not valid JSON"),
        ("null", "architecture"),
        (json.dumps({"architectures": ["GPT2LMHeadModel"]}), "“GPT2LMHeadModel” is not covered"),
        (json.dumps({k: v for k, v in raw.items() if k != "hidden_size"}), "“hidden_size”"),
    ):
        box.fill(content)
        expect(alert).to_contain_text(message)
    box.fill(json.dumps(raw))
    expect(alert).to_be_empty()
    config = ModelConfig.from_dict({"max_position_embeddings": 40960, **raw})
    device = find_hardware("h200").measured()
    expected = predict(config, device, prompt_tokens=512, output_tokens=256)
    assert rows_of(element)["TPOT"] == f"{expected.tpot_s * 1e6:.3g} µs"


# ---- sampler playground


def settings_cases(rng: random.Random, count: int) -> list[dict[str, Any]]:
    return [
        {
            "temperature": rng.choice([0.05, 0.5, 1.0, 1.7, rng.uniform(0.1, 2)]),
            "topK": rng.choice([0, 0, 1, 5, 50, 1000]),
            "topP": rng.choice([1.0, 0.05, 0.5, 0.9, rng.uniform(0.05, 1)]),
            "minP": rng.choice([0.0, 0.0, 0.02, 0.3, 1.0]),
        }
        for _ in range(count)
    ]


def test_reshaping_equals_the_engines_processors(page: Page, base: str) -> None:
    """Random logits with ties, in float64 on both sides: the same tokens stay, exactly."""
    rng = random.Random(1)
    generator = np.random.default_rng(1)
    cases = [
        (np.round(generator.normal(0, 3, rng.choice([3, 50, 400])), 1).tolist(), settings)
        for settings in settings_cases(rng, 200)
    ]
    page.goto(f"{base}/sampler-playground.html")
    answers = page.evaluate(
        """async (cases) => {
            const { reshape } = await import("/explorables/sampling.js");
            return cases.map(([logits, settings]) => Array.from(
                reshape(Float64Array.from(logits), settings), (v) => v === -Infinity ? null : v));
        }""",
        cases,
    )
    for (logits, s), answer in zip(cases, answers, strict=True):
        row = torch.tensor([logits], dtype=torch.float64)
        row = apply_temperature(row, torch.tensor([s["temperature"]], dtype=torch.float64))
        row = apply_min_p(row, torch.tensor([s["minP"]], dtype=torch.float64))
        row = apply_top_k_top_p(
            row, torch.tensor([s["topK"]]), torch.tensor([s["topP"]], dtype=torch.float64)
        )
        expected = [None if value == -torch.inf else value for value in row[0].tolist()]
        assert answer == expected, s


def unpack(prompt: dict[str, Any], scale: int) -> torch.Tensor:
    fixed = np.frombuffer(base64.b64decode(prompt["logits"]), dtype="<i2")
    return torch.tensor(fixed / scale, dtype=torch.float32)


def test_draws_are_the_engines(page: Page, base: str, data: dict[str, Any]) -> None:
    """The engine's sampler on the stored logits draws the same token for every seed."""
    playground = data["sampler-playground"]
    rng = random.Random(2)
    cases = [
        (index, settings, rng.randrange(2**32))
        for settings in settings_cases(rng, 60)
        for index in range(len(playground["prompts"]))
    ]
    page.goto(f"{base}/sampler-playground.html")
    drawn = page.evaluate(
        """async ([playground, cases]) => {
            const { draw, reshape, unpackLogits } = await import("/explorables/sampling.js");
            return cases.map(([index, settings, seed]) => {
                const { logits, position } = playground.prompts[index];
                const reshaped = reshape(unpackLogits(logits, playground.scale), settings);
                return draw(reshaped, seed, position);
            });
        }""",
        [playground, cases],
    )
    sampler = TorchSampler()
    different, mismatches = set(), []
    for (index, s, seed), token in zip(cases, drawn, strict=True):
        prompt = playground["prompts"][index]
        params = SamplingParams(
            temperature=s["temperature"], top_k=s["topK"], top_p=s["topP"], min_p=s["minP"]
        )
        tensors = SamplingTensors.build([params], [seed], [prompt["position"]], torch.device("cpu"))
        expected = sampler(unpack(prompt, playground["scale"])[None], tensors).tokens
        if token != int(expected):
            mismatches.append((s, seed))
        different.add(token)
    # The engine adds up in float32: a token on the very edge of the nucleus may fall either way.
    assert len(mismatches) <= 1, mismatches
    assert len(different) > 20


def test_playground_form(open_explorable: OpenExplorable, data: dict[str, Any]) -> None:
    playground = data["sampler-playground"]
    asked = playground["question"]
    element = open_explorable("sampler-playground")
    page = element.page
    prompt = playground["prompts"][asked["prompt"]]
    logits = unpack(prompt, playground["scale"]).double()
    ordered = logits.softmax(-1).sort(descending=True)
    nucleus = int((ordered.values.cumsum(-1) - ordered.values < asked["top_p"]).sum())
    assert answer_in(commit(element)) == nucleus

    llm = LLM("quire-mini", dtype="float32", device="cpu")
    seeds = range(5, 17)
    element.get_by_role("button", name="Neutral settings").press("Enter")
    element.locator("input[name=seed]").fill("5")
    spoken = []
    for _ in seeds:
        element.get_by_role("button", name="Draw, next seed").press("Enter")
        spoken.append(element.get_by_role("status").inner_text())
    outputs = llm.generate(
        [prompt["text"]] * len(seeds), [SamplingParams(seed=s, max_tokens=1) for s in seeds]
    )
    expected = [
        f"seed {seed} draws “{shown(playground['vocabulary'][output.outputs[0].token_ids[0]])}”"
        for seed, output in zip(seeds, outputs, strict=True)
    ]
    assert spoken == expected

    slider = element.locator("input[name=temperature]")
    slider.focus()
    for _ in range(40):
        page.keyboard.press("ArrowLeft")
    expect(element.get_by_text(re.compile(r"^1 of 4,096 tokens kept"))).to_be_visible()
    expect(element.get_by_role("status")).to_contain_text("1 of 4,096 tokens kept")
    first = element.locator("tbody tr").first
    assert first.locator("td").nth(1).inner_text() == "100.00 %"
    assert first.locator("th").inner_text() == shown(playground["vocabulary"][int(logits.argmax())])


def shown(token: str) -> str:
    return token.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")


# ---- the data


@pytest.mark.parametrize("name", NAMES)
def test_committed_data_is_what_the_script_makes(
    name: str, make_data: ModuleType, data: dict[str, Any]
) -> None:
    made = json.loads(json.dumps(make_data.MAKERS[name](make_data.MODEL)))
    committed = data[name]
    if name == "sampler-playground":
        for ours, theirs in zip(made["prompts"], committed["prompts"], strict=True):
            difference = unpack(ours, made["scale"]) - unpack(theirs, committed["scale"])
            assert difference.abs().max() <= 2.5 / made["scale"]
            ours.pop("logits"), theirs.pop("logits")
    if name == "shared-race":
        for ours, theirs in zip(made["cases"], committed["cases"], strict=True):
            for side in ("target", "draft"):
                assert ours.pop(side) == pytest.approx(theirs.pop(side), abs=1e-3)
    assert made == committed
    assert (FOLDER / "data" / f"{name}.json").stat().st_size <= 150 * 1024
