"""`quire bench speculation-acceptance`: what it counts and computes; its times are not judged."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from quire import LLM, CompletionOutput, Components, QuireError, RequestOutput, SamplingParams
from quire.analysis.speculation import expected_tokens
from quire.bench import speculation_acceptance as bench
from quire.bench import speculation_speed as speed
from quire.bench.perplexity import heldout_texts
from quire.bench.speculation_acceptance import Exact
from quire.bench.speculation_rounds import Observer, Rounds, Sizes, interval
from quire.bench.speculation_speed import Costs, TimedDrafting
from quire.messages import ScheduledEntry, SchedulerOutput, StepResult
from quire.trace import Trace

MODEL = "quire-mini-draft"
OPTIONS: dict[str, Any] = {
    "device": "cpu",
    "dtype": "float32",
    "max_model_len": 256,
    "enable_prefix_caching": False,
}
REPEATING = [[7, 8, 9, 10] * 6, [5, 6, 300, 301] * 5]


def greedy(num_texts: int, num_tokens: int) -> list[SamplingParams]:
    return [
        SamplingParams(max_tokens=num_tokens, temperature=0, seed=text, ignore_eos=True)
        for text in range(num_texts)
    ]


def test_an_interval_is_of_whole_texts() -> None:
    """Of 100 texts half have 0 of 10, half 2 of 10: a mean of 0.1, standard error 0.01."""
    numerators = torch.tensor([0, 2] * 50)
    low, high = interval(numerators, torch.full((100,), 10))
    assert low == pytest.approx(0.1 - 1.96 * 0.01, abs=1e-3)
    assert high == pytest.approx(0.1 + 1.96 * 0.01, abs=1e-3)
    assert interval(torch.tensor([3, 1, 2]), torch.tensor([6, 2, 4])) == (0.5, 0.5)


def test_an_interval_passes_over_texts_in_which_nothing_was_judged() -> None:
    """The ratio is one of sums: a text with 1 of 9 counts nine times as much as one with 1 of 1."""
    low, high = interval(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 9]))
    assert (low, high) == (pytest.approx(1 / 9), 1.0)


def a_run(rounds: list[tuple[int, int, int]]) -> tuple[Trace, list[RequestOutput]]:
    """One request with a prompt of 4 tokens and 12 of output; rounds of (place, drafts, kept)."""
    trace = Trace()
    steps = [(4, 0, 4, 0), *((1 + drafts, drafts, 4 + p - 1, kept) for p, drafts, kept in rounds)]
    for number, (num_tokens, drafts, start, kept) in enumerate(steps):
        entry = ScheduledEntry("3-0", 0, start, num_tokens, True, num_draft_tokens=drafts)
        if number == 0:
            entry.start = 0
        result = StepResult(number, {"3-0": [1] * (1 + kept)})
        trace.record(SchedulerOutput(number, (entry,)), result, 0.0, 0.0)
    completion = CompletionOutput(0, "", [1] * 12)
    return trace, [RequestOutput("3", None, [1] * 4, [completion], True)]


def test_rounds_are_counted() -> None:
    """The prompt's step is no round, and what has no room for two drafts counts for nothing."""
    trace, outputs = a_run([(1, 2, 2), (4, 2, 0), (5, 0, 0), (6, 2, 1), (8, 2, 2), (11, 0, 0)])
    rounds = Rounds.of(trace, outputs, 2)
    assert rounds.stood.tolist() == [[1, 1, 2]]
    assert rounds.without.tolist() == [1]
    assert rounds.begins.nonzero()[:, 1].tolist() == [1, 4, 6, 8]
    assert rounds.tokens_a_step == (3 + 1 + 1 + 2 + 3) / 5
    assert rounds.share_drafted == 4 / 5
    conditional = rounds.conditional()
    assert (conditional["acceptance_1"], conditional["judged_1"]) == (3 / 4, 4)
    assert (conditional["acceptance_2"], conditional["judged_2"]) == (2 / 3, 3)


