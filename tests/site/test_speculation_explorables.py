"""The explorables of speculative decoding: formulas, noise and draws are quire's."""

from __future__ import annotations

import json
import random
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import torch
from explorable_host import FOLDER, OpenExplorable, answer_in, commit
from playwright.sync_api import Locator, Page, expect
from torch import Tensor

from quire import LLM, Components, SamplingParams
from quire.analysis import (
    agreement_bound,
    argmax_agreement,
    best_k,
    coupled_agreement,
    expected_tokens,
    independent_agreement,
    rejection_acceptance,
    speedup,
    total_variation,
)
from quire.analysis.step_time import StepTime, interpolate
from quire.kernels.noise import Purpose, exponential, uniform
from quire.resources import load_measurement
from quire.sampling.drafts import Drafts
from quire.sampling.sampler import SamplerOutput, TorchSampler
from quire.sampling.tensors import SamplingTensors
from quire.speculation.rejection import accept_or_replace

pytestmark = pytest.mark.browser

EXACT = {
    "shared noise": coupled_agreement,
    "independent noise": independent_agreement,
    "the draft's argmax": argmax_agreement,
    "rejection sampling": rejection_acceptance,
}


@pytest.fixture(scope="module")
def race() -> dict[str, Any]:
    return committed("shared-race")


@pytest.fixture(scope="module")
def payoff() -> dict[str, Any]:
    return committed("speculation-payoff")


def committed(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / "data" / f"{name}.json").read_text("utf-8"))
    return content


def table(element: Locator, rows: str) -> dict[str, list[str]]:
    return {
        row.locator("th").inner_text(): row.locator("td").all_inner_texts()
        for row in element.locator(rows).all()
    }


# ---- the formulas


def test_formulas_equal_quire_analysis(page: Page, base: str) -> None:
    """200 rounds and 200 pairs of distributions, to one part in 10⁹."""
    rng = random.Random(0)
    generator = np.random.default_rng(0)
    rounds, pairs = [], []
    for _ in range(200):
        most = rng.randint(0, 12)
        one = rng.choice([0.0, 1.0, rng.random()])
        acceptance = rng.choice([one, [rng.random() for _ in range(most)]])
        rises = accumulate(rng.choice([0.0, 0.05, 0.4]) for _ in range(most))
        rounds.append((acceptance, rng.choice([0.0, 0.2, 1.0]), [1.0, *(1 + r for r in rises)]))
        p, q = generator.dirichlet(np.full(rng.randint(2, 8), 0.7), 2)
        if rng.random() < 0.3:
            p[0], q[-1] = 0.0, 0.0
            p, q = p / p.sum(), q / q.sum()
        pairs.append((p.tolist(), q.tolist()))
    page.goto(f"{base}/shared-race.html")
    by_round, by_pair = page.evaluate(
        """async ([rounds, pairs]) => {
            const s = await import("/explorables/speculation.js");
            const formulas = [s.coupledAgreement, s.independentAgreement, s.argmaxAgreement,
                s.rejectionAcceptance, s.agreementBound, s.totalVariation];
            return [rounds.map(([acceptance, c, costs]) => [s.bestK(acceptance, c, costs),
                    s.speedups(acceptance, c, costs),
                    costs.map((_, k) => s.expectedTokens(acceptance, k))]),
                pairs.map(([p, q]) => formulas.map((formula) => formula(p, q)))];
        }""",
        [rounds, pairs],
    )
    chosen = set()
    for (acceptance, c, costs), (k, values, tokens) in zip(rounds, by_round, strict=True):
        counts = [expected_tokens(acceptance, at) for at in range(len(costs))]
        expected = [speedup(e, at, c, costs[at]) for at, e in enumerate(counts)]
        assert tokens == pytest.approx(counts, rel=1e-9)
        assert values == pytest.approx(expected, rel=1e-9)
        assert k == best_k(acceptance, c, costs)
        chosen.add(k)
    assert len(chosen) > 5
    formulas = (*EXACT.values(), agreement_bound, total_variation)
    for (p, q), answers in zip(pairs, by_pair, strict=True):
        assert answers == pytest.approx([formula(p, q) for formula in formulas], rel=1e-9)


