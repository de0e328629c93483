"""What runs before the first request: every kernel compiles there, and nothing is left behind."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from checkpoints import random_prompts
from runs import Folder
from torch import Tensor

from quire import LLM, Components, QuireError, SamplingParams
from quire.kernels.runtime import compilations
from quire.runner.warm_up import warm_up
from quire.sampling.sampler import SamplerOutput, TorchSampler

PARAMS = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_model_len": 40, "max_num_seqs": 1, "max_num_batched_tokens": 3},
        {"max_model_len": 40, "max_num_seqs": 3, "max_num_batched_tokens": 1},
        {"kv_window": 8, "kv_sinks": 2},
        {"kv_cache_dtype": "int8"},
    ],
)
def test_nothing_is_left_behind(options: dict[str, Any], checkpoint: Folder) -> None:
    """The steps fit every size of engine, and requests that follow are as in a fresh one."""
    prompts = random_prompts([5, 17, 3], seed=71)
    options = {"device": "cpu", "max_num_seqs": 6, **options}
    expected = [o.outputs for o in LLM(checkpoint("qwen2"), **options).generate(prompts, PARAMS)]
    llm = LLM(checkpoint("qwen2"), **options)
    worker = llm.engine.executor.worker  # type: ignore[attr-defined]
    warm_up(worker.runner, llm.config, worker._layout.num_groups, gives_logprobs=True)
    for kv in worker.runner._parts.storage.layers:
        assert all(torch.isfinite(x.float()).all() for x in kv.tensors)
    assert [o.outputs for o in llm.generate(prompts, PARAMS)] == expected


def test_a_swapped_sampler_is_not_asked_for_logprobs(checkpoint: Folder) -> None:
    """No request may ever want them, and then it need not have any."""

    class Silent(TorchSampler):
        def __call__(self, logits: Tensor, sampling: Any, drafts: Any = None) -> SamplerOutput:
            return SamplerOutput(self.choose(logits, sampling)[:, None])

    llm = LLM(checkpoint("qwen2"), device="cpu", components=Components(sampler=Silent))
    worker = llm.engine.executor.worker  # type: ignore[attr-defined]
    groups = worker._layout.num_groups
    warm_up(worker.runner, llm.config, groups, gives_logprobs=worker._gives_logprobs)
    with pytest.raises(QuireError, match="logprobs=5 was asked for, but Silent returned none"):
        warm_up(worker.runner, llm.config, groups, gives_logprobs=True)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kv_cache_dtype": "int8"},
        {"cuda_graphs": False},
        {"max_num_batched_tokens": 1200},
        {"max_num_batched_tokens": 1200, "quantization": "int4"},
        {"max_num_batched_tokens": 1200, "quantization": "fp8"},
    ],
)
def test_serving_compiles_nothing(options: dict[str, Any]) -> None:
    """Prompts and batches of every size, drawn and greedy, in steps captured and not."""
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("no Triton kernels serve here")
    given = {"max_num_seqs": 24, "max_num_batched_tokens": 64, "num_blocks": 2000, **options}
    llm = LLM("quire-mini", **given)
    rng = random.Random(72)
    drawn = SamplingParams(temperature=1, top_p=0.9, top_k=50, min_p=0.02, max_tokens=20)
    with compilations() as names:
        for count in (*range(1, 26), 60, 100):
            prompts = [
                [rng.randrange(4000) for _ in range(rng.randint(1, 90))] for _ in range(count)
            ]
            kinds = [PARAMS, replace(PARAMS, logprobs=None), drawn, replace(drawn, top_k=0)]
            llm.generate(prompts, [rng.choice(kinds) for _ in prompts], use_tqdm=False)
    assert names == []
