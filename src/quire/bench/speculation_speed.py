"""The times of `quire bench speculation-acceptance`: steps that verify, drafts, and whole texts.

The *edit* of the last rows is dictated, since a model this small follows no instruction: the
prompt is a held-out function with a comment that asks to rename its first argument, and the
engine's sampler computes its own choice and then says the renamed function in its place. So its
text is that of a model which does as it is asked; steps, drafts and their verification are real.
"""

from __future__ import annotations

import os
import re
import statistics
import time
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor

from quire.bench.measurement import Row
from quire.bench.perplexity import SEPARATOR, heldout_texts
from quire.bench.speculation_rounds import (
    Observer,
    Rounds,
    Sizes,
    cpu_engine,
    drafting_config,
    interval,
    params_of,
    rounds_of,
    tokens_of,
)
from quire.bench.speculation_steps import Constant
from quire.components import Components
from quire.errors import QuireError
from quire.llm import LLM
from quire.messages import SchedulerOutput
from quire.speculation.drafting import Drafting
from quire.trace import Trace

TIMED = (("draft", 2), ("draft", 3), ("draft", 4), ("ngram", 4), ("ngram", 8))
FILES = 90  # held-out files that edits are taken from
NEW_NAME = "item"  # of the argument that an edit renames
FUNCTION = re.compile(r"^( *)def \w+\((?:(?:self|cls), )?(?!self|cls)(\w+)[^\n]*:\n", re.MULTILINE)


@dataclass(frozen=True)
class Texts:
    """Prompts, and what follows each: int64 [num_texts, num_tokens]; None: what the model says."""

    prompts: list[list[int]]
    told: Tensor | None = None


class TimedDrafting:
    """A `Drafting` that notes how long the draft model's part of each round takes."""

    def __init__(self, inner: Drafting) -> None:
        """Time `inner`; all but `queue` is its own."""
        self._inner = inner
        self.seconds: list[float] = []

    def __getattr__(self, name: str) -> Any:
        """Return what `inner` has."""
        return getattr(self._inner, name)

    def queue(self, output: SchedulerOutput) -> None:
        """Pass it on, timed where it follows a round; on a CPU it is done when it returns."""
        begin = time.perf_counter()
        self._inner.queue(output)
        if output.entries and all(entry.num_draft_tokens for entry in output.entries):
            self.seconds.append(time.perf_counter() - begin)


@dataclass(frozen=True)
class Costs:
    """At batch 1, in steps of one token: v by k, of a step over 1 + k tokens; c, a draft token."""

    verify: dict[int, float]
    draft: dict[int, float]

    def formula(self, who: str, k: int, rounds: Rounds) -> float:
        """Return E / (v + k c), with v = 1 and no drafts where a step had none."""
        share, drafting = rounds.share_drafted, k * self.draft[k] if who == "draft" else 0.0
        verifying = 1 + share * (self.verify[k] - 1)
        return rounds.tokens_a_step / (verifying + share * drafting)


def cost_rows(
    model: str, draft: str, prompts: list[list[int]], sizes: Sizes
) -> tuple[Costs, list[Row]]:
    """Time steps of 1 + k tokens, in turns with steps of one, and k drafts of the draft model.

    The drafts of the first are wrong and cost nothing, so that every step verifies k. Medians of
    all steps behind the prompts, of texts that run one after another.
    """
    costs, rows = Costs({}, {}), []
    for k in sorted({k for _, k in TIMED}):
        config = drafting_config("ngram", k, draft)
        config |= {"verification": "synthetic", "acceptance_rate": 0.0}
        components = Components(proposer=Constant)
        llm = cpu_engine(model, 1, speculative_config=config, components=components)
        times: dict[bool, list[float]] = {False: [], True: []}
        for turn, speculate in product(range(1 + sizes.repeats), times):
            trace = llm.engine.trace = Trace()
            params = params_of(len(prompts), sizes.tokens, 0.0, speculate=speculate)
            outputs = llm.generate(prompts, params, use_tqdm=False)
            if turn > 0:
                steps = [
                    s for s, e in rounds_of(trace, outputs) if e.num_draft_tokens == k * speculate
                ]
                times[speculate] += [
                    (b.end - a.end) * 1e3
                    for a, b in pairwise(steps)
                    if a.scheduled.step + 1 == b.scheduled.step
                ]
        one, several = statistics.median(times[False]), statistics.median(times[True])
        costs.verify[k] = several / one
        case, parameters = f"verify-k{k}", {"batch": 1, "k": k, **_load()}
        rows.append(Row(case, "ms_per_step", several, "ms", {"one_token": one}, dict(parameters)))
        if ("draft", k) in TIMED:
            drafting = _drafting_ms(model, drafting_config("draft", k, draft), prompts, sizes)
            costs.draft[k] = drafting / k / one
            case, parameters = f"draft-k{k}", {"batch": 1, "k": k, **_load()}
            baselines = {"one_token": one}
            rows.append(Row(case, "ms_per_step", drafting, "ms", baselines, dict(parameters)))
    return costs, rows


