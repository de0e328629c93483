"""`quire bench cache-prefix`: time to the first token over the share of the prompt in the cache."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch

from quire.analysis import catalog_config
from quire.bench.measurement import Row
from quire.bench.timing import interleaved_seconds
from quire.llm import LLM
from quire.models.config import ModelConfig
from quire.sampling.params import SamplingParams

# Each round begins with the largest, which uses all that is shared: so it is never the oldest
# content of the cache, which holds more than the new rests of two rounds, and is not evicted.
SHARES = (1.0, 0.875, 0.75, 0.5, 0.25, 0.0)
FIRST = SamplingParams(max_tokens=1, temperature=0)
BLOCK_SIZE = 16
REPEATS = 7


def run(model: str, device: torch.device) -> list[Row]:
    """Measure prompts that begin with a share of one that was served before.

    Their rest is new each time; the shares take turns, and each keeps its best time. A share
    of 1 still computes a token: without a query there is nothing to sample from, and a block is
    matched whole or not at all.
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

    def first_token(share: float) -> Callable[[], object]:
        num_shared = int(share * length)
        # Made before the clock starts: 8,192 random numbers take Python some milliseconds.
        prompts = iter(
            [shared[:num_shared] + tokens(length - num_shared) for _ in range(1 + REPEATS)]
        )
        return lambda: llm.generate(next(prompts), FIRST, use_tqdm=False)

    works = {f"{share:g}": first_token(share) for share in SHARES}
    seconds = interleaved_seconds(works, device, warmup=1, repeats=REPEATS)
    rows = []
    for share in reversed(SHARES):
        hit = min(int(share * length), length - 1) // BLOCK_SIZE * BLOCK_SIZE
        rows.append(
            Row(
                f"share-{share:g}",
                "ttft",
                seconds[f"{share:g}"],
                "s",
                {},
                {"prompt_tokens": length, "hit_tokens": hit, "hit_rate": hit / length},
            )
        )
    return rows
