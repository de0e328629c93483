"""The cache's explorables: the free list and the blocks' names are the engine's own."""

from __future__ import annotations

import random
import sys
from types import ModuleType
from typing import Any

import pytest
from explorable_host import OpenExplorable, answer_in, commit
from playwright.sync_api import Locator, Page, expect

from quire import SamplingParams
from quire.kv.block_hash import extend_chain
from quire.kv.block_pool import LRUBlockPool
from quire.kv.kv_cache_manager import PagedKVCacheManager
from quire.request import Request

pytestmark = pytest.mark.browser

Prompt = dict[str, Any]


# ---- block-table player


def test_replay_is_the_engines_pool(
    page: Page, base: str, make_data: ModuleType, data: dict[str, Any]
) -> None:
    """After every step the same blocks are free, in the same order, and the same are cached."""
    recording, trace = sys.modules["record_cache"].record(make_data.MODEL)
    page.goto(f"{base}/block-table-player.html")
    states = page.evaluate(
        """async (data) => {
            const { replay } = await import("/explorables/block-pool.js");
            return replay(data);
        }""",
        data["block-table-player"],
    )
    assert states[0]["free"] == list(range(1, data["block-table-player"]["num_blocks"] + 1))
    assert len(states) == len(trace.steps) + 1
    for state, expected in zip(states[1:], recording.states, strict=True):
        assert state["free"] == expected["free"]
        assert state["cached"] == expected["cached"]


def test_recording_holds_what_the_chapter_teaches(data: dict[str, Any]) -> None:
    """Sharing, copy-on-write, eviction, preemption and a return on its own blocks."""
    steps = data["block-table-player"]["steps"]
    tables = [step["tables"].values() for step in steps]
    assert any(len(set.union(*map(set, t))) < sum(map(len, t)) for t in tables if t)  # shared
    assert any(step["copies"] for step in steps)
    (preempted,) = [request for step in steps for request in step["preempted"]]
    admitted = [step["hits"][preempted] for step in steps if preempted in step["hits"]]
    assert len(admitted) == 2
    assert admitted[0] == 0 < admitted[1]


def questions_of(element: Locator) -> list[str]:
    """Walk to the end by keyboard, answering each question; return the verdicts."""
    page, verdicts = element.page, []
    while True:
        asked = element.locator("[name=prediction]")
        if asked.count():
            asked.focus()
            if asked.evaluate("x => x.tagName") == "SELECT":
                page.keyboard.press("ArrowDown")
                page.keyboard.press("Tab")
            else:
                page.keyboard.type("0")
            before = element.get_by_role("slider").input_value()
            page.keyboard.press("Enter")
            verdict = element.locator(".ask .verdict").last
            expect(verdict).to_be_focused()
            assert int(element.get_by_role("slider").input_value()) == int(before) + 1
            verdicts.append(verdict.inner_text())
            continue
        step = element.get_by_role("button", name="Step ▶")
        if step.get_attribute("aria-disabled") == "true":
            return verdicts
        step.press("Enter")


def test_player_asks_before_it_shows(open_explorable: OpenExplorable, data: dict[str, Any]) -> None:
    trace = data["block-table-player"]
    names = {request["id"]: request["name"] for request in trace["requests"]}
    element = open_explorable("block-table-player", reduced_motion="reduce")
    second = trace["steps"][1]["tables"]
    held = {block for table in second.values() for block in table}
    assert answer_in(commit(element, "12")) == len(held)

    element.get_by_role("slider").fill("24")  # no further than the first question
    copied = next(i for i, step in enumerate(trace["steps"], 1) if step["copies"])
    assert element.get_by_role("slider").input_value() == str(copied - 1)
    expect(element.get_by_role("status")).to_contain_text(f"A question: Step {copied}")

    verdicts = questions_of(element)
    (source, _), *_ = next(step["copies"] for step in trace["steps"] if step["copies"])
    preempted = next(step["preempted"][0] for step in trace["steps"] if step["preempted"])
    answers = [verdict.split(": ")[1].split(";")[0] for verdict in verdicts]
    assert answers[:2] == [str(source), names[preempted]]
    returned = [step["hits"][preempted] for step in trace["steps"] if preempted in step["hits"]]
    assert answers[3] == str(returned[1])
    last = len(trace["steps"])
    expect(
        element.get_by_text(f"Step {last} of {last} computes 0 tokens.", exact=True)
    ).to_be_visible()
    element.get_by_role("button", name="Back").press("Enter")
    expect(element.get_by_role("status")).to_contain_text(f"Step {last - 1} of {last}")