def test_a_draft_that_was_never_judged_has_no_acceptance() -> None:
    trace, outputs = a_run([(1, 3, 0), (2, 3, 1)])
    conditional = Rounds.of(trace, outputs, 3).conditional()
    assert conditional["acceptance_2"] == 0
    assert "acceptance_3" not in conditional


def test_rounds_are_those_of_the_trace() -> None:
    """In a text that ends behind a whole round nothing is left out."""
    trace = Trace()
    config = {"method": "draft_model", "model": MODEL, "num_speculative_tokens": 3}
    llm = LLM(MODEL, speculative_config=config, trace=trace, **OPTIONS)
    outputs = llm.generate(REPEATING, greedy(2, 13), use_tqdm=False)  # it guesses itself: 1 + 3 · 4
    rounds = Rounds.of(trace, outputs, 3)
    drafted, kept = zip(*trace.acceptance(), strict=True)
    assert drafted == (6, 6, 6)
    assert kept == tuple(int(rounds.stood[:, i:].sum()) for i in (1, 2, 3))
    assert rounds.tokens.tolist() == [12, 12]


def test_the_observed_logits_are_those_of_the_said_text() -> None:
    llm = LLM(MODEL, **OPTIONS)
    told = torch.tensor([[11, 400, 12, 13], [300, 5, 9, 900]])
    logits = torch.empty(2, 4, llm.model_config.vocab_size)
    observer = partial(Observer, [len(prompt) for prompt in REPEATING], told, logits)
    observed = LLM(MODEL, components=Components(sampler=observer), **OPTIONS)
    outputs = observed.generate(REPEATING, greedy(2, 4), use_tqdm=False)
    assert [output.outputs[0].token_ids for output in outputs] == told.tolist()
    texts = [prompt + more for prompt, more in zip(REPEATING, told.tolist(), strict=True)]
    scored = llm.generate(texts, SamplingParams(max_tokens=0, prompt_logprobs=0), use_tqdm=False)
    for text, output in enumerate(scored):
        for place, row in enumerate((output.prompt_logprobs or [])[-4:]):
            token = int(told[text, place])
            score = torch.log_softmax(logits[text, place], 0)[token]
            assert row is not None
            assert float(score) == pytest.approx(row[token].logprob, abs=1e-4)


def test_what_is_told_is_verified_like_any_text() -> None:
    """n-grams guess it right where it repeats the prompt."""
    told = torch.tensor([[7, 8, 9, 10] * 3, [40, 41, 42, 43] + [5, 6] * 4])
    observer = partial(Observer, [len(prompt) for prompt in REPEATING], told)
    config = {"method": "ngram", "num_speculative_tokens": 3}
    trace = Trace()
    llm = LLM(
        MODEL,
        speculative_config=config,
        components=Components(sampler=observer),
        trace=trace,
        **OPTIONS,
    )
    outputs = llm.generate(REPEATING, greedy(2, 12), use_tqdm=False)
    assert [output.outputs[0].token_ids for output in outputs] == told.tolist()
    rounds = Rounds.of(trace, outputs, 3)
    assert rounds.stood[0].tolist() == [0, 0, 0, 2]
    assert rounds.stood[1, 0] > 0


def test_probabilities_are_those_of_the_temperature() -> None:
    logits = torch.tensor([[0.0, 1.0, 1.0], [2.0, 0.0, 1.0]])
    assert bench._probabilities(logits, 0.0).tolist() == [[0, 1, 0], [1, 0, 0]]
    torch.testing.assert_close(
        bench._probabilities(logits, 0.5), torch.softmax(2 * logits.double(), dim=1)
    )


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_model_agrees_with_itself(temperature: float) -> None:
    exact = Exact.of(MODEL, MODEL, REPEATING, 5, temperature)
    assert exact.tokens.shape == (2, 5)
    for rule in ("rejection", "coupled", "bound"):
        torch.testing.assert_close(
            exact.kept[rule], torch.ones(2, 5, dtype=torch.float64), rtol=0, atol=1e-4
        )
    if temperature > 0:  # noise of one's own spoils it
        assert exact.kept["independent"].mean() < 0.999


