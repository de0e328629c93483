"""`quire bench divergence`: does the batch a request is in change its greedy tokens?

A matrix product may add its terms in another order when it has more rows, which changes
the last bits; near a tie that changes a token, and from there on the text.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch

from quire.bench.measurement import Row
from quire.llm import LLM
from quire.models.config import ModelConfig
from quire.prompts import Prompt
from quire.sampling.params import SamplingParams

NUM_TOKENS = 128
LONGEST = 256  # tokens of prompt and output
_NAMES = ("read", "merge", "parse", "split", "find", "count", "write", "sort")
_ARGUMENTS = ("path", "items, key", "self, node", "data=None")
PROMPTS = [f"def {name}({arguments}):\n" for name in _NAMES for arguments in _ARGUMENTS]


def run(model: str | ModelConfig, device: torch.device, dtypes: tuple[str, ...]) -> list[Row]:
    """Compare 32 prompts one by one with the same prompts in batches of 2, 8 and 32.

    Batch 1 is run twice: what differs there is not the batch's doing. A `ModelConfig` runs
    on random weights and prompts of random tokens: near ties are common there, so it shows
    how often the last bits differ, where a trained model shows how often that matters.
    """
    params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True)
    rows = []
    for dtype in dtypes:
        llm = LLM(
            model,
            device=device,
            dtype=dtype,
            max_model_len=LONGEST,
            max_num_seqs=len(PROMPTS),
            num_blocks=len(PROMPTS) * LONGEST // 16 + 1,  # two engines share the memory
            enable_prefix_caching=False,
        )

        prompts = PROMPTS if llm.tokenizer else _random_prompts(llm.model_config.vocab_size)

        def tokens(
            batch: int, llm: LLM = llm, prompts: Sequence[Prompt] = prompts
        ) -> list[list[int]]:
            texts: list[list[int]] = []
            for begin in range(0, len(prompts), batch):
                outputs = llm.generate(prompts[begin : begin + batch], params)
                texts += [list(output.outputs[0].token_ids) for output in outputs]
            return texts

        alone = tokens(1)
        for batch in (1, 2, 8, len(PROMPTS)):
            first = [first_difference(a, b) for a, b in zip(alone, tokens(batch), strict=True)]
            changed = [position for position in first if position is not None]
            rows.append(
                Row(
                    f"{dtype}-batch{batch}",
                    "diverged_sequences",
                    len(changed),
                    f"of {len(PROMPTS)}",
                    parameters={
                        "batch": batch,
                        **(
                            {"median_first_difference": statistics.median(changed)}
                            if changed
                            else {}
                        ),
                    },
                )
            )
    return rows


def _random_prompts(vocab_size: int) -> list[list[int]]:
    """Return as many prompts as there are texts, of 8 to 39 random tokens."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(vocab_size, (8 + i,), generator=generator).tolist()
        for i in range(len(PROMPTS))
    ]


def first_difference(a: list[int], b: list[int]) -> int | None:
    """Return the first index at which two lists differ, or None."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), None)
