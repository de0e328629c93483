"""`quire bench speculation-acceptance`: how often the draft of a small model stands, on a CPU.

Three kinds of rows, all of a model and its draft on held-out code, in float32:

`agreement-<rule>-T<t>` is exact and asks at every position of the model's own text how often a
rule keeps one draft there, from the two distributions. `round-<who>-k<k>-T<t>-<verification>` is
counted in the engine: tokens a round, and how often draft i stood where those before it had.
Rounds begin where drafts failed, so their first draft is not that of an average position; what
the exact rule says at the beginnings of rounds stands beside it. The rest are times
(`quire.bench.speculation_speed`).

Texts go on behind an end of text, as the training's did, so that all are as long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from quire.analysis import speculation
from quire.bench.measurement import Row
from quire.bench.perplexity import heldout_texts
from quire.bench.speculation_rounds import (
    Observer,
    Rounds,
    Sizes,
    cpu_engine,
    drafting_config,
    interval,
    params_of,
    tokens_of,
)
from quire.bench.speculation_speed import Texts, cost_rows, edits, speed_rows
from quire.components import Components
from quire.errors import QuireError
from quire.trace import Trace

DRAFT = "quire-mini-draft"
TEMPERATURES = (0.0, 0.7, 1.0)
VERIFICATIONS = ("coupled", "rejection", "block")
RULES = {
    "rejection": speculation.rejection_acceptance,
    "coupled": speculation.coupled_agreement,
    "argmax": speculation.argmax_agreement,
    "independent": speculation.independent_agreement,
    "bound": speculation.agreement_bound,
}
JUDGED_BY = {"coupled": "coupled", "rejection": "rejection", "block": "rejection"}
DRAFT_KS, NGRAM_KS = (2, 3, 4, 8), (4, 8)
AS_RECORDED = Sizes()
COMPARED_KS = (4, 8)  # with verifications other than coupled


def run(
    model: str,
    device: torch.device,
    draft: str = DRAFT,
    sizes: Sizes = AS_RECORDED,
    verifications: Sequence[str] = VERIFICATIONS,
) -> list[Row]:
    """Measure agreement, rounds and times of `model` with the drafts of `draft` and of n-grams.

    Raises:
        QuireError: not on a CPU; no held-out files, as in an installed wheel.
    """
    if device.type != "cpu":
        raise QuireError("bench speculation-acceptance times a CPU's steps: use --device cpu")
    prompts = heldout_texts(cpu_engine(model), sizes.texts, sizes.prompt_tokens)
    rows: list[Row] = []
    exact: dict[float, Exact] = {}
    for temperature in TEMPERATURES:
        exact[temperature] = Exact.of(model, draft, prompts, sizes.tokens, temperature)
        rows += exact[temperature].rows(temperature)
    for k, verification in product(DRAFT_KS, verifications):
        config = drafting_config("draft", k, draft) | {"verification": verification}
        if verification == "coupled":
            rows += _round_rows(model, config, f"draft-k{k}", prompts, exact)
        elif k in COMPARED_KS:  # greedy, all verifications keep the same drafts
            drawn = {t: known for t, known in exact.items() if t > 0}
            rows += _round_rows(model, config, f"draft-k{k}", prompts, drawn)
    for k in NGRAM_KS:  # coupled: any verification keeps a draft that was not drawn as often
        ends = {t: exact[t] for t in (min(exact), max(exact))}
        rows += _round_rows(model, drafting_config("ngram", k, draft), f"ngram-k{k}", prompts, ends)
    costs, timed = cost_rows(model, draft, prompts[: (1 + sizes.timed_texts) // 2], sizes)
    rows += timed
    kinds = {
        "completion": Texts(prompts[: sizes.timed_texts]),
        "edit": edits(cpu_engine(model), sizes.timed_texts, sizes.tokens),
    }
    for kind, texts in kinds.items():
        rows += speed_rows(model, draft, kind, texts, sizes, costs)
    return rows


@dataclass(frozen=True)
class Exact:
    """A model's own texts, and how often each rule keeps a draft at each of their positions."""

    tokens: Tensor  # int64 [num_texts, num_tokens]
    kept: dict[str, Tensor]  # by rule: float64 [num_texts, num_tokens]

    @classmethod
    def of(
        cls, model: str, draft: str, prompts: list[list[int]], num_tokens: int, temperature: float
    ) -> Exact:
        """Let the model say its texts, then the draft model the same ones, and compare."""
        params = params_of(len(prompts), num_tokens, temperature)
        starts = [len(prompt) for prompt in prompts]
        tokens, probabilities = None, []
        for name in (model, draft):
            size = cpu_engine(name).model_config.vocab_size
            logits = torch.empty(len(prompts), num_tokens, size)
            observer = partial(Observer, starts, tokens, logits)
            llm = cpu_engine(name, components=Components(sampler=observer))
            tokens = tokens_of(llm.generate(prompts, params, use_tqdm=False))
            probabilities.append(_probabilities(logits.flatten(0, 1), temperature))
        assert tokens is not None
        p, q = probabilities
        kept = {
            rule: torch.tensor(
                [keeps(a.numpy(), b.numpy()) for a, b in zip(p, q, strict=True)],
                dtype=torch.float64,
            ).view(tokens.shape)
            for rule, keeps in RULES.items()
        }
        return cls(tokens, kept)

    def rows(self, temperature: float) -> list[Row]:
        """Return a row for each rule: its mean over all positions."""
        rows = []
        for rule, kept in self.kept.items():
            low, high = interval(kept.sum(1), torch.full((len(kept),), kept.shape[1]))
            parameters = {"temperature": temperature, "low": low, "high": high}
            parameters |= {"texts": len(kept), "positions": kept.numel()}
            case = f"agreement-{rule}-T{temperature:g}"
            rows.append(Row(case, "acceptance", float(kept.mean()), "1", {}, parameters))
        return rows