def test_the_rules_keep_their_order() -> None:
    exact = Exact.of("quire-mini", MODEL, REPEATING, 6, 1.0)
    kept = exact.kept
    assert (kept["rejection"] >= kept["coupled"] - 1e-6).all()
    assert (kept["coupled"] >= kept["bound"] - 1e-6).all()
    assert (kept["rejection"] >= kept["independent"] - 1e-6).all()
    rows = {row.case: row for row in exact.rows(1.0)}
    for rule, values in kept.items():
        row = rows[f"agreement-{rule}-T1"]
        assert row.value == pytest.approx(float(values.mean()))
        assert row.parameters["low"] <= row.value <= row.parameters["high"]
        assert row.parameters["positions"] == 12


def test_greedy_rounds_stand_as_often_as_models_agree_where_they_begin() -> None:
    llm = LLM("quire-mini", **OPTIONS)
    prompts = heldout_texts(llm, 3, 40)
    exact = {0.0: Exact.of("quire-mini", MODEL, prompts, 24, 0.0)}
    config = {"method": "draft_model", "model": MODEL, "num_speculative_tokens": 2}
    [row] = bench._round_rows("quire-mini", config, "draft-k2", prompts, exact)
    p = row.parameters
    assert p["texts_unchanged"] == 3
    assert p["agreement_at_begins"] == pytest.approx(p["acceptance_1"], abs=1e-9)
    assert 0 < p["agreement"] < 1
    assert row.baselines["iid"] == pytest.approx(expected_tokens(p["agreement"], 2))
    assert row.value == pytest.approx(1 + p["acceptance_1"] * (1 + p["acceptance_2"]))
    assert p["low"] <= row.value <= p["high"]


def test_drafts_are_timed_where_they_follow_a_round() -> None:
    trace = Trace()
    config = {"method": "draft_model", "model": MODEL, "num_speculative_tokens": 3}
    llm = LLM(MODEL, speculative_config=config, trace=trace, **OPTIONS)
    runner = llm.engine.executor.worker.runner  # type: ignore[attr-defined]
    runner.drafting = timed = TimedDrafting(runner.drafting)
    llm.generate(REPEATING[0], greedy(1, 13)[0], use_tqdm=False)
    assert len(timed.seconds) == 3  # after the prompt 3 rounds of 4 tokens
    assert trace.acceptance() == [(3, 3)] * 3  # and it guessed as it does untimed
    assert all(seconds > 0 for seconds in timed.seconds)


SOURCE = """class Box:
    def first(self, key, other):
        return key


    def second(self):
        pass

def third(key=None):
    if key:
        return 1

    return 2
# behind it
x = 1

def cut(short):
    return short
"""


def test_functions_that_end_within_a_source() -> None:
    functions = speed._functions(SOURCE)
    assert [argument for _, argument in functions] == ["key", "key"]
    assert functions[0][0] == "    def first(self, key, other):\n        return key"
    assert functions[1][0].startswith("def third(key=None):")
    assert functions[1][0].endswith("    return 2\n# behind it")


def test_an_edit_is_its_function_renamed() -> None:
    llm = LLM(MODEL, **OPTIONS)
    assert llm.tokenizer is not None
    texts = speed.edits(llm, 3, 40)
    assert texts.told is not None
    assert texts.told.shape == (3, 40)
    for prompt, told in zip(texts.prompts, texts.told.tolist(), strict=True):
        asked = llm.tokenizer.decode(prompt[1:])
        head, function = asked.removesuffix("\n\n# Renamed:").split("\n", 1)
        old = head.split()[2]
        said = llm.tokenizer.decode(told).removeprefix("\n")
        assert speed.NEW_NAME in said.split("\n")[0]
        assert old in function.split("\n")[0]
        back = said[: said.rindex("\n")].replace(speed.NEW_NAME, old)  # its last line may be cut
        assert function.startswith(back)
    with pytest.raises(QuireError, match="1000 asked"):
        speed.edits(llm, 1000, 40)


