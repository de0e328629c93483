"""What the explorables of speculative decoding show: real distributions, and costs of a round.

The distributions are quire-mini's and its draft's over the six tokens that both together find
likeliest, as `allowed_token_ids` leaves them, so that a seed draws there what the engine draws.
The costs are those of measured steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from quire import LLM, Components, SamplingParams
from quire.analysis.step_time import StepTime
from quire.resources import load_measurement
from quire.sampling.drafts import Drafts
from quire.sampling.sampler import SamplerOutput, TorchSampler
from quire.sampling.tensors import SamplingTensors

DRAFT_MODEL = "quire-mini-draft"
NUM_TOKENS = 6  # tokens that race, of 4,096
RACE_PROMPTS = (  # the first is asked about
    ("a condition", "def fibonacci(n):\n    if n"),
    ("a constructor", "    def __init__(self"),
    ("an attribute", "class Stack:\n    def push(self, item):\n        self."),
    ("an import", "import numpy as"),
    ("a name", "if __name__"),
)

STEPS = "speculation-steps-h200"  # Qwen3-8B, and Qwen3-0.6B as its draft
DRAFT_STEPS = "steps-h200"  # Qwen3-0.6B alone
DRAFTED = 3  # drafts of the measured graph that a draft token's cost is taken from
PAYOFF_SCENARIO = {"acceptance": 0.7, "batch": 1, "loaded_batch": 64}


class _Listener(TorchSampler):
    """Keeps the logits that it is given, and the position of the token they are about."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, int]] = []

    def __call__(
        self, logits: Tensor, sampling: SamplingTensors, drafts: Drafts | None = None
    ) -> SamplerOutput:
        self.seen.append((logits[0].clone(), int(sampling.positions[0])))
        return super().__call__(logits, sampling, drafts)


def _next_token_logits(model: str) -> tuple[LLM, list[tuple[Tensor, int]]]:
    listener = _Listener()
    llm = LLM(model, dtype="float32", device="cpu", components=Components(sampler=lambda: listener))
    for _, text in RACE_PROMPTS:
        llm.generate([text], SamplingParams(max_tokens=1))
    return llm, listener.seen


def shared_race(model: str) -> dict[str, Any]:
    """Log-probabilities of target and draft over the tokens that race, at each prompt."""
    llm, target_rows = _next_token_logits(model)
    _, draft_rows = _next_token_logits(DRAFT_MODEL)
    assert llm.tokenizer is not None
    cases = []
    for (name, text), (target, position), (draft, _) in zip(
        RACE_PROMPTS, target_rows, draft_rows, strict=True
    ):
        p, q = target.softmax(-1), draft.softmax(-1)
        ids = (p + q).topk(NUM_TOKENS).indices
        ids = ids[p[ids].argsort(descending=True)]
        cases.append(
            {
                "name": name,
                "text": text,
                "position": position,
                "ids": ids.tolist(),
                "tokens": [llm.tokenizer.decode([token]) for token in ids.tolist()],
                "target": _rounded(target[ids].log_softmax(-1)),
                "draft": _rounded(draft[ids].log_softmax(-1)),
            }
        )
    return {"target_model": Path(model).name, "draft_model": DRAFT_MODEL, "cases": cases}


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 5) for value in values.double().tolist()]


def speculation_payoff(model: str) -> dict[str, Any]:
    """Costs of verification and of a draft token by batch, in steps without drafts.

    A step of 1 + k tokens a request over one of one token, and a draft graph of k steps over k
    such steps, each as measured. Beyond the batches that the draft's graph was measured at, a
    draft token takes a decode step of its model. No model is run.
    """
    measurement = load_measurement(STEPS)
    steps_alone = dict(StepTime.from_rows(load_measurement(DRAFT_STEPS)["rows"]).decode)
    rows = {row["case"]: row for row in measurement["rows"]}
    verify: dict[int, list[tuple[int, float]]] = {}
    for case, row in rows.items():
        if case.startswith("verify-"):
            batch, k = row["parameters"]["batch"], row["parameters"]["k"]
            cost = round(row["value"] / row["baselines"]["one_token"], 4)
            verify.setdefault(batch, [(1, 1.0)]).append((1 + k, cost))
    costs = []
    for batch, points in sorted(verify.items()):
        step = rows[f"verify-k{DRAFTED}-batch{batch}"]["baselines"]["one_token"]
        drafted = rows.get(f"draft-k{DRAFTED}-batch{batch}")
        token = drafted["value"] / DRAFTED if drafted else steps_alone[batch] * 1e3
        costs.append({"batch": batch, "draft": round(token / step, 4), "verify": sorted(points)})
    last = max(batch for batch in verify if f"draft-k{DRAFTED}-batch{batch}" in rows)
    return {
        "device": measurement["hardware"]["gpu"],
        "target": "Qwen3-8B",
        "draft_model": "Qwen3-0.6B",
        "how": "Steps measured in quire, on random weights, as captured graphs at a context of "
        "256 tokens; between the measured k, straight lines. The host's work between steps is "
        f"left out. Above {last} requests a draft token is a decode step of the draft model alone.",
        "sources": [STEPS, DRAFT_STEPS],
        "costs": costs,
        "scenario": PAYOFF_SCENARIO,
    }