def _round_rows(
    model: str,
    config: dict[str, Any],
    name: str,
    prompts: list[list[int]],
    exact: Mapping[float, Exact],
) -> list[Row]:
    """Generate at each temperature of `exact` and count what stood."""
    llm = cpu_engine(model, speculative_config=config)
    k, verification = config["num_speculative_tokens"], config.get("verification", "coupled")
    rows = []
    for temperature, known in exact.items():
        trace = llm.engine.trace = Trace()
        params = params_of(len(prompts), known.tokens.shape[1], temperature)
        outputs = llm.generate(prompts, params, use_tqdm=False)
        rounds = Rounds.of(trace, outputs, k)
        low, high = interval(rounds.tokens, rounds.steps)
        unchanged = (tokens_of(outputs) == known.tokens).all(1)
        parameters = {
            "k": k,
            "temperature": temperature,
            "low": low,
            "high": high,
            "texts": len(prompts),
            "texts_unchanged": int(unchanged.sum()),
            "steps": int(rounds.steps.sum()),
            "share_drafted": rounds.share_drafted,
            **rounds.conditional(),
        }
        baselines = {}
        if config["method"] == "draft_model":
            kept = known.kept[JUDGED_BY[verification]]
            baselines["iid"] = speculation.expected_tokens(float(kept.mean()), k)
            parameters["agreement"] = float(kept.mean())
            # Other verifications draw other texts, whose agreement is not known.
            begins = rounds.begins & unchanged[:, None]
            if verification == "coupled" and begins.any():
                parameters["agreement_at_begins"] = float(kept[begins].mean())
        case = f"round-{name}-T{temperature:g}-{verification}"
        value = rounds.tokens_a_step
        rows.append(Row(case, "tokens_per_round", value, "tokens", baselines, parameters))
    return rows


def _probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Return what a draw at `temperature` has, from float32 [N, V]; 0 puts all on the largest."""
    if temperature == 0:
        return torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)
    return torch.softmax(logits.double() / temperature, dim=1)