# ---- the noise and the draws


def test_noise_is_the_engines(page: Page, base: str) -> None:
    """The same float32 for every purpose, position and seed; the variates but for a logarithm."""
    rng = random.Random(1)
    ids = [0, 1, 780, 4095, 30_000]
    cases = [
        (rng.randrange(2**32), rng.randrange(100_000), int(rng.choice(list(Purpose))))
        for _ in range(200)
    ]
    page.goto(f"{base}/shared-race.html")
    answers, purposes = page.evaluate(
        """async ([cases, ids]) => {
            const s = await import("/explorables/speculation.js");
            const noise = (each) => [s.uniform(...each, ids), s.exponential(...each, ids)];
            return [cases.map(noise), s.PURPOSE];
        }""",
        [cases, ids],
    )
    assert purposes == {purpose.name.lower(): int(purpose) for purpose in Purpose}
    for (seed, position, purpose), (uniforms, variates) in zip(cases, answers, strict=True):
        key = torch.tensor([seed]), torch.tensor([position]), Purpose(purpose), max(ids) + 1
        assert uniforms == uniform(*key)[0, ids].double().tolist()
        expected = exponential(*key)[0, ids].double().tolist()
        assert variates == pytest.approx(expected, rel=1e-6, abs=0)


def draws(page: Page, base: str, cases: list[Any]) -> list[dict[str, Any]]:
    """What speculation.js draws for (rule, pair, seed) each."""
    page.goto(f"{base}/shared-race.html")
    answers: list[dict[str, Any]] = page.evaluate(
        """async (cases) => {
            const { drawPair } = await import("/explorables/speculation.js");
            return cases.map((each) => drawPair(...each));
        }""",
        cases,
    )
    return answers


def pair_at(case: dict[str, Any], temperature: float) -> dict[str, Any]:
    p, q = (
        (torch.tensor(case[side], dtype=torch.float64) / temperature).softmax(-1).tolist()
        for side in ("target", "draft")
    )
    return {"p": p, "q": q, "ids": case["ids"], "position": case["position"]}


def test_target_and_draft_draw_what_the_engine_draws(
    page: Page, base: str, race: dict[str, Any]
) -> None:
    """quire-mini and its draft, each alone, with the same seed and the tokens that race."""
    seeds = range(25)
    temperatures = (0.5, 1.0)
    cases = [
        ("shared", pair_at(case, temperature), seed)
        for case in race["cases"]
        for temperature in temperatures
        for seed in seeds
    ]
    drawn = draws(page, base, cases)
    for side in ("target", "draft"):
        llm = LLM(race[f"{side}_model"], dtype="float32", device="cpu")
        outputs = llm.generate(
            [case["text"] for case in race["cases"] for _ in range(len(seeds) * 2)],
            [
                SamplingParams(
                    seed=seed, max_tokens=1, temperature=t, allowed_token_ids=case["ids"]
                )
                for case in race["cases"]
                for t in temperatures
                for seed in seeds
            ],
        )
        expected = [output.outputs[0].token_ids[0] for output in outputs]
        said = [pair["ids"][d[side]] for (_, pair, _), d in zip(cases, drawn, strict=True)]
        assert said == expected
        assert len(set(said)) > 8


