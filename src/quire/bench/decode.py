"""`quire bench decode`: tokens per second against transformers' `generate`, in one run."""

from __future__ import annotations

from typing import Any

import torch

from quire.bench.measurement import Row
from quire.bench.timing import interleaved_seconds
from quire.errors import QuireError
from quire.llm import LLM
from quire.models.loader import resolve_checkpoint
from quire.sampling.params import SamplingParams

PROMPT = "def fibonacci(n):\n"
BATCH = 32


def run(model: str, num_tokens: int = 256, num_threads: int = 2) -> list[Row]:
    """Measure batch 1, then 32 requests batched against transformers one after another.

    Both sides: greedy, the same weights in float32, the same threads, `num_tokens` output
    tokens, no early end. The prompts differ, so that no row repeats another, and nothing
    computed for one call serves the next: prefix caching is off.
    """
    from transformers import AutoModelForCausalLM  # slow to import

    torch.set_num_threads(num_threads)
    device = "cpu"
    llm = LLM(
        model, device=device, dtype="float32", max_num_seqs=BATCH, enable_prefix_caching=False
    )
    reference: Any = AutoModelForCausalLM.from_pretrained(
        str(resolve_checkpoint(model)), dtype=torch.float32
    )
    params = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)
    if llm.tokenizer is None:
        raise QuireError(f"model {model!r} has no tokenizer; bench decode needs one")
    prompts = [llm.tokenizer.encode(PROMPT.replace("n", f"n{i}")) for i in range(BATCH)]

    def transformers_generate(batch: list[list[int]]) -> list[list[int]]:
        outputs = []
        for prompt in batch:
            ids = torch.tensor([prompt], device=device)
            with torch.inference_mode():
                generated = reference.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=num_tokens,
                    min_new_tokens=num_tokens,
                    do_sample=False,
                    pad_token_id=0,
                )
            outputs.append(generated[0, len(prompt) :].tolist())
        return outputs

    rows = []
    for case, batch, repeats in (("batch1", prompts[:1], 12), (f"batch{BATCH}", prompts, 1)):
        seconds = interleaved_seconds(
            {
                "quire": lambda batch=batch: llm.generate(batch, params),  # type: ignore[misc]
                "transformers": lambda batch=batch: transformers_generate(batch),  # type: ignore[misc]
            },
            torch.device(device),
            warmup=1 if repeats > 1 else 0,
            repeats=repeats,
        )
        rates = {name: len(batch) * num_tokens / time for name, time in seconds.items()}
        rows.append(
            Row(
                case,
                "tokens_per_second",
                rates["quire"],
                "tokens/s",
                {"transformers": rates["transformers"]},
            )
        )
        rows.append(Row(case, "ratio", rates["quire"] / rates["transformers"], "1"))
    return rows
