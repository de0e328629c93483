"""The cache's benchmarks: what they count, on sizes small enough to count by hand."""

from __future__ import annotations

import pytest
import torch
from runs import Folder, Run

from quire import LLM, QuireError, SamplingParams
from quire.bench import cache_blocks, cache_offload, cache_prefix
from quire.bench.perplexity import heldout_texts, nats_per_token, perplexity

CPU = torch.device("cpu")


def test_waste_is_what_lies_behind_the_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """One request of 3 tokens that grows to 10: lengths 3 to 9 while it is served."""
    load = [[1, 2, 3]], [SamplingParams(max_tokens=7)]
    monkeypatch.setattr(cache_blocks, "mix256", lambda: load)
    rows = {row.parameters["block_size"]: row for row in cache_blocks.waste_rows()}
    used = sum(range(3, 10))
    assert rows[8].value == pytest.approx(1 - used / (6 * 8 + 1 * 16))
    assert rows[16].value == pytest.approx(1 - used / (7 * 16))
    assert rows[8].baselines == {"reserved to the longest": pytest.approx(1 - used / (7 * 2048))}


def test_every_share_of_a_prompt_is_hit() -> None:
    rows = cache_prefix.run("quire-mini-draft", CPU)
    assert [row.parameters["hit_tokens"] for row in rows] == [0, 256, 512, 768, 896, 1008]
    assert all(row.value > 0 for row in rows)


def test_swap_computes_least(checkpoint: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_offload, "PREEMPTION_REPEATS", 1)
    rows = cache_offload.preemption_rows("quire-mini-draft", CPU)
    counts = {row.case.removeprefix("preempt-"): row.parameters for row in rows}
    computed = {way: count["computed_positions"] for way, count in counts.items()}
    assert all(count["preemptions"] > 0 for count in counts.values())
    assert computed["recompute"] >= computed["cached"] >= computed["swap"]
    swap = counts["swap"]
    again = computed["swap"] - swap["needed_positions"]
    assert 0 <= again <= swap["preemptions"] * cache_offload.BLOCK_SIZE
    assert swap["loaded_blocks"] > 0
    assert counts["cached"]["saved_blocks"] == counts["recompute"]["saved_blocks"] == 0


def test_a_loaded_prefix_is_counted_in_bytes() -> None:
    """quire-mini-draft: bytes of the blocks that were loaded, all layers."""
    rows = cache_offload.load_rows("quire-mini-draft", CPU)
    config = LLM("quire-mini-draft", device="cpu").model_config
    token = 2 * config.num_layers * config.num_kv_heads * config.head_size * 4
    for row in rows:
        loaded = row.parameters["loaded_tokens"]
        assert row.parameters["bytes"] == loaded * token
        assert row.parameters["context"] - 48 <= loaded < row.parameters["context"]


def test_perplexity_is_that_of_the_log_probabilities(checkpoint: Folder) -> None:
    run = Run.of(checkpoint("llama3-scaled"))
    texts = [[5, 9, 3, 7], [1, 2, 8]]
    params = SamplingParams(max_tokens=1, prompt_logprobs=0)
    outputs = run.llm.generate(texts, params)
    values = [
        row[token].logprob
        for output in outputs
        for token, row in zip(output.prompt_token_ids, output.prompt_logprobs or [], strict=True)
        if row is not None
    ]
    assert nats_per_token(run.llm, texts) == pytest.approx(-sum(values) / 5, abs=1e-5)
    from_second = [*values[1:3], *values[4:]]
    assert nats_per_token(run.llm, texts, 2) == pytest.approx(-sum(from_second) / 3, abs=1e-5)
    assert perplexity(0.0) == 1.0


def test_held_out_texts_are_whole_and_different() -> None:
    llm = LLM("quire-mini-draft", device="cpu")
    texts = heldout_texts(llm, 5, 64)
    assert {len(text) for text in texts} == {64}
    assert len({tuple(text) for text in texts}) == 5
    with pytest.raises(QuireError, match="1000 asked"):
        heldout_texts(llm, 1000, 64)
