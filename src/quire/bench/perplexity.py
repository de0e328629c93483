"""Perplexity as the judge of what a cache throws away: held-out text, scored by the engine.

The engine scores a prompt with the cache it serves from, so that the number is of the path
that runs, kernels included.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Sequence

from quire.errors import QuireError
from quire.llm import LLM
from quire.resources import data_dir
from quire.sampling.params import SamplingParams

SEPARATOR = 0  # <|endoftext|>, which every training text began with


def heldout_texts(llm: LLM, count: int, length: int) -> list[list[int]]:
    """Return the first `length` tokens of `count` held-out files, spread over their order.

    The files are those that the shipped models never saw (`models/README.md`); shorter ones
    are left out.

    Raises:
        QuireError: they are not there, as in an installed wheel, or too few are long enough.
    """
    path = data_dir() / "models" / "heldout.jsonl.gz"
    if not path.is_file() or llm.tokenizer is None:
        raise QuireError(f"{path} is needed, and a model with a tokenizer: run this in a clone")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = sorted((json.loads(line) for line in lines), key=lambda row: row["path"])
    beginnings = [row["text"][: 6 * length] for row in rows]  # a token has 3.5 bytes on average
    texts = [[SEPARATOR, *llm.tokenizer.encode(text)][:length] for text in beginnings]
    long_enough = [tokens for tokens in texts if len(tokens) == length]
    if len(long_enough) < count:
        raise QuireError(f"{len(long_enough)} held-out files have {length} tokens, {count} asked")
    return [long_enough[i * len(long_enough) // count] for i in range(count)]


def nats_per_token(llm: LLM, texts: Sequence[Sequence[int]], first: int = 1) -> float:
    """Return the mean negative log-likelihood of the tokens at positions `first` and on.

    A later `first` leaves out the positions that any window sees whole.
    """
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    total, count = 0.0, 0
    for output in llm.generate([list(text) for text in texts], params, use_tqdm=False):
        assert output.prompt_logprobs is not None
        for token, row in list(zip(output.prompt_token_ids, output.prompt_logprobs, strict=True))[
            first:
        ]:
            assert row is not None
            total -= row[token].logprob
            count += 1
    return total / count


def perplexity(nats: float) -> float:
    """Return e to the mean negative log-likelihood: the choices a token is as good as."""
    return math.exp(nats)