def test_the_formula_counts_steps_without_drafts_as_plain() -> None:
    costs = Costs({4: 1.5}, {4: 0.1})
    begins = torch.zeros(1, 1, dtype=torch.bool)
    rounds = Rounds(torch.tensor([[1, 0, 0, 0, 2]]), torch.tensor([3]), begins)
    tokens = (1 + 2 * 5 + 3) / 6
    assert costs.formula("ngram", 4, rounds) == pytest.approx(tokens / (0.5 * 1 + 0.5 * 1.5))
    whole = Rounds(rounds.stood, torch.tensor([0]), begins)
    assert costs.formula("draft", 4, whole) == pytest.approx((11 / 3) / (1.5 + 4 * 0.1))


def test_only_a_cpu_is_timed() -> None:
    with pytest.raises(QuireError, match="--device cpu"):
        bench.run(MODEL, torch.device("cuda"))


def test_a_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The draft model guesses itself here: at temperature 0 every draft stands."""
    monkeypatch.setattr(bench, "TEMPERATURES", (0.0, 1.0))
    monkeypatch.setattr(bench, "DRAFT_KS", (2, 3))
    monkeypatch.setattr(bench, "COMPARED_KS", (2,))
    monkeypatch.setattr(bench, "NGRAM_KS", (4,))
    monkeypatch.setattr(speed, "TIMED", (("draft", 2), ("ngram", 4)))
    sizes = Sizes(texts=2, prompt_tokens=24, tokens=16, timed_texts=2, repeats=1)
    found = bench.run(MODEL, torch.device("cpu"), sizes=sizes)
    rows = {row.case: row for row in found}
    assert len(rows) == len(found)
    assert {f"agreement-{rule}-T{t}" for rule in bench.RULES for t in (0, 1)} <= set(rows)
    drafted = rows["round-draft-k2-T0-coupled"]
    assert (drafted.value, drafted.baselines["iid"]) == (3, pytest.approx(3))
    assert drafted.parameters["texts_unchanged"] == 2
    assert "agreement_at_begins" in drafted.parameters
    for verification in ("rejection", "block"):
        row = rows[f"round-draft-k2-T1-{verification}"]
        assert row.value == pytest.approx(3, abs=0.2)  # of equal distributions all but rounding
        assert row.baselines["iid"] == pytest.approx(3, abs=1e-3)
        assert "agreement_at_begins" not in row.parameters  # its texts are others
        assert f"round-draft-k2-T0-{verification}" not in rows
        assert f"round-draft-k3-T1-{verification}" not in rows
    assert {"round-draft-k3-T1-coupled", "round-ngram-k4-T0-coupled"} <= set(rows)
    assert rows["round-ngram-k4-T1-coupled"].baselines == {}
    for case in ("verify-k2", "verify-k4", "draft-k2"):
        assert rows[case].value > 0
        assert rows[case].baselines["one_token"] > 0
    for kind in ("completion", "edit"):
        for who in ("draft-k2", "ngram-k4"):
            row = rows[f"speed-{kind}-{who}"]
            p = row.parameters
            assert p["texts_unchanged"] == 2
            assert p["speedup"] == pytest.approx(row.value / row.baselines["no_guesses"])
            assert p["speedup_low"] <= p["speedup"] <= p["speedup_high"]
            verify = 1 + p["share_drafted"] * (p["verify_cost"] - 1)
            drafting = p["k"] * p.get("draft_cost", 0.0) * p["share_drafted"]
            assert p["formula"] == pytest.approx(p["tokens_per_round"] / (verify + drafting))
    assert rows["verify-k2"].value / rows["verify-k2"].baselines["one_token"] == pytest.approx(
        rows["speed-edit-draft-k2"].parameters["verify_cost"]
    )