def test_every_rule_draws_as_quire_does(page: Page, base: str, race: dict[str, Any]) -> None:
    """400 seeds a prompt: the races by quire's noise, rejection by its own verification."""
    num_seeds = 400
    width = 4096
    for case in race["cases"]:
        pair = pair_at(case, 0.8)
        ids = torch.tensor(case["ids"])
        drawn = draws(
            page,
            base,
            [
                (rule, pair, seed)
                for rule in ("independent", "argmax", "rejection")
                for seed in range(num_seeds)
            ],
        )
        independent, argmax, rejection = (
            drawn[i * num_seeds : (i + 1) * num_seeds] for i in range(3)
        )
        p, q = (whole(pair[name], ids, width) for name in ("p", "q"))
        seeds = torch.arange(num_seeds)
        positions = torch.full_like(seeds, case["position"])
        target, draft = (
            (row / exponential(seeds, positions, purpose, width)).argmax(-1)
            for row, purpose in ((p, Purpose.TOKEN), (q, Purpose.DRAFT))
        )
        assert [case["ids"][d["target"]] for d in independent] == target.tolist()
        assert [case["ids"][d["draft"]] for d in independent] == draft.tolist()
        assert [case["ids"][d["target"]] for d in argmax] == target.tolist()
        assert {case["ids"][d["draft"]] for d in argmax} == {int(q.argmax())}

        # One draft a request, and the row behind it, which decides nothing here.
        rows = torch.stack([draft, draft], dim=1).flatten()
        both = [x.repeat_interleave(2) for x in (seeds, positions)]
        tokens, counts = accept_or_replace(
            p.expand(2 * num_seeds, width),
            q.expand(2 * num_seeds, width),
            Drafts(rows, list(range(0, 2 * num_seeds + 1, 2))),
            *both,
        )
        assert [case["ids"][d["draft"]] for d in rejection] == draft.tolist()
        assert [d["target"] == d["draft"] for d in rejection] == (counts == 2).tolist()
        assert [case["ids"][d["target"]] for d in rejection] == tokens[:, 0].tolist()


def whole(probabilities: list[float], ids: Tensor, width: int) -> Tensor:
    """Probabilities over the vocabulary, float32 [1, V]."""
    row = torch.zeros(1, width)
    row[0, ids] = torch.tensor(probabilities)
    return row


# ---- the shared race


def test_race_form(open_explorable: OpenExplorable, race: dict[str, Any]) -> None:
    case = race["cases"][0]
    element = open_explorable("shared-race")
    keyboard = element.page.keyboard
    pair = pair_at(case, 1.0)
    for i, token in enumerate(case["tokens"]):
        row = element.locator(".pairs li").nth(1 + i).inner_text()
        assert token.replace(" ", "␣") in row
        assert f"{100 * pair['p'][i]:.1f}" in row
        assert f"{100 * pair['q'][i]:.1f}" in row
    same = counted(element, pair, range(100))
    assert answer_in(commit(element)) == same["shared noise"]
    assert_tally(element, pair, same, 100)

    element.get_by_role("button", name="Draw, next seed").press("Enter")
    (seed,) = draws_of(element, "shared", pair, [100])
    status = element.get_by_role("status")
    expect(status).to_contain_text(
        f"Seed 100: the draft says “{shown(case, seed['draft'])}”, "
        f"the target “{shown(case, seed['target'])}”"
    )
    element.get_by_role("button", name="Draw 100").press("Enter")
    assert_tally(element, pair, counted(element, pair, range(201)), 201)
    exact = 100 * coupled_agreement(pair["p"], pair["q"])
    expect(status).to_contain_text(f"of 201 draws; exactly {exact:.1f}")

    element.locator("select[name=rule]").select_option("rejection")
    expect(status).to_contain_text("the coin 0.")
    element.locator("select[name=case]").select_option("1")
    element.locator("input[name=temperature]").focus()
    for _ in range(3):
        keyboard.press("ArrowLeft")
    pair = pair_at(race["cases"][1], 0.7)
    assert_tally(element, pair, counted(element, pair, range(100)), 100)
    expect(element.locator("pre")).to_have_text(race["cases"][1]["text"])
    bound = 100 * agreement_bound(pair["p"], pair["q"])
    expect(element.get_by_text("total variation distance")).to_contain_text(f"= {bound:.1f}")
    expect(status).to_contain_text("rejection sampling: the same token in")


