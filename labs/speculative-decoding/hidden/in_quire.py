"""quire with a proposer that asks whoever is given; greedy tokens with drafts and without."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

LONGEST, SHORTEST, SEPARATOR, K, TRIALS = 3, 1, 0, 4, 3
TEXTS = [
    "def add(a, b):\n    return a + b\n\n\ndef",
    "x = [1, 2, 3]\ny = [1, 2,",
    "import os\nimport",
]
Ask = Callable[[list[list[int]], int], list[list[int]]]


class Delegate:
    """Stands where quire's proposer stands; `ask` is another one in every run."""

    def __init__(self, config: Any) -> None:
        self.ask: Ask | None = None

    def propose(self, context: Any, k: int) -> list[list[int]]:
        """Ask."""
        assert self.ask is not None
        return self.ask([token_ids.tolist() for token_ids in context.token_ids], k)


@functools.cache
def engine(drafts: bool) -> tuple[Any, list[Delegate]]:
    """quire with a delegate, or without drafts; made once for all submissions.

    On the smaller model, since the way through the engine does not depend on it.
    """
    from quire import LLM, Components

    made: list[Delegate] = []

    def delegate(config: Any) -> Delegate:
        made.append(Delegate(config))
        return made[0]

    llm = LLM(
        "quire-mini-draft", device="cpu", dtype="float32", max_model_len=96, max_num_seqs=3,
        speculative_config={"method": "ngram", "num_speculative_tokens": K} if drafts else None,
        components=Components(proposer=delegate if drafts else None),
    )  # fmt: skip
    return llm, made


def _tokens(llm: Any, seed: int) -> list[list[int]]:
    import torch

    from quire import SamplingParams

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small products: threads would wait for one another
    try:
        params = SamplingParams(max_tokens=14, temperature=0, ignore_eos=True)
        prompts = [f"{text}  # {seed % 97}\n{text}" for text in TEXTS]
        outputs = llm.generate(prompts, params, use_tqdm=False)
    finally:
        torch.set_num_threads(threads)
    return [list(output.outputs[0].token_ids) for output in outputs]


@functools.cache
def plain_tokens(seed: int) -> list[list[int]]:
    """What quire says without drafts."""
    return _tokens(engine(drafts=False)[0], seed)


def run(ask: Ask, seed: int) -> list[list[int]]:
    """What quire says with the drafts of `ask`."""
    llm, (delegate,) = engine(drafts=True)
    delegate.ask = ask
    try:
        return _tokens(llm, seed)
    except BaseException:
        engine.cache_clear()  # requests are left in it
        raise