def test_player_shows_the_tables(open_explorable: OpenExplorable, data: dict[str, Any]) -> None:
    trace = data["block-table-player"]
    element = open_explorable("block-table-player")
    commit(element)
    questions_of(element)
    for number, step in enumerate(trace["steps"], 1):
        element.get_by_role("slider").fill(str(number))
        shown = [
            row.locator("td").last.inner_text()
            for row in element.locator("tbody tr").all()
            if row.locator("th").count()
        ]
        expected = [" ".join(map(str, table)) for table in step["tables"].values()]
        assert shown == expected + ["–"] * len(step["waiting"])
        held = {block for table in step["tables"].values() for block in table}
        assert element.locator("rect.block.held").count() == len(held)


# ---- prefix-cache explorer


def request_of(index: int, tokens: list[int], extra_keys: list[str]) -> Request:
    return Request(str(index), tokens, SamplingParams(), extra_keys=tuple(extra_keys))


def served_by_quire(prompts: list[Prompt], block_size: int) -> list[dict[str, Any]]:
    """Serve the prompts in turn, each prefilled whole, from an empty cache with room for all."""
    manager = PagedKVCacheManager([LRUBlockPool(1000)], block_size, enable_prefix_caching=True)
    answers = []
    for index, prompt in enumerate(prompts):
        request = request_of(index, prompt["tokens"], prompt["extraKeys"])
        hits = request.num_computed_tokens = manager.match_prefix(request)
        manager.reserve(request, request.num_tokens - hits)
        request.num_computed_tokens = request.num_tokens
        manager.commit(request)
        chain: list[bytes] = []
        extend_chain(chain, request, request.num_tokens // block_size, block_size)
        answers.append(
            {
                "names": [name.hex() for name in chain],
                "hits": hits // block_size,
                "hitTokens": hits,
                "computed": request.num_tokens - hits,
            }
        )
    return answers


def random_prompts(rng: random.Random) -> list[Prompt]:
    """Prompts of few different tokens, some continuing others, some under a salt."""
    prompts: list[Prompt] = []
    for _ in range(rng.randint(1, 5)):
        tokens = [rng.choice([0, 1, 255, 128_000]) for _ in range(rng.randint(1, 70))]
        if prompts:
            before = rng.choice(prompts)["tokens"]
            tokens = before[: rng.randint(0, len(before))] + tokens[: rng.randint(0, len(tokens))]
        salts = [[], [], ["tenant"], ['a "ü" \x7f😀'], ["a", "b"]]
        prompts.append({"tokens": tokens or [1], "extraKeys": rng.choice(salts)})
    return prompts


def test_names_and_hits_are_the_engines(page: Page, base: str) -> None:
    """200 random series of prompts: every block's whole name, every hit, every token computed."""
    rng = random.Random(0)
    cases = [(random_prompts(rng), rng.choice([8, 16, 32])) for _ in range(200)]
    page.goto(f"{base}/prefix-cache-explorer.html")
    answers = page.evaluate(
        """async (cases) => {
            const { serve } = await import("/explorables/block-hash.js");
            return cases.map(([prompts, size]) => serve(prompts, size));
        }""",
        cases,
    )
    expected = [served_by_quire(prompts, size) for prompts, size in cases]
    assert answers == expected
    assert sum(each["hits"] for case in expected for each in case) > 100


def test_explorer_form(open_explorable: OpenExplorable, data: dict[str, Any]) -> None:
    explorer = data["prefix-cache-explorer"]
    element = open_explorable("prefix-cache-explorer")
    texts = [prompt["text"] for prompt in explorer["prompts"]]

    def expected(salts: tuple[str, ...], size: int) -> list[list[int]]:
        prompts = [
            {"tokens": list(text.encode()), "extraKeys": [salt] if salt else []}
            for text, salt in zip(texts, salts, strict=True)
        ]
        served = served_by_quire(prompts, size)
        return [[len(p["tokens"]), s["hitTokens"], s["computed"]]
                for p, s in zip(prompts, served, strict=True)]  # fmt: skip

    def shown() -> list[list[int]]:
        return [
            [int(cell.inner_text()) for cell in row.locator("td").all()]
            for row in element.locator("tbody tr").all()
        ]

    rows = expected(("", "", ""), explorer["block_size"])
    assert answer_in(commit(element)) == rows[1][2]
    assert shown() == rows
    element.locator("select[name=block-size]").select_option("8")
    assert shown() == expected(("", "", ""), 8)
    element.locator("input[name=salt-B]").fill("tenant")
    assert shown() == expected(("", "tenant", ""), 8)
    assert shown()[1][1] == 0
    texts[2] = texts[0] + ", très tôt"
    element.locator("input[name=prompt-C]").fill(texts[2])
    assert shown() == expected(("", "tenant", ""), 8)
    expect(element.get_by_role("status")).to_contain_text(f"C: {shown()[2][1]} of")
    element.locator("input[name=prompt-A]").fill("")
    assert shown()[0] == [0, 0, 0]