def shown(case: dict[str, Any], index: int) -> str:
    text: str = case["tokens"][index]
    return text.replace(" ", "␣").replace("\n", "⏎")


def draws_of(element: Locator, rule: str, pair: dict[str, Any], seeds: Any) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = element.page.evaluate(
        """async ([rule, pair, seeds]) => {
            const { drawPair } = await import("/explorables/speculation.js");
            return seeds.map((seed) => drawPair(rule, pair, seed));
        }""",
        [rule, pair, list(seeds)],
    )
    return answers


def counted(element: Locator, pair: dict[str, Any], seeds: Any) -> dict[str, int]:
    """In how many draws of these seeds the two say the same, by rule."""
    rules = ("shared", "independent", "argmax", "rejection")
    return {
        label: sum(d["target"] == d["draft"] for d in draws_of(element, rule, pair, seeds))
        for label, rule in zip(EXACT, rules, strict=True)
    }


def assert_tally(element: Locator, pair: dict[str, Any], same: dict[str, int], of: int) -> None:
    rows = table(element, ".tally tbody tr")
    assert list(rows) == list(EXACT)
    for label, formula in EXACT.items():
        exact = 100 * formula(pair["p"], pair["q"])
        assert [text.replace("\u00a0", " ") for text in rows[label]] == [
            f"{same[label]} of {of}",
            f"{100 * same[label] / of:.1f} %",
            f"{exact:.1f} %",
        ]


def test_race_says_who_said_what(open_explorable: OpenExplorable, race: dict[str, Any]) -> None:
    """Bars and the last column name the choice of each side, under every rule."""
    case = race["cases"][0]
    pair = pair_at(case, 1.0)
    element = open_explorable("shared-race")
    commit(element)
    kinds = set()
    for rule in ("shared", "independent", "argmax", "rejection"):
        element.locator("select[name=rule]").select_option(rule)
        for seed in range(10):
            element.locator("input[name=seed]").fill(str(seed))
            element.get_by_role("button", name="Draw, next seed").click()
            (drawn,) = draws_of(element, rule, pair, [seed])
            said = element.locator(".race tbody td:last-child").all_inner_texts()
            expected = [""] * len(said)
            expected[drawn["draft"]] = "draft"
            if drawn["targetScores"]:
                both = drawn["target"] == drawn["draft"]
                expected[drawn["target"]] = "both" if both else "target"
            assert said == expected
            widths = element.evaluate(
                "e => ['target', 'draft'].map(side => [...e.shadowRoot.querySelectorAll("
                "`.race td:nth-child(5) .${side}`)].map(bar => bar.width.baseVal.value))"
            )
            assert np.argmax(widths[1]) == drawn["draft"]
            # Quotients are drawn to one scale; probabilities beside them would not be seen there.
            longest = [max(side, default=0) for side in widths]
            assert longest[1] == 100 if rule == "argmax" else max(longest) == 100
            if drawn["targetScores"]:
                assert np.argmax(widths[0]) == drawn["target"]
            else:
                assert widths[0] == []
            kinds.add((rule, *sorted(filter(None, said))))
    # Each race was won together and apart; a kept draft of rejection leaves the target no draw.
    assert {kind for rule, *kind in kinds for kind in [tuple(kind)] if rule == "rejection"} == {
        ("draft",),
        ("draft", "target"),
    }
    assert ("shared", "both") in kinds
    assert ("shared", "draft", "target") in kinds


# ---- does it pay?


def costs(payoff: dict[str, Any], batch: int) -> tuple[float, list[float]]:
    """c, and v for k = 0, 1, …, in steps without drafts."""
    row = next(row for row in payoff["costs"] if row["batch"] == batch)
    points = tuple((float(tokens), cost) for tokens, cost in row["verify"])
    return row["draft"], [interpolate(points, t) for t in range(1, int(points[-1][0]) + 1)]