def _drafting_ms(
    model: str, config: dict[str, Any], prompts: list[list[int]], sizes: Sizes
) -> float:
    llm = cpu_engine(model, 1, speculative_config=config)
    runner = llm.engine.executor.worker.runner  # type: ignore[attr-defined]
    runner.drafting = timed = TimedDrafting(runner.drafting)
    for turn in range(1 + sizes.repeats):
        if turn == 1:  # the first is not counted
            timed.seconds.clear()
        llm.generate(prompts, params_of(len(prompts), sizes.tokens, 0.0), use_tqdm=False)
    return statistics.median(timed.seconds) * 1e3


def edits(llm: LLM, count: int, num_tokens: int) -> Texts:
    """Return `count` held-out functions with a request to rename, and their renamed beginnings.

    From each file the first function that has a first argument of at least three places, no name
    that is the new one, and `num_tokens` to twice as many tokens.

    Raises:
        QuireError: too few files have one.
    """
    assert llm.tokenizer is not None
    prompts, told = [], []
    for tokens in heldout_texts(llm, FILES, 1024):
        for function, argument in _functions(llm.tokenizer.decode(tokens[1:])):
            renamed, places = re.subn(rf"\b{argument}\b", NEW_NAME, function)
            answer = llm.tokenizer.encode(f"\n{renamed}")
            if places < 3 or re.search(rf"\b{NEW_NAME}\b", function):
                continue
            if num_tokens <= len(answer) <= 2 * num_tokens:
                asked = f"# Rename {argument} to {NEW_NAME}.\n{function}\n\n# Renamed:"
                prompts.append([SEPARATOR, *llm.tokenizer.encode(asked)])
                told.append(answer[:num_tokens])
                break
    if len(prompts) < count:
        raise QuireError(f"{len(prompts)} held-out functions of that length, {count} asked")
    return Texts(prompts[:count], torch.tensor(told[:count]))


def _functions(source: str) -> list[tuple[str, str]]:
    """Return the functions that end within `source`, each with its first argument."""
    found = []
    for head in FUNCTION.finditer(source):
        outside = re.compile(rf"^ {{0,{len(head[1])}}}[^\s#]", re.MULTILINE)
        end = outside.search(source, head.end())
        if end is not None:
            found.append((source[head.start() : end.start()].rstrip(), head[2]))
    return found


def speed_rows(
    model: str, draft: str, kind: str, texts: Texts, sizes: Sizes, costs: Costs
) -> list[Row]:
    """Time whole texts at batch 1, greedy, every engine's turn after another's.

    Of a text's runs the best counts. Its time is that from its first token to its last.
    """
    starts = [len(prompt) for prompt in texts.prompts]
    params = params_of(len(starts), sizes.tokens, 0.0)
    parts = Components()
    if texts.told is not None:
        parts = Components(sampler=lambda: Observer(starts, texts.told))
    configs: dict[tuple[str, int], dict[str, Any] | None] = {("plain", 0): None}
    configs |= {(who, k): drafting_config(who, k, draft) for who, k in TIMED}
    llms = {
        name: cpu_engine(model, 1, speculative_config=config, components=parts)
        for name, config in configs.items()
    }
    best = {name: torch.full((len(starts),), torch.inf, dtype=torch.float64) for name in llms}
    rounds: dict[tuple[str, int], Rounds] = {}
    said: dict[tuple[str, int], Tensor] = {}
    load = _load()
    for turn, (name, llm) in product(range(1 + sizes.repeats), llms.items()):
        trace = llm.engine.trace = Trace() if turn == 0 else None
        outputs = llm.generate(texts.prompts, params, use_tqdm=False)
        if trace is not None:  # not timed
            rounds[name], said[name] = Rounds.of(trace, outputs, name[1]), tokens_of(outputs)
            continue
        taken = [o.metrics.token_times[-1] - o.metrics.token_times[0] for o in outputs if o.metrics]
        best[name] = best[name].minimum(torch.tensor(taken, dtype=torch.float64))
    plain, num_tokens = ("plain", 0), len(starts) * (sizes.tokens - 1)
    load |= {"load_after": _load()["load"]}
    rows = []
    for name in TIMED:
        low, high = interval(best[plain], best[name])
        parameters = {
            "batch": 1,
            "k": name[1],
            "texts": len(starts),
            "prompt_tokens": statistics.mean(starts),
            "output_tokens": sizes.tokens,
            "speedup": float(best[plain].sum() / best[name].sum()),
            "speedup_low": low,
            "speedup_high": high,
            "formula": costs.formula(*name, rounds[name]),
            "tokens_per_round": rounds[name].tokens_a_step,
            "share_drafted": rounds[name].share_drafted,
            "verify_cost": costs.verify[name[1]],
            "texts_unchanged": int((said[name] == said[plain]).all(1).sum()),
            **load,
        }
        if name[0] == "draft":
            parameters["draft_cost"] = costs.draft[name[1]]
        rates = {key: num_tokens / float(seconds.sum()) for key, seconds in best.items()}
        case, baselines = f"speed-{kind}-{name[0]}-k{name[1]}", {"no_guesses": rates[plain]}
        rows.append(Row(case, "tokens_per_second", rates[name], "tokens/s", baselines, parameters))
    return rows


def _load() -> dict[str, float]:
    """Return how many processes ran or waited, over the last minute: on an idle machine ours."""
    return {"load": os.getloadavg()[0], "threads": torch.get_num_threads()}
