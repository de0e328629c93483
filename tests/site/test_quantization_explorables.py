"""The explorables of quantization: grids, codes and times are quire's."""

from __future__ import annotations

import json
import math
import random
import re
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from explorable_host import FOLDER, OpenExplorable, answer_in, commit, scroll_width
from playwright.sync_api import Locator, Page, expect
from safetensors import safe_open

from quire.analysis import LayerTime, catalog_config, crossings, find_hardware, linear_weights
from quire.analysis.quantization import bits_a_weight, product_dtype
from quire.models.loader import resolve_checkpoint
from quire.quantization.codes import Codes
from quire.quantization.rounding import round_to_nearest
from quire.quantization.scheme import Scheme
from quire.resources import load_measurement

pytestmark = pytest.mark.browser

NAMES = ("quantization-grid", "quantization-crossover")
LABELS = ("bf16", "FP8", "INT8", "INT4")


@pytest.fixture(scope="module")
def row() -> dict[str, Any]:
    return committed("quantization-grid")


@pytest.fixture(scope="module")
def layer() -> dict[str, Any]:
    return committed("quantization-crossover")


def committed(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / "data" / f"{name}.json").read_text("utf-8"))
    return content


def in_browser(scheme: Scheme) -> dict[str, Any]:
    return {
        "kind": scheme.kind,
        "bits": scheme.bits,
        "groupSize": scheme.group_size,
        "symmetric": scheme.symmetric,
        "inputs": scheme.inputs,
    }


def table(element: Locator, rows: str) -> dict[str, list[str]]:
    return {
        row.locator("th").inner_text(): row.locator("td").all_inner_texts()
        for row in element.locator(rows).all()
    }


# ---- the arithmetic


