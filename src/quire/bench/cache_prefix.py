"""`quire bench cache-prefix`: time to the first token over the share of the prompt in the cache."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch

from quire.analysis import catalog_config
from quire.bench.measurement import Row
from quire.bench.timing import median_seconds
from quire.llm import LLM
from quire.models.config import ModelConfig
from quire.sampling.params import SamplingParams

# The largest first: what they share is then used last, and not evicted by the new rests.
SHARES = (1.0, 0.875, 0.75, 0.5, 0.25, 0.0)
FIRST = SamplingParams(max_tokens=1, temperature=0)
BLOCK_SIZE = 16
REPEATS = 7


def run(model: str, device: torch.device) -> list[Row]:
    """Measure prompts that begin with a share of one that was served before.

    Their rest is new each time. A share of 1 still computes a token: without a query there is
    nothing to sample from, and a block is matched whole or not at all.
    """
    config: ModelConfig | str = catalog_config(model) or model
    length = 8192 if device.type == "cuda" else 1024
    llm = LLM(
        config,
        device=device,
        max_model_len=length + BLOCK_SIZE,
        max_num_seqs=1,
        max_num_batched_tokens=length,
        num_blocks=8 * length // BLOCK_SIZE,
        block_size=BLOCK_SIZE,
        cuda_graphs=False,
    )
    generator = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [generator.randrange(llm.model_config.vocab_size) for _ in range(count)]

    shared = tokens(length)
    llm.generate(shared, FIRST, use_tqdm=False)
    rows = []
    for share in SHARES:
        num_shared = int(share * length)
        # Made before the clock starts: 8,192 random numbers take Python some milliseconds.
        prompts = iter(
            [shared[:num_shared] + tokens(length - num_shared) for _ in range(1 + REPEATS)]
        )

        def first_token(prompts: Iterator[list[int]] = prompts) -> None:
            llm.generate(next(prompts), FIRST, use_tqdm=False)

        seconds = median_seconds(first_token, device, warmup=1, repeats=REPEATS)
        hit = min(num_shared, length - 1) // BLOCK_SIZE * BLOCK_SIZE
        rows.append(
            Row(
                f"share-{share:g}",
                "ttft",
                seconds,
                "s",
                {},
                {"prompt_tokens": length, "hit_tokens": hit, "hit_rate": hit / length},
            )
        )
    return rows[::-1]
