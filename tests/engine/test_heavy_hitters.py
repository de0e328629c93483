"""H2O-style eviction against plain attention, a window, and its own definition."""

from __future__ import annotations

import pytest
import torch
from checkpoints import random_prompts
from runs import Folder

from quire import LLM, Components, QuireError, SamplingParams
from quire.analysis.heavy_hitters import HeavyHitterAttention
from quire.bench.cache_variants import ChangedCache, merge_heads, to_codes, variants

LENGTH = 60


def logprobs(folder: object, **options: object) -> torch.Tensor:
    llm = LLM(folder, device="cpu", dtype="float32", enable_prefix_caching=False, **options)  # type: ignore[arg-type]
    prompts = random_prompts([LENGTH, 31], seed=8)
    outputs = llm.generate(prompts, SamplingParams(max_tokens=1, prompt_logprobs=0))
    rows = [row for output in outputs for row in output.prompt_logprobs or [] if row is not None]
    return torch.tensor([next(iter(row.values())).logprob for row in rows])


def heavy(heavy: int, recent: int) -> Components:
    return Components(attention=lambda: HeavyHitterAttention(heavy, recent))


def test_a_budget_of_everything_is_plain_attention(checkpoint: Folder) -> None:
    folder = checkpoint("llama3-scaled")
    found = logprobs(folder, components=heavy(LENGTH // 2, LENGTH // 2))
    torch.testing.assert_close(found, logprobs(folder), atol=1e-4, rtol=0)


@pytest.mark.parametrize("recent", [1, 7, 40])
def test_without_heavy_hitters_it_is_a_window(recent: int, checkpoint: Folder) -> None:
    folder = checkpoint("llama3-scaled")
    found = logprobs(folder, components=heavy(0, recent))
    torch.testing.assert_close(found, logprobs(folder, kv_window=recent), atol=1e-4, rtol=0)


def test_the_least_looked_at_is_dropped_and_stays_dropped() -> None:
    """One head, scores chosen by hand: position 1 goes first, then 2; 0 is looked at most."""
    backend = HeavyHitterAttention(heavy=1, recent=2)
    query = torch.ones(5, 1, 5)
    key = torch.tensor([2.0, -2.0, 0.0, 0.0, 0.0])[:, None, None].expand(5, 1, 5) / 5
    value = torch.eye(5)[:, None, :]
    mixed = backend._attend(query, key, value, 1.0)[:, 0]
    weights = torch.einsum("td,sd->ts", query[:, 0], key[:, 0]).exp()
    seen = torch.tensor(
        [
            [1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 0, 1, 1, 0],
            [1, 0, 0, 1, 1],
        ]
    )
    expected = weights * seen
    torch.testing.assert_close(mixed, expected / expected.sum(-1, keepdim=True))


def test_what_it_cannot_score_is_refused(checkpoint: Folder) -> None:
    with pytest.raises(QuireError, match="heavy=0, recent=0"):
        HeavyHitterAttention(0, 0)
    llm = LLM(checkpoint("llama3-scaled"), device="cpu", components=heavy(4, 4))
    with pytest.raises(QuireError, match="scores whole prompts"):
        llm.generate(random_prompts([9], seed=1), SamplingParams(max_tokens=2))


def test_changes_of_a_cache() -> None:
    x = torch.tensor([[[0.5, -1.0, 0.1], [0.0, 0.0, 0.0]]])
    assert to_codes(x, 1).tolist() == [[[0.0, -1.0, 0.0], [0.0, 0.0, 0.0]]]
    torch.testing.assert_close(merge_heads(x)[0, 1], torch.tensor([0.25, -0.5, 0.05]))
    assert len({variant.case for variant in variants(64, 2)}) == len(variants(64, 2))


def test_a_changed_cache_is_read(checkpoint: Folder) -> None:
    """Changing nothing gives the same; halving the values does not."""
    folder = checkpoint("llama3-scaled")
    same = Components(attention=lambda: ChangedCache(lambda x: x))
    torch.testing.assert_close(
        logprobs(folder, components=same), logprobs(folder), atol=1e-4, rtol=0
    )
    half = Components(attention=lambda: ChangedCache(lambda x: x / 2))
    assert (logprobs(folder, components=half) - logprobs(folder)).abs().max() > 0.1
