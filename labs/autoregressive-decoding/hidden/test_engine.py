"""Hidden tests of `choose_tokens`, the last ones inside quire.

The engine runs here. A proxy in its sampler's place sends each step's rows to the reader's
code and takes token ids back.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import numpy as np

from .sampling_oracle import NEUTRAL, NO_PENALTY, TooClose, distribution, draw, penalise

POLICY = NEUTRAL | NO_PENALTY | {
    "temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.02, "quota": 2, "span": 24,
    "frequency": 0.3, "window": 32,
}  # fmt: skip
PROMPTS = ["def add(a, b):", "class Queue:\n", "import ", "for key in "]
TOKENS = 8
BATCHES = 8  # of random rows
TRIES = 20  # seeds of a workload, until rounding decides none of its draws


def noise(seed: int, position: int) -> float:
    """The lab's own noise."""
    digest = hashlib.sha256(f"{seed}:{position}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def want_token(row: dict[str, Any]) -> int | None:
    """The token of one row, or None where rounding decides."""
    params = row["params"]
    logits = penalise(list(row["logits"]), row["prompt_ids"], row["output_ids"], params)
    try:
        return draw(
            distribution(logits, row["output_ids"], params), noise(row["seed"], row["position"])
        )
    except TooClose:
        return None


@functools.cache
def engine() -> tuple[Any, Any]:
    """quire-mini with a proxy for its sampler, made once for all submissions."""
    import torch

    from quire import LLM, Components
    from quire.sampling import SamplerOutput

    class Proxy:
        def __init__(self) -> None:
            self.choose: Any = None
            self.params: dict[str, Any] = {}
            self.outputs: dict[int, list[int]] = {}

        def __call__(self, logits: Any, sampling: Any, drafts: Any = None) -> Any:
            keys = list(zip(sampling.seeds.tolist(), sampling.positions.tolist(), strict=True))
            rows = [
                {
                    "logits": row.double().numpy(),
                    "seed": seed,
                    "position": position,
                    "prompt_ids": [],
                    "output_ids": list(self.outputs.setdefault(seed, [])),
                    "params": self.params,
                }
                for row, (seed, position) in zip(logits, keys, strict=True)
            ]
            chosen = self.choose(rows)
            for (seed, _), token in zip(keys, chosen, strict=True):
                self.outputs[seed].append(token)
            tokens = torch.tensor(chosen)
            return SamplerOutput(tokens[:, None], torch.ones_like(tokens))

    proxy = Proxy()
    llm = LLM(
        "quire-mini", device="cpu", dtype="float32", components=Components(sampler=lambda: proxy)
    )
    return llm, proxy


def run(choose: Any, params: dict[str, Any], prompts: list[str], first: int) -> list[list[int]]:
    """Generate in the engine; prompt i has the seed `first + i`."""
    import torch

    from quire import SamplingParams

    llm, proxy = engine()
    proxy.choose, proxy.params, proxy.outputs = choose, params, {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small products: threads would wait for one another
    requests = [
        SamplingParams(max_tokens=TOKENS, ignore_eos=True, seed=first + i)
        for i in range(len(prompts))
    ]
    try:
        outputs = llm.generate(prompts, requests)
    finally:
        torch.set_num_threads(threads)
    return [output.outputs[0].token_ids for output in outputs]


def oracle_choice(rows: list[dict[str, Any]]) -> list[int]:
    """What the steps of the specification choose.

    Raises:
        TooClose: rounding decides one of the draws.
    """
    chosen = [token for token in map(want_token, rows) if token is not None]
    if len(chosen) < len(rows):
        raise TooClose
    return chosen


@functools.cache
def workload(seed: int) -> tuple[int, list[list[int]]]:
    """The first request's seed and all tokens, with the oracle in the engine."""
    for number in range(TRIES):
        first = 1000 + 7 * ((seed + number) % 1_000_003)
        try:
            return first, run(oracle_choice, POLICY, PROMPTS, first)
        except TooClose:
            continue
    raise AssertionError(f"no workload for the seed {seed}: each has a draw at an edge")


def _student_choice(student: Any) -> Any:
    def choose(rows: list[dict[str, Any]]) -> list[int]:
        got = student.call("choose_tokens", rows)
        vocab = len(rows[0]["logits"])
        fine = type(got) is list and len(got) == len(rows)
        if not fine or not all(type(i) is int and 0 <= i < vocab for i in got):
            student.fail(
                f"called choose_tokens on {len(rows)} rows of the engine\n"
                f"expected {len(rows)} token ids below {vocab}\ngot {str(got)[:200]}"
            )
        return got

    return choose


def row_list(seed: int) -> list[dict[str, Any]]:
    """Rows as an engine would send them, of a small vocabulary."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(int(rng.integers(1, 5))):
        params = POLICY | {"temperature": float(rng.choice([0.0, 0.6, 1.2])), "top_k": 6}
        rows.append(
            {
                "logits": rng.normal(size=9) * 2,
                "seed": int(rng.integers(0, 1 << 40)) + i,
                "position": int(rng.integers(1, 4000)),
                "prompt_ids": rng.integers(0, 9, 4).tolist(),
                "output_ids": rng.integers(0, 9, int(rng.integers(0, 8))).tolist(),
                "params": params | {"repetition": float(rng.choice([1.0, 1.4]))},
            }
        )
    return rows


def test_rows_are_independent(student, variant, seed):
    """Each row's token follows from its own row, in any order and company."""
    for number in range(BATCHES):
        rows = row_list(seed + number)
        want = [want_token(row) for row in rows]
        if None in want:
            continue
        student.expect("choose_tokens", rows, want=want)
        student.expect("choose_tokens", rows[::-1], want=want[::-1], because="the rows reversed")
        student.expect("choose_tokens", rows[:1], want=want[:1], because="the first row alone")


def _judge_together(student, seed):
    """Run the four prompts in a batch; return the first seed and the tokens wanted."""
    first, want = workload(seed)
    got = run(_student_choice(student), POLICY, PROMPTS, first)
    for prompt, tokens, expected in zip(PROMPTS, got, want, strict=True):
        student.compare(
            f"quire-mini with your sampler, four prompts, on {prompt!r}", tokens, expected
        )
    return first, want


def test_engine_tokens(student, variant, seed):
    """In quire, on quire-mini: the tokens of the specification, in a batch and alone."""
    first, want = _judge_together(student, seed)
    alone = run(_student_choice(student), POLICY, PROMPTS[2:3], first + 2)
    student.compare(
        f"quire-mini with your sampler, {PROMPTS[2]!r} alone", alone[0], want[2],
        because="alone or in a batch, the tokens are the same",
    )  # fmt: skip


def test_whole_notebook(student, variant, seed):
    """The same with your own tasks 2 and 3 in place of the reference's."""
    _judge_together(student, seed)
