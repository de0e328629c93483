"""The cache's benchmarks: what they count, on sizes small enough to count by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Folder, Run

from quire import LLM, Components, QuireError, SamplingParams
from quire.attention.interface import AttentionBackend
from quire.bench import (
    cache_blocks,
    cache_compression,
    cache_offload,
    cache_prefix,
    cache_variants,
)
from quire.bench.cache_compression import ratio_interval
from quire.bench.cache_variants import ChangedCache, rotated_codes, to_codes
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


def nats(folder: Path, attention: Callable[[], AttentionBackend], **options: Any) -> float:
    run = Run.of(
        folder,
        components=Components(attention=attention),
        enable_prefix_caching=False,
        **options,
    )
    return nats_per_token(run.llm, [list(range(1, 60)), list(range(70, 20, -1))])


def in_codes(x: torch.Tensor) -> torch.Tensor:
    return to_codes(x, 127)


def test_a_window_of_codes_is_both(checkpoint: Folder) -> None:
    """The component that rounds, behind the engine's window, is the engine's INT8 window."""
    folder = checkpoint("llama3-scaled")
    options: dict[str, Any] = {"kv_window": 20, "kv_sinks": 4}
    emulated = nats(folder, partial(ChangedCache, in_codes), **options)
    served = Run.of(folder, kv_cache_dtype="int8", enable_prefix_caching=False, **options)
    texts = [list(range(1, 60)), list(range(70, 20, -1))]
    assert emulated == pytest.approx(nats_per_token(served.llm, texts), abs=1e-4)
    exact = nats(folder, partial(ChangedCache, lambda x: x), **options)
    assert emulated != pytest.approx(exact, abs=1e-6)
    assert exact != pytest.approx(nats(folder, partial(ChangedCache, lambda x: x)), abs=1e-4)


def test_a_rotation_spreads_what_one_channel_holds() -> None:
    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rotated_codes(x, 2**20), x, atol=1e-4, rtol=0)
    x[:, 3] *= 30
    for seed in range(cache_variants.ROTATIONS):
        assert (rotated_codes(x, 7, seed) - x).norm() < 0.6 * (to_codes(x, 7) - x).norm()
    assert not torch.equal(rotated_codes(x, 7, 0), rotated_codes(x, 7, 1))


def test_an_interval_is_of_texts_in_pairs() -> None:
    hard = torch.tensor([0.5, 3.0, 1.0, 2.0])
    low, high = ratio_interval(hard + 0.1, hard)  # what makes a text hard cancels
    assert low == pytest.approx(math.exp(0.1))
    assert high == pytest.approx(math.exp(0.1))
    differences = torch.tensor([0.0, 0.1] * 50)  # a mean of 0.05, standard error 0.005
    low, high = ratio_interval(differences, torch.zeros(100))
    assert math.log(low) == pytest.approx(0.05 - 1.96 * 0.005, abs=1e-3)
    assert math.log(high) == pytest.approx(0.05 + 1.96 * 0.005, abs=1e-3)
    assert (low, high) == ratio_interval(differences, torch.zeros(100))


def test_what_is_compared_is_run() -> None:
    cases = {variant.case for variant in cache_variants.variants(64, 2)}
    assert {case for pair in cache_compression.COMPARED for case in pair} <= cases


def test_windows_of_equal_bytes_are_of_equal_bytes() -> None:
    """Eight bits with fewer tokens have the bytes of four bits, to half a token."""
    bits = {v.case: v.bits * v.tokens for v in cache_variants.variants(64, 2)}
    for eight, four in (("int8-sinks-542", "int4"), ("int8-sinks-271", "int4-sinks-512")):
        assert abs(bits[eight] - bits[four]) <= 8.5 / 2


def test_rows_of_compression(monkeypatch: pytest.MonkeyPatch) -> None:
    every = cache_variants.variants(64, 1)
    cases = ("float32", "int4", "int4-rotated", "window-512", "int8-sinks-542")
    few = [v for v in every if v.case in cases]
    monkeypatch.setattr(cache_compression, "variants", lambda *sizes: few)
    rows = {row.case: row for row in cache_compression.run("quire-mini-draft", CPU, num_texts=2)}
    size = {case: row.parameters.get("bytes_per_text") for case, row in rows.items()}
    full = size["float32"]
    assert full == 1024 * 2 * 2 * 1 * 64 * 4  # tokens, K and V, layers, heads, elements, bytes
    assert size["int4"] == full * 4.5 / 32
    assert size["int8-sinks-542"] == full * 542 / 1024 * 8.5 / 32
    for case in cases[1:]:
        ratio = rows[case].value / rows[case].baselines["float32"]
        assert rows[case].parameters["ratio_low"] <= ratio <= rows[case].parameters["ratio_high"]
    rotated = rows["int4-rotated"]
    assert rotated.parameters["rotations"] == cache_variants.ROTATIONS
    assert rotated.parameters["lowest"] < rotated.value < rotated.parameters["highest"]
    assert "rotations" not in rows["int4"].parameters
    compared = rows["int8-sinks-542 to int4"]
    assert compared.value == pytest.approx(rows["int8-sinks-542"].value / rows["int4"].value)
    assert compared.parameters["low"] <= compared.value <= compared.parameters["high"]
    assert "h2o-512 to window-512" not in rows
