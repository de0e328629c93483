"""A step is queued without waiting for the device, whatever its requests ask for.

torch names the operations that wait (`torch.cuda.set_sync_debug_mode`): here each of them fails the
step that it is part of. Where a step waits on purpose, the test says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from quire import LLM, SamplingParams
from quire.messages import SchedulerOutput
from quire.runner import model_runner
from quire.runner.model_runner import ModelRunner
from quire.runner.pending import PendingStep

# That it sees not all of them is what torch says of its watch.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:Synchronization debug mode")]

SIZES: dict[str, Any] = {
    "device": "cuda",
    "max_model_len": 256,
    "max_num_seqs": 6,
    "num_blocks": 60,
    "max_num_batched_tokens": 64,  # prompts beside decodes, and in chunks
}
TEXTS = ["def add(a, b):\n    return a + b\n\n\n" * (1 + i % 3) for i in range(14)]
ENGINES: dict[str, dict[str, Any]] = {
    "plain": {},
    "mixture of experts": {"model": "quire-mini-moe"},
    "INT4 and an INT8 cache": {"quantization": "int4", "kv_cache_dtype": "int8"},
    "window": {"kv_window": 40, "kv_sinks": 4, "enable_prefix_caching": False},
    "host tier": {"num_host_blocks": 60},
    "kernel by kernel": {"cuda_graphs": False},
    "n-gram": {"speculative_config": {"method": "ngram", "prompt_lookup_min": 1}},
    "draft model": {"speculative_config": {"method": "draft_model", "model": "quire-mini-draft"}},
    "rejection": {
        "speculative_config": {
            "method": "draft_model",
            "model": "quire-mini-draft",
            "num_speculative_tokens": 3,
            "verification": "rejection",
        }
    },
}
ASKED: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "drawn": {"top_k": 20, "top_p": 0.9, "min_p": 0.02},
    "shaped": {
        "frequency_penalty": 0.3,
        "logit_bias": {5: 2.0},
        "min_tokens": 9,
        "bad_words": [" b"],
    },
    "scored": {"logprobs": 2, "prompt_logprobs": 1},
    "several": {"n": 2},
}


@contextmanager
def waiting(mode: str) -> Iterator[None]:
    """Let operations that wait for the device pass ("default"), or fail ("error")."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps that were queued, each without waiting, by their numbers of requests."""
    steps: list[int] = []
    execute, find = ModelRunner.execute, model_runner.with_true_starts

    def queued(self: ModelRunner, output: SchedulerOutput) -> PendingStep:
        steps.append(len(output.entries))
        with waiting("error"):
            return execute(self, output)

    def found(*args: Any, **options: Any) -> SchedulerOutput:
        with waiting("default"):  # for drafts under judgement, where the host must know
            return find(*args, **options)

    monkeypatch.setattr(ModelRunner, "execute", queued)
    monkeypatch.setattr(model_runner, "with_true_starts", found)
    return steps


@pytest.mark.parametrize("engine", ENGINES)
def test_no_step_waits(engine: str, watched: list[int]) -> None:
    options = {"model": "quire-mini", **SIZES, **ENGINES[engine]}
    llm = LLM(**options)
    for asked in ASKED.values():
        watched.clear()
        params = SamplingParams(seed=1, max_tokens=24, ignore_eos=True, **asked)
        outputs = llm.generate(TEXTS, params, use_tqdm=False)
        assert all(len(output.outputs[0].token_ids) == 24 for output in outputs)
        assert len(watched) > 24, asked
        assert max(watched) == SIZES["max_num_seqs"], asked


def test_an_operation_that_waits_is_seen(
    watched: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the one did that this test is here for: a Python number, through an indexed assignment."""
    llm = LLM("quire-mini", **SIZES)
    begin = model_runner.InputBatch._add

    def waits(self: Any, requests: Any) -> None:
        begin(self, requests)
        rows = torch.zeros(1, dtype=torch.int64, device="cuda")
        self.block_tables[0][rows] = 0

    monkeypatch.setattr(model_runner.InputBatch, "_add", waits)
    with pytest.raises(Exception, match="synchroniz"):
        llm.generate(TEXTS[:1], SamplingParams(max_tokens=2), use_tqdm=False)
