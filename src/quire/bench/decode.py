"""`quire bench decode`: tokens per second on a CPU, against transformers' three ways to generate.

transformers can run requests one after another, as one padded batch (`generate`), or batched
continuously over a paged cache (`generate_batch`). All contenders are greedy on the same weights,
multiply in float32 with the same threads and give `num_tokens` tokens without an early end. quire
holds the weights in 16 bits, as it does by default on a CPU, and transformers in float32.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
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
PAGE = 256  # transformers' default
Prompts = list[list[int]]


def run(model: str, num_tokens: int = 256, num_threads: int = 2) -> list[Row]:
    """Measure one request, then 32 at once.

    The prompts differ, so that no row repeats another, and nothing computed for one call serves
    the next: prefix caching is off in quire, and block sharing in transformers.
    """
    torch.set_num_threads(num_threads)
    llm = LLM(model, device="cpu", dtype="float32", max_num_seqs=BATCH, enable_prefix_caching=False)
    if llm.tokenizer is None:
        raise QuireError(f"model {model!r} has no tokenizer; bench decode needs one")
    prompts = [llm.tokenizer.encode(PROMPT.replace("n", f"n{i}")) for i in range(BATCH)]
    params = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)
    reference = Reference(model, num_tokens)
    rows = []
    for case, batch, rivals, repeats in (
        ("batch1", prompts[:1], {"transformers": reference.one_by_one}, 12),
        (
            f"batch{BATCH}",
            prompts,
            {
                "transformers one by one": reference.one_by_one,
                "transformers padded": reference.padded,
                "transformers continuous": reference.continuous,
            },
            2,
        ),
    ):
        works: dict[str, Callable[[Prompts], object]] = {
            "quire": lambda prompts: llm.generate(prompts, params, use_tqdm=False),
            **rivals,
        }
        seconds = interleaved_seconds(
            {name: lambda work=work, batch=batch: work(batch) for name, work in works.items()},  # type: ignore[misc]
            torch.device("cpu"),
            repeats=repeats,
        )
        rates = {name: len(batch) * num_tokens / time for name, time in seconds.items()}
        value = rates.pop("quire")
        rows.append(Row(case, "tokens_per_second", value, "tokens/s", rates))
    return rows


class Reference:
    """transformers on the same checkpoint, in float32."""

    def __init__(self, model: str, num_tokens: int) -> None:
        """Load it; every call gives `num_tokens` tokens a prompt."""
        from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

        # It warns that a manager which is kept was sized for its first call: all are alike here.
        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
        auto: Any = AutoModelForCausalLM
        config: Any = GenerationConfig
        self._model = auto.from_pretrained(str(resolve_checkpoint(model)), dtype=torch.float32)
        self._num_tokens = num_tokens
        self._continuous = {
            "generation_config": config(
                max_new_tokens=num_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
            ),
            "continuous_batching_config": ContinuousBatchingConfig(
                # Left to itself it takes most of the machine's memory; this holds every request.
                num_blocks=BATCH * (2 + num_tokens // PAGE),
                page_size=PAGE,
                max_batch_tokens=1024,
                allow_block_sharing=False,
            ),
            "persistent_manager": True,  # its start is not part of the time
        }

    def one_by_one(self, prompts: Prompts) -> Prompts:
        """`generate`, a prompt a call."""
        return [self.padded([prompt])[0] for prompt in prompts]

    @torch.inference_mode()
    def padded(self, prompts: Prompts) -> Prompts:
        """`generate` of one batch, shorter prompts padded on their left."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        widths = torch.tensor([[longest - len(prompt)] for prompt in prompts])
        generated = self._model.generate(
            ids,
            attention_mask=(torch.arange(longest) >= widths).long(),
            max_new_tokens=self._num_tokens,
            min_new_tokens=self._num_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        tokens: Prompts = generated[:, longest:].tolist()
        return tokens

    def continuous(self, prompts: Prompts) -> Prompts:
        """`generate_batch`: requests join and leave a batch that runs; first ended, first given."""
        outputs = self._model.generate_batch(inputs=prompts, **self._continuous)
        return [output.generated_tokens for output in outputs.values()]