def assert_columns(
    element: Locator, acceptance: Any, c: float, verify: list[float], yours: int
) -> None:
    """The table and the chart at the reader's k and at the best."""
    best = best_k(acceptance, c, verify)
    heads = element.locator("thead th").all_inner_texts()
    assert heads == [f"your k = {yours}", f"the best, k = {best}"]
    expected = {
        "tokens a round, E": [expected_tokens(acceptance, k) for k in (yours, best)],
        "drafts take, k·c": [k * c for k in (yours, best)],
        "verification takes, v": [verify[k] for k in (yours, best)],
        "speed-up, E / (v + k·c)": [
            speedup(expected_tokens(acceptance, k), k, c, verify[k]) for k in (yours, best)
        ],
    }
    rows = table(element, "tbody tr")
    assert list(rows) == list(expected)
    for label, numbers in expected.items():
        assert [float(cell) for cell in rows[label]] == pytest.approx(numbers, abs=0.0051)
    assert element.locator("circle:not(.yours)").count() == len(verify)
    heights = element.evaluate(
        "e => [...e.shadowRoot.querySelectorAll('circle:not(.yours)')].map(c => c.cy.baseVal.value)"
    )
    assert np.argmin(heights) == best  # the highest point, since y points down


def test_payoff_form(open_explorable: OpenExplorable, payoff: dict[str, Any]) -> None:
    scenario = payoff["scenario"]
    a, loaded = scenario["acceptance"], scenario["loaded_batch"]
    element = open_explorable("speculation-payoff")
    keyboard = element.page.keyboard
    c, verify = costs(payoff, scenario["batch"])
    assert answer_in(commit(element, "2")) == best_k(a, c, verify)
    assert_columns(element, a, c, verify, 2)
    options = element.locator("select[name=batch] option")
    assert options.all_inner_texts() == [str(scenario["batch"])]  # others wait for their gate

    k = element.locator("input[name=k]")
    k.focus()
    keyboard.press("ArrowRight")
    assert_columns(element, a, c, verify, 3)
    status = element.get_by_role("status")
    expect(status).to_contain_text("At your k = 3 it is")

    element.locator("input[name=clustered]").focus()
    keyboard.press("Space")
    element.locator("input[name=first]").focus()
    keyboard.press("Home")
    for _ in range(30):
        keyboard.press("ArrowRight")
    later = [0.3] + [a] * (len(verify) - 1)
    assert_columns(element, later, c, verify, 3)
    element.locator("select[name=draft]").select_option("free")
    assert_columns(element, later, 0.0, verify, 3)

    field = element.locator("input[name=prediction]")
    field.fill("0")  # none may be best, so 0 is a guess
    field.press("Enter")
    c, verify = costs(payoff, loaded)
    verdict = element.locator(".verdict").last
    expect(verdict).to_be_focused()
    assert answer_in(verdict) == best_k(a, c, verify)
    assert_columns(element, a, c, verify, 0)  # the form is as the question was
    assert options.all_inner_texts() == [str(row["batch"]) for row in payoff["costs"]]
    element.locator("select[name=batch]").select_option("256")
    c, verify = costs(payoff, 256)
    assert_columns(element, a, c, verify, 0)

    element.locator("select[name=draft]").select_option("own")
    own = element.locator("input[name=draft-cost]")
    alert = element.get_by_role("alert").nth(1)  # between those of the two gates
    own.fill("-1")
    expect(alert).to_contain_text("at least 0")
    assert element.locator("tbody").is_hidden()
    own.fill("0.9")
    expect(alert).to_be_empty()
    assert_columns(element, a, 0.9, verify, 0)
    expect(status).to_contain_text("No number of drafts pays")


