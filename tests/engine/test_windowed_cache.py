"""Sinks and window: what a query sees, and which blocks are given back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checkpoints import random_prompts
from runs import Folder, Run

from quire import LLM, Components, QuireError, SamplingParams
from quire.attention.torch_backend import TorchAttention
from quire.kv.kv_cache_manager import NULL_BLOCK
from quire.kv.windowed_manager import WindowedKVCacheManager

GREEDY = SamplingParams(temperature=0, max_tokens=70, ignore_eos=True)
SIZES: dict[str, Any] = {"block_size": 8, "max_model_len": 160, "max_num_seqs": 3}


def answers(run: Run, prompts: list[list[int]]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in run.generate(prompts, GREEDY)]


@pytest.mark.parametrize("overlap", [False, True])
def test_a_released_block_is_never_missed(overlap: bool, checkpoint: Folder) -> None:
    """The same tokens whether blocks are kept or given back and written over by others."""
    prompts = random_prompts([60, 20, 33, 71, 5], seed=1)
    window = {"kv_window": 19, "kv_sinks": 3}

    class Keeps(WindowedKVCacheManager):
        def commit(self, request: Any) -> None:
            super(WindowedKVCacheManager, self).commit(request)

    def keeps(pools: Any, block_size: int, caching: bool) -> Keeps:
        return Keeps(pools, block_size, caching, [19], 3)

    kept = Run.of(
        checkpoint("llama3-scaled"),
        components=Components(kv_cache_manager=keeps),
        **window,
        **SIZES,
    )
    expected = answers(kept, prompts)
    for options in ({}, {"num_blocks": 22}, {"enable_prefix_caching": False, "num_blocks": 22}):
        run = Run.of(checkpoint("llama3-scaled"), overlap=overlap, **window, **{**SIZES, **options})
        assert answers(run, prompts) == expected
        assert manager_of(run.llm).num_released_blocks > 20
        manager_of(run.llm).check()
    assert answers(Run.of(checkpoint("llama3-scaled"), **SIZES), prompts) != expected


def manager_of(llm: LLM) -> WindowedKVCacheManager:
    manager = llm.engine._scheduler._kv  # type: ignore[attr-defined]
    assert isinstance(manager, WindowedKVCacheManager)
    return manager


@pytest.mark.parametrize("num_prompt_tokens", [50, 20, 3])
@pytest.mark.parametrize(
    ("window", "sinks"), [(1, 0), (8, 0), (19, 3), (16, 8), (40, 17), (64, 0), (100, 9)]
)
def test_what_is_held_follows_the_window(
    window: int, sinks: int, num_prompt_tokens: int, checkpoint: Folder
) -> None:
    """At every step exactly the blocks with a position in sinks or window are held.

    Also while the text is shorter than the window, of which nothing is given back.
    """
    run = Run.of(checkpoint("llama3-scaled"), kv_window=window, kv_sinks=sinks, **SIZES)
    (prompt,) = random_prompts([num_prompt_tokens], seed=2)
    handle = run.add(prompt, GREEDY)
    manager = manager_of(run.llm)
    while not handle.finished:
        run.llm.engine.step()
        manager.check()
        for name, table in manager._tables.items():
            (request,) = (s.request for s in handle.sequences if s.request.request_id == name)
            computed = request.num_computed_tokens
            for column, block in enumerate(table.blocks[0]):
                positions = range(column * 8, column * 8 + 8)
                seen = any(p < sinks or p > computed - window for p in positions)
                assert (block != NULL_BLOCK) == seen, (column, computed)
    run.finish()


def test_samples_of_one_prompt_share_what_is_left(checkpoint: Folder) -> None:
    run = Run.of(checkpoint("llama3-scaled"), kv_window=10, kv_sinks=2, **SIZES)
    (prompt,) = random_prompts([50], seed=3)
    params = SamplingParams(temperature=1.0, seed=1, n=3, max_tokens=30, ignore_eos=True)
    together = [c.token_ids for c in run.generate([prompt], params)[0].outputs]
    alone = Run.of(
        checkpoint("llama3-scaled"), kv_window=10, kv_sinks=2, **{**SIZES, "max_num_seqs": 1}
    )
    assert [c.token_ids for c in alone.generate([prompt], params)[0].outputs] == together


def test_a_window_of_everything_changes_nothing(checkpoint: Folder) -> None:
    prompts = random_prompts([60, 20], seed=4)
    plain = answers(Run.of(checkpoint("qwen2-two-groups"), **SIZES), prompts)
    wide = Run.of(checkpoint("qwen2-two-groups"), kv_window=160, **SIZES)
    assert answers(wide, prompts) == plain


class Plain(TorchAttention):
    sees_sinks = False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_window": 0}, "kv_window=0: must be an integer of at least 1"),
        ({"kv_window": 8, "kv_sinks": -1}, "kv_sinks=-1"),
        ({"kv_sinks": 4}, "kv_sinks=4 without kv_window"),
        (
            {"kv_window": 8, "kv_sinks": 4, "components": Components(attention=Plain)},
            "Plain does not look at AttentionBatch.sinks",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    options: dict[str, Any], message: str, checkpoint: Folder
) -> None:
    with pytest.raises(QuireError, match=message):
        LLM(checkpoint("llama3-scaled"), device="cpu", **options)


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_gpu_sees_what_a_cpu_sees(cuda_graphs: bool, checkpoint: Folder) -> None:
    torch.set_float32_matmul_precision("highest")
    prompts = random_prompts([60, 20, 33, 71, 5], seed=1)
    window = {"kv_window": 19, "kv_sinks": 3}
    expected = answers(Run.of(checkpoint("llama3-scaled"), **window, **SIZES), prompts)
    run = Run.of(
        checkpoint("llama3-scaled"),
        "cuda",
        cuda_graphs=cuda_graphs,
        num_blocks=22,
        **window,
        **SIZES,
    )
    assert answers(run, prompts) == expected