def rows_of_weights(rng: random.Random) -> list[list[float]]:
    """Rows as training leaves them, with outliers, ties, zeros, one sign, and very small ones."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(200):
        weights = torch.empty(16).normal_(0, 10.0 ** rng.randint(-6, 2), generator=generator)
        kind = i % 8
        if kind == 1:
            weights[rng.randrange(16)] *= 30
        elif kind == 2:
            weights = weights.abs() * rng.choice([-1, 1])
        elif kind == 3:
            weights[:8] = 0
        elif kind == 4:  # multiples of a step: quotients half-way between integers
            weights = torch.tensor([rng.randint(-15, 15) for _ in range(16)]) / 32
        elif kind == 5:
            weights = weights.bfloat16().float()
        elif kind == 6 and i % 16 == 6:
            weights = weights * 1e-9
        rows.append(weights.tolist())
    return rows


SCHEMES = [
    *(
        Scheme("int", bits, size, symmetric=symmetric)
        for bits in range(2, 9)
        for size in (None, 4, 8, 16, 5)
        for symmetric in (True, False)
    ),
    *(Scheme("fp8", 8, size) for size in (None, 4, 8)),
]


def test_codes_equal_quires_rounding(page: Page, base: str) -> None:
    """200 rows under 73 schemes: scales, zeros, codes and numbers to the last bit."""
    rows = rows_of_weights(random.Random(0))
    page.goto(f"{base}/quantization-grid.html")
    answers = page.evaluate(
        """async ([rows, schemes]) => {
            const { roundToNearest } = await import("/explorables/quantization.js");
            return schemes.map((scheme) => rows.map((row) => roundToNearest(row, scheme)));
        }""",
        [rows, [in_browser(scheme) for scheme in SCHEMES]],
    )
    weight = torch.tensor(rows)
    for scheme, found in zip(SCHEMES, answers, strict=True):
        codes = round_to_nearest(weight, scheme)
        codes.check()

        def all_of(key: str, found: list[dict[str, Any]] = found) -> torch.Tensor:
            return torch.tensor([row[key] for row in found], dtype=torch.float64)

        assert torch.equal(all_of("scales"), codes.scale.double()), scheme
        assert torch.equal(all_of("codes"), codes.values.double()), scheme
        assert torch.equal(all_of("values"), codes.dequantize().double()), scheme
        if codes.zero is None:
            assert all(row["zeros"] is None for row in found)
        else:
            assert torch.equal(all_of("zeros"), codes.zero.double()), scheme
        errors = (codes.dequantize().double() - weight.double()).abs()
        assert torch.equal(all_of("errors"), errors)
        assert found[0]["groups"] == codes.groups().tolist()


def test_points_are_all_that_a_group_can_store(page: Page, base: str) -> None:
    scale, zero = 0.0322265625, 5
    page.goto(f"{base}/quantization-grid.html")
    for scheme in (Scheme("int", 3), Scheme("int", 4, symmetric=False), Scheme("fp8", 8)):
        symmetric = scheme.symmetric
        found = page.evaluate(
            """async ([scheme, scale, zero]) => {
                const { points } = await import("/explorables/quantization.js");
                return points(scheme, scale, zero);
            }""",
            [in_browser(scheme), scale, None if symmetric else zero],
        )
        every = torch.arange(1 << scheme.bits, dtype=torch.uint8)[None]
        if scheme.kind == "fp8":
            every = every.view(torch.float8_e4m3fn)
            every = every[:, ~every.float().isnan()[0]]
        codes = Codes(
            every,
            torch.tensor([[scale]]),
            None if symmetric else torch.tensor([[zero]], dtype=torch.uint8),
            scheme.bits,
        )
        # FP8 has a 0 of either sign.
        assert found == sorted({value + 0.0 for value in codes.dequantize()[0].tolist()})


def test_times_equal_quire_analysis(page: Page, base: str, layer: dict[str, Any]) -> None:
    """Every format over the rows, under several costs; where each two cross."""
    cases = [
        (launch, operations) for launch in (0.0, 1.73e-6, 9e-6) for operations in (0.0, 1.4, 3, 5)
    ]
    schemes = [None, *map(Scheme.named, ("fp8", "int8", "int4", "int4-g32-asym", "int8-g128"))]
    device = find_hardware("h200").measured()
    formats = [
        {"scheme": scheme and in_browser(scheme), "product": product_dtype(scheme, device)}
        for scheme in schemes
    ]
    rows = [1, 2, 7.5, 12, 64, 131, 159, 160, 1000, 4096]
    page.goto(f"{base}/quantization-crossover.html")
    answers = page.evaluate(
        """async ([data, cases, formats, rows]) => {
            const q = await import("/explorables/quantization.js");
            return cases.map(([launch, operations]) => {
                const times = formats.map((format) =>
                    q.layerTime(data.device, data.layer, format, launch, operations));
                return [times, times.map((time) => rows.map((at) => q.seconds(time, at))),
                    times.map((time) => rows.map((at) => q.bound(time, at))),
                    times.map((a) => times.map((b) => q.crossings(a, b, data.most_rows))),
                    formats.map(({ scheme }) => q.bitsAWeight(scheme))];
            });
        }""",
        [layer, cases, formats, rows],
    )
    config = catalog_config(layer["model"])
    crossed = 0
    for (launch, operations), (times, seconds, bounds, meets, bits) in zip(
        cases, answers, strict=True
    ):
        expected = [
            LayerTime.of(
                config,
                device,
                scheme,
                launch_seconds=launch,
                operations_a_weight=operations,
            )
            for scheme in schemes
        ]
        assert bits == [bits_a_weight(scheme) for scheme in schemes]
        for i, time in enumerate(expected):
            parts = [times[i][key] for key in ("overhead", "memory", "unpacking", "perRow")]
            assert parts == pytest.approx(
                [time.overhead, time.memory, time.unpacking, time.per_row], rel=1e-12
            )
            assert seconds[i] == pytest.approx([time.seconds(at) for at in rows], rel=1e-12)
            assert bounds[i] == [time.bound(at) for at in rows]
            for j, other in enumerate(expected):
                solved = crossings(time, other)
                assert meets[i][j] == pytest.approx(solved, rel=1e-9), (i, j)
                crossed += len(solved)
    assert crossed > 20
    at_a_knee = page.evaluate(
        """async () => {
            const { crossings } = await import("/explorables/quantization.js");
            return crossings({ overhead: 3.75, memory: 3.75, unpacking: 0, perRow: 0.125 },
                { overhead: 0, memory: 0.5, unpacking: 0, perRow: 0.25 }, 4096);
        }"""
    )
    assert at_a_knee == [30]


# ---- the grid


def shown(value: float, digits: int) -> str:
    return f"{1000 * value:.{digits}f}"


def numbers_in(texts: list[str]) -> list[float]:
    return [float(text.replace("−", "-").replace(",", "")) for text in texts]


def assert_grid(
    element: Locator, weights: list[float], original: list[float], scheme: Scheme
) -> None:
    """Both tables and the drawing, for weights on the grid of a scheme."""
    codes, before = (round_to_nearest(torch.tensor([each]), scheme) for each in (weights, original))
    values = codes.dequantize()[0].tolist()
    errors = (codes.dequantize()[0] - torch.tensor(weights)).abs()
    errors_before = (before.dequantize()[0] - torch.tensor(original)).abs()
    rows = table(element, ".weights tbody tr")
    assert list(rows) == [str(i + 1) for i in range(len(weights))]
    for i, cells in enumerate(rows.values()):
        numbers = [1000 * weights[i], float(codes.values[0, i]), 1000 * values[i]]
        tolerances = (0.0501, 0.0501 if codes.is_float else 0, 0.0501)
        for found, expected, tolerance in zip(
            numbers_in(cells[:3]), numbers, tolerances, strict=True
        ):
            assert found == pytest.approx(expected, abs=tolerance, rel=1e-3 * codes.is_float)
        assert numbers_in(cells[3:])[0] == pytest.approx(1000 * float(errors[i]), abs=0.00501)
    groups = codes.groups()
    found_groups = table(element, ".groups tbody tr")
    for group, (name, cells) in enumerate(found_groups.items()):
        members = groups == group
        moved = any(weights[i] != original[i] for i in members.nonzero().flatten().tolist())
        assert name == f"{group + 1}" + (", with a pulled weight" if moved else "")
        expected = [1000 * float(codes.scale[0, group])]
        expected += [] if codes.zero is None else [float(codes.zero[0, group])]
        worst = [float(each[members].max()) * 1000 for each in (errors, errors_before)]
        assert numbers_in(cells) == pytest.approx([*expected, *worst], rel=1e-3, abs=0.00501)
    assert len(found_groups) == int(groups.max()) + 1
    # Dots and the ends of their lines lie on one axis, each at its number.
    drawn = element.evaluate(
        "e => [...e.shadowRoot.querySelectorAll('.chart g')].flatMap(g => {"
        "const moves = [...g.querySelectorAll('.move')];"
        "return moves.map(m => [m.x1.baseVal.value, m.x2.baseVal.value]); })"
    )
    pairs = sorted([weights[i], values[i]] for i in range(len(weights)))
    xs, ys = np.array(sorted(drawn)).flatten(), np.array(pairs).flatten()
    slope, origin = np.polyfit(ys, xs, 1)
    assert np.abs(origin + slope * ys - xs).max() < 0.02
    assert slope > 0


def test_grid_form(open_explorable: OpenExplorable, row: dict[str, Any]) -> None:
    weights, pulled = row["weights"], row["pull"]["weight"]
    element = open_explorable("quantization-grid")
    keyboard = element.page.keyboard
    assert [shown(w, 1) for w in weights] == element.locator("pre").inner_text().replace(
        "−", "-"
    ).split()
    four_bits = Scheme("int", 4)
    codes = round_to_nearest(torch.tensor([weights]), four_bits)
    largest = float((codes.dequantize()[0] - torch.tensor(weights)).abs().max())
    assert answer_in(commit(element, "5")) == pytest.approx(1000 * largest, abs=0.00501)
    assert_grid(element, weights, weights, four_bits)
    expect(element.locator("select[name=groups]")).to_be_hidden()  # these wait for their gate
    expect(element.locator("input[name=value]")).to_be_hidden()

    element.locator("input[name=bits]").focus()
    keyboard.press("ArrowRight")
    keyboard.press("ArrowRight")
    assert_grid(element, weights, weights, Scheme("int", 6))
    element.locator("select[name=zero]").select_option("asymmetric")
    assert_grid(element, weights, weights, Scheme("int", 6, symmetric=False))
    keyboard.press("Home")
    element.locator("select[name=kind]").select_option("fp8")
    assert_grid(element, weights, weights, Scheme("fp8", 8))
    assert element.locator("input[name=bits]").is_disabled()
    assert element.locator("select[name=zero]").is_disabled()

    far = [row["pull"]["to"] if i == pulled else w for i, w in enumerate(weights)]
    codes = round_to_nearest(torch.tensor([far]), four_bits)
    others = (codes.dequantize()[0] - torch.tensor(far)).abs()
    others[pulled] = 0
    second = element.locator(".gate").nth(1)
    before = element.evaluate("e => e.shadowRoot.textContent")
    verdict = commit(second, "5")
    assert answer_in(verdict) == pytest.approx(1000 * float(others.max()), abs=0.00501)
    assert re.findall(r"[\d.]+", verdict.inner_text())[0] not in before
    lost = int((codes.dequantize() == 0).sum())
    expect(verdict).to_contain_text(f"{lost} of the {len(weights)} weights now stand for 0")
    assert_grid(element, far, weights, four_bits)  # the form is the question's again

    for size in (8, 4):
        element.locator("select[name=groups]").select_option(str(size))
        assert_grid(element, far, weights, Scheme("int", 4, size))
    element.locator("select[name=zero]").select_option("asymmetric")
    assert_grid(element, far, weights, Scheme("int", 4, 4, symmetric=False))
    expect(element.get_by_role("status")).to_contain_text("Weights on 4 grids, scale ")
    element.locator("select[name=kind]").select_option("fp8")
    assert_grid(element, far, weights, Scheme("fp8", 8, 4))


def test_weights_are_pulled_by_keys_and_by_pointer(
    open_explorable: OpenExplorable, row: dict[str, Any]
) -> None:
    weights = [float(w) for w in row["weights"]]
    element = open_explorable("quantization-grid")
    page = element.page
    commit(element)
    commit(element.locator(".gate").nth(1))
    element.get_by_role("button", name="Put all back").click()
    assert_grid(element, weights, weights, Scheme("int", 4))
    expect(element.get_by_role("status")).not_to_contain_text("before a weight was pulled")

    element.locator("select[name=weight]").select_option("2")
    value = element.locator("input[name=value]")
    value.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    moved = [*weights]
    moved[2] = float(np.float32(0.009))  # from 3.7, which the slider shows as 4
    assert_grid(element, moved, weights, Scheme("int", 4))
    page.keyboard.press("End")
    moved[2] = float(np.float32(row["pull"]["to"]))
    assert_grid(element, moved, weights, Scheme("int", 4))
    expect(element.get_by_role("status")).to_contain_text("and 4.09 before a weight was pulled")
    element.get_by_role("button", name="Put all back").click()

    element.locator("select[name=groups]").select_option("8")
    chart = element.locator(".chart")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    assert box is not None
    greatest = int(np.argmax(weights))
    dot = element.evaluate(
        "e => [...e.shadowRoot.querySelectorAll('.chart circle')].map(c => {"
        "const b = c.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })"
        ".sort((a, b) => b[0] - a[0])[0]"
    )
    page.mouse.move(*dot)
    page.mouse.down()
    page.mouse.move(dot[0] + 40, dot[1] + 3, steps=4)
    reached = float(element.locator(".controls b").nth(1).inner_text()) / 1000
    assert reached > weights[greatest] + 0.02
    page.mouse.move(box["x"] + box["width"] + 50, dot[1])
    page.mouse.up()
    page.mouse.move(dot[0], dot[1])  # let go: moves nothing
    moved = [*weights]
    moved[greatest] = float(np.float32(row["pull"]["to"]))
    assert_grid(element, moved, weights, Scheme("int", 4, 8))
    expect(element.locator("select[name=weight]")).to_have_value(str(greatest))


def test_grid_data_is_a_row_of_quire_mini(make_data: ModuleType, row: dict[str, Any]) -> None:
    with safe_open(resolve_checkpoint(row["model"]) / "model.safetensors", "pt") as stored:
        weight = stored.get_tensor(f"{row['tensor']}.weight")
    assert row["weights"] == weight[row["row"], : len(row["weights"])].double().tolist()
    others = [abs(w) for i, w in enumerate(row["weights"]) if i != row["pull"]["weight"]]
    assert row["pull"]["to"] > 3 * max(others)
    assert json.loads(json.dumps(make_data.MAKERS["quantization-grid"](make_data.MODEL))) == row


# ---- the crossover


def times_of(layer: dict[str, Any], launch: float, operations: float) -> dict[str, LayerTime]:
    names = (None, "fp8", "int8", "int4")
    return {
        label: LayerTime.of(
            catalog_config(layer["model"]),
            find_hardware("h200").measured(),
            Scheme.named(name) if name else None,
            launch_seconds=launch * 1e-6,
            operations_a_weight=operations,
        )
        for label, name in zip(LABELS, names, strict=True)
    }


def assert_times(element: Locator, times: dict[str, LayerTime], rows: int) -> None:
    found = table(element, ".times tbody tr")
    assert list(found) == list(LABELS)
    plain = times["bf16"].seconds(rows)
    for label, time in times.items():
        bits, micro, bound, against = found[label]
        assert float(bits) == {"bf16": 16, "INT4": 4.125}.get(label, 8)
        seconds = float(micro.removesuffix(" µs").replace(",", "")) * 1e-6
        assert seconds == pytest.approx(time.seconds(rows), rel=0.0051)
        assert bound == {"memory": "reading", "compute": "arithmetic"}[time.bound(rows)]
        expected = "" if label == "bf16" else f"{plain / time.seconds(rows):.2f}×"
        assert against == expected
    meetings = table(element, ".meetings tbody tr")
    assert len(meetings) == 6
    for pair, (text,) in meetings.items():
        one, other = pair.split(" and ")
        solved = crossings(times[one], times[other])
        if solved:
            assert text == ", ".join(f"{math.ceil(rows):,} rows" for rows in solved)
            continue
        order = [times[one].seconds(at) - times[other].seconds(at) for at in (1, 4096)]
        if not any(order):
            assert text == "nowhere: equal throughout"
        else:
            ahead = other if max(order) > 0 else one
            assert text == f"nowhere: {ahead} is never slower"
    rings = element.locator(".meet").count()
    assert rings == sum(
        len(crossings(times[a], times[b])) for i, a in enumerate(LABELS) for b in LABELS[i + 1 :]
    )


def test_crossover_form(open_explorable: OpenExplorable, layer: dict[str, Any]) -> None:
    operations, launch = layer["operations"], layer["launch_us"]
    element = open_explorable("quantization-crossover")
    keyboard = element.page.keyboard
    times = times_of(layer, launch, operations["magic"])
    (meet,) = crossings(times["INT4"], times["bf16"])
    verdict = commit(element, "64")
    assert answer_in(verdict) == math.ceil(meet)
    first = math.ceil(meet)
    assert times["INT4"].seconds(first) >= times["bf16"].seconds(first)
    assert times["INT4"].seconds(first - 1) < times["bf16"].seconds(first - 1)
    assert_times(element, times, 1)

    slider = element.locator("input[name=rows]")
    slider.focus()
    keyboard.press("End")
    assert_times(element, times, 4096)
    expect(slider).to_have_attribute("aria-valuetext", "4,096 rows")
    slowest = float(f"{1e6 * times['bf16'].seconds(4096):.3g}")
    expect(element.get_by_role("status")).to_contain_text(f"At 4,096 rows: bf16 {slowest:,.0f} µs")
    slider.fill("48")
    assert_times(element, times, 64)
    slider.focus()
    keyboard.press("ArrowRight")
    assert_times(element, times, round(2 ** (49 / 8)))

    element.locator("select[name=unpack]").select_option("naive")
    assert_times(element, times_of(layer, launch, operations["naive"]), round(2 ** (49 / 8)))
    own = element.locator("input[name=operations]")
    expect(own).to_be_hidden()
    element.locator("select[name=unpack]").select_option("own")
    for wanted in ("0", "2.5"):
        own.fill(wanted)
        assert_times(element, times_of(layer, launch, float(wanted)), round(2 ** (49 / 8)))
    element.locator("input[name=launch]").fill("9")
    assert_times(element, times_of(layer, 9.0, 2.5), round(2 ** (49 / 8)))


def test_crossover_refuses_nonsense(open_explorable: OpenExplorable) -> None:
    element = open_explorable("quantization-crossover")
    commit(element)
    element.locator("select[name=unpack]").select_option("own")
    for name, said in (("operations", "operations to unpack a weight"), ("launch", "time of a")):
        field = element.locator(f"input[name={name}]")
        for nonsense in ("-1", ""):
            field.fill(nonsense)
            expect(element.get_by_role("alert").last).to_contain_text(said)
            expect(element.locator(".times")).to_be_hidden()
        field.fill("2")
        expect(element.get_by_role("alert").last).to_have_text("")
        expect(element.locator(".times")).to_be_visible()


def test_crossover_draws_the_model_beside_the_measurement(
    open_explorable: OpenExplorable, layer: dict[str, Any]
) -> None:
    """On one logarithmic pair of axes: every line by the formula, every ring as measured."""
    element = open_explorable("quantization-crossover")
    commit(element)
    lines, rings = element.evaluate(
        """e => [Object.fromEntries([...e.shadowRoot.querySelectorAll('.curve')].map(line =>
            [line.getAttribute('class').split(' ')[1],
             [...line.points].map(p => [p.x, p.y])])),
          [...e.shadowRoot.querySelectorAll('.measured')].map(c =>
            [c.cx.baseVal.value, c.cy.baseVal.value])]"""
    )
    times = times_of(layer, layer["launch_us"], layer["operations"]["magic"])
    points = [
        (2 ** (i / 8), 1e6 * times[label].seconds(2 ** (i / 8)), *point)
        for label, line in lines.items()
        for i, point in enumerate(line)
    ]
    assert len(points) == 4 * 97
    points += [(*at, *ring) for at, ring in zip(layer["measured"]["bf16"], rings, strict=True)]
    rows, micro, x, y = np.array(points).T
    for drawn, value, falls in ((x, np.log(rows), False), (y, np.log(micro), True)):
        slope, origin = np.polyfit(value, drawn, 1)
        assert np.abs(origin + slope * value - drawn).max() < 0.11
        assert (slope < 0) == falls


def test_crossover_data_follows_from_its_sources(
    make_data: ModuleType, layer: dict[str, Any]
) -> None:
    measured = load_measurement(layer["measured"]["source"])
    assert layer["model"] in measured["command"]
    for row, (tokens, micro) in zip(measured["rows"], layer["measured"]["bf16"], strict=True):
        assert row["parameters"]["tokens"] == tokens
        assert row["parameters"]["microseconds_per_layer"] == pytest.approx(micro, abs=0.0501)
    config, device = catalog_config(layer["model"]), find_hardware("h200")
    assert layer["layer"]["weights"] * config.num_layers == linear_weights(config)
    assert layer["device"]["bandwidth"] == device.measured_bandwidth_bytes_per_s
    assert layer["device"]["rates"] == device.measured_peak_flops
    # The overhead is what makes the model of one row the measured one.
    one = times_of(layer, layer["launch_us"], 0)["bf16"].seconds(1)
    assert 1e6 * one == pytest.approx(layer["measured"]["bf16"][0][1], abs=0.05)
    made = make_data.MAKERS["quantization-crossover"](make_data.MODEL)
    assert json.loads(json.dumps(made)) == layer


@pytest.mark.parametrize("name", NAMES)
def test_all_that_opens_later_fits_a_phone(name: str, open_explorable: OpenExplorable) -> None:
    element = open_explorable(name, 390)
    commit(element)
    if name == "quantization-grid":
        commit(element.locator(".gate").nth(1))
        element.locator("select[name=groups]").select_option("4")
        element.locator("select[name=zero]").select_option("asymmetric")
    else:
        element.locator("select[name=unpack]").select_option("own")
    assert scroll_width(element) <= 390
    overflowing = element.evaluate(
        "e => [...e.shadowRoot.querySelectorAll('.app *')]"
        ".filter(x => !x.closest('.sr') && x.getBoundingClientRect().right > innerWidth)"
        ".map(x => x.outerHTML.slice(0, 80))"
    )
    assert overflowing == []