@pytest.mark.parametrize("guess", ["1000", "2.6", "0.2"])
def test_payoff_takes_any_guess(
    guess: str, open_explorable: OpenExplorable, payoff: dict[str, Any]
) -> None:
    element = open_explorable("speculation-payoff")
    c, verify = costs(payoff, payoff["scenario"]["batch"])
    nearest = min(round(float(guess)), len(verify) - 1)
    best = best_k(payoff["scenario"]["acceptance"], c, verify)
    verdict = commit(element, guess).inner_text()
    expected = "and you said so" if nearest == best else f"at your k = {nearest},"
    assert expected in verdict
    assert_columns(element, payoff["scenario"]["acceptance"], c, verify, nearest)


# ---- the data


class Listener(TorchSampler):
    """Keeps the logits that it is given, and the position of the token they are about."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, int]] = []

    def __call__(
        self, logits: Tensor, sampling: SamplingTensors, drafts: Drafts | None = None
    ) -> SamplerOutput:
        self.seen.append((logits[0].clone(), int(sampling.positions[0])))
        return super().__call__(logits, sampling, drafts)


def test_race_data_is_what_the_models_say(race: dict[str, Any]) -> None:
    probabilities = {}
    for side in ("target", "draft"):
        listener = Listener()
        llm = LLM(
            race[f"{side}_model"],
            dtype="float32",
            device="cpu",
            components=Components(sampler=lambda listener=listener: listener),
        )
        for case in race["cases"]:
            llm.generate([case["text"]], SamplingParams(max_tokens=1))
        assert llm.tokenizer is not None
        for case, (logits, position) in zip(race["cases"], listener.seen, strict=True):
            assert position == case["position"]
            assert [llm.tokenizer.decode([token]) for token in case["ids"]] == case["tokens"]
            expected = logits[case["ids"]].log_softmax(-1).tolist()
            assert case[side] == pytest.approx(expected, abs=1e-3)
        probabilities[side] = [logits.softmax(-1) for logits, _ in listener.seen]
    for case, p, q in zip(race["cases"], *probabilities.values(), strict=True):
        likeliest = (p + q).topk(len(case["ids"])).indices.tolist()
        assert sorted(case["ids"]) == sorted(likeliest)
        assert case["target"] == sorted(case["target"], reverse=True)
    # One prompt each at which shared noise, the fixed draft and neither of them does well.
    kept = [
        [formula(pair["p"], pair["q"]) for formula in (coupled_agreement, argmax_agreement)]
        for pair in (pair_at(case, 1.0) for case in race["cases"])
    ]
    assert any(shared > fixed + 0.1 for shared, fixed in kept)
    assert any(fixed > shared + 0.1 for shared, fixed in kept)
    assert any(max(shared, fixed) < 0.3 for shared, fixed in kept)


def test_payoff_data_follows_from_the_measurements(payoff: dict[str, Any]) -> None:
    """Every cost is a measured time over the measured time of a step without drafts."""
    steps, alone = (load_measurement(name) for name in payoff["sources"])
    draft_steps = dict(StepTime.from_rows(alone["rows"]).decode)
    drafts = {}
    verify = {row["batch"]: dict(row["verify"]) for row in payoff["costs"]}
    assert all(points.pop(1) == 1 for points in verify.values())
    for row in steps["rows"]:
        kind, parameters = row["case"].partition("-")[0], row["parameters"]
        if kind == "verify":
            cost = verify[parameters["batch"]].pop(1 + parameters["k"])
            assert cost == pytest.approx(row["value"] / row["baselines"]["one_token"], abs=1e-4)
        if kind == "draft" and parameters["k"] == 3:
            drafts[parameters["batch"]] = row["value"] / 3 / row["baselines"]["one_token"]
        if row["case"].startswith("verify-k3"):
            step = row["baselines"]["one_token"]
            drafts.setdefault(parameters["batch"], draft_steps[parameters["batch"]] * 1e3 / step)
    assert not any(verify.values())  # no point that was not measured
    assert {row["batch"]: row["draft"] for row in payoff["costs"]} == pytest.approx(
        drafts, abs=1e-4
    )
