"""`quire bench speculation-acceptance`: how often the draft of a small model stands, on a CPU.

Three kinds of rows, all of a model and its draft on held-out code, in float32:

`agreement-<rule>-T<t>` is exact and asks at every position of the model's own text how often a
rule keeps one draft there, from the two distributions. `round-<who>-k<k>-T<t>-<verification>` is
counted in the engine: tokens a round, and how often draft i stood where those before it had.
Rounds begin where drafts failed, so their first draft is not that of an average position; what
the exact rule says at the beginnings of rounds stands beside it. The rest are times: steps that
verify, drafts, and whole texts with their tokens a second.

Texts go on behind an end of text, as the training's did, so that all are as long. The *edit* of
the last rows is dictated, since a model this small follows no instruction: the prompt is a
held-out function with a comment that asks to rename its first argument, and the engine's sampler
computes its own choice and then says the renamed function in its place. So its text is that of a
model which does as it is asked; steps, drafts and their verification are real.
"""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor

from quire.analysis import speculation
from quire.bench.cache_compression import RESAMPLES
from quire.bench.measurement import Row
from quire.bench.perplexity import SEPARATOR, heldout_texts
from quire.bench.speculation_steps import Constant
from quire.components import Components
from quire.errors import QuireError
from quire.llm import LLM
from quire.messages import ScheduledEntry, SchedulerOutput
from quire.outputs import RequestOutput
from quire.sampling.params import SamplingParams
from quire.sampling.sampler import TorchSampler
from quire.sampling.tensors import SamplingTensors
from quire.speculation.drafting import Drafting
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
COMPARED_KS = (4, 8)  # with verifications other than coupled
TIMED = (("draft", 2), ("draft", 3), ("draft", 4), ("ngram", 4), ("ngram", 8))
FILES = 90  # held-out files that edits are taken from
NEW_NAME = "item"  # of the argument that an edit renames
FUNCTION = re.compile(r"^( *)def \w+\((?:(?:self|cls), )?(?!self|cls)(\w+)[^\n]*:\n", re.MULTILINE)


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    texts: int = 48
    prompt_tokens: int = 120  # in blocks of 16 the last has room for the drafts of the first round
    tokens: int = 96  # generated
    timed_texts: int = 8  # of each kind
    repeats: int = 4  # of each timed text, after one that is not counted


@dataclass(frozen=True)
class Texts:
    """Prompts, and what follows each: int64 [num_texts, num_tokens]; None: what the model says."""

    prompts: list[list[int]]
    told: Tensor | None = None


def run(
    model: str,
    device: torch.device,
    draft: str = DRAFT,
    sizes: Sizes = Sizes(),
    verifications: Sequence[str] = VERIFICATIONS,
) -> list[Row]:
    """Measure agreement, rounds and times of `model` with the drafts of `draft` and of n-grams.

    Raises:
        QuireError: not on a CPU; no held-out files, as in an installed wheel.
    """
    if device.type != "cpu":
        raise QuireError("bench speculation-acceptance times a CPU's steps: use --device cpu")
    prompts = heldout_texts(_engine(model), sizes.texts, sizes.prompt_tokens)
    rows: list[Row] = []
    exact: dict[float, Exact] = {}
    for temperature in TEMPERATURES:
        exact[temperature] = Exact.of(model, draft, prompts, sizes.tokens, temperature)
        rows += exact[temperature].rows(temperature)
    for k, verification in product(DRAFT_KS, verifications):
        config = _config("draft", k, draft) | {"verification": verification}
        if verification == "coupled":
            rows += _round_rows(model, config, f"draft-k{k}", prompts, exact)
        elif k in COMPARED_KS:  # greedy, all verifications keep the same drafts
            drawn = {t: known for t, known in exact.items() if t > 0}
            rows += _round_rows(model, config, f"draft-k{k}", prompts, drawn)
    for k in NGRAM_KS:  # coupled: any verification keeps a draft that was not drawn as often
        ends = {t: exact[t] for t in (min(exact), max(exact))}
        rows += _round_rows(model, _config("ngram", k, draft), f"ngram-k{k}", prompts, ends)
    costs, timed = cost_rows(model, draft, prompts[: (1 + sizes.timed_texts) // 2], sizes)
    rows += timed
    kinds = {
        "completion": Texts(prompts[: sizes.timed_texts]),
        "edit": edits(_engine(model), sizes.timed_texts, sizes.tokens),
    }
    for kind, texts in kinds.items():
        rows += _speed_rows(model, draft, kind, texts, sizes, costs)
    return rows


def interval(numerators: Tensor, denominators: Tensor, seed: int = 0) -> tuple[float, float]:
    """Return where Σ numerators / Σ denominators lies with 95 % confidence, over such texts.

    Both are [num_texts]. A bootstrap draws whole texts, since what happens within one is not
    independent; a draw without any denominator has no ratio and is left out.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(numerators), (RESAMPLES, len(numerators)), generator=generator)
    ratios = numerators.double()[drawn].sum(1) / denominators.double()[drawn].sum(1)
    quantiles = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = ratios[ratios.isfinite()].quantile(quantiles).tolist()
    return low, high


class Observer(TorchSampler):
    """Chooses like its parent, keeps the logits, and says what it is told to, if anything.

    A request's text is found by its seed, which is the text's number.
    """

    def __init__(
        self, starts: Sequence[int], told: Tensor | None = None, logits: Tensor | None = None
    ) -> None:
        """Observe texts whose outputs begin at `starts`.

        Args:
            told: int64 [num_texts, num_tokens], to be said.
            logits: float32 [num_texts, num_tokens, V], to be filled.
        """
        self._starts, self._told, self._logits = torch.tensor(starts), told, logits

    def choose(self, logits: Tensor, sampling: SamplingTensors) -> Tensor:
        """Return the next token of each row, int64 [N]."""
        place = sampling.positions - self._starts[sampling.seeds]
        if self._logits is not None:
            self._logits[sampling.seeds, place] = logits
        chosen = super().choose(logits, sampling)  # also where it is not said: it takes its time
        return chosen if self._told is None else self._told[sampling.seeds, place]


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
        params = _params(len(prompts), num_tokens, temperature)
        starts = [len(prompt) for prompt in prompts]
        tokens, probabilities = None, []
        for name in (model, draft):
            size = _engine(name).model_config.vocab_size
            logits = torch.empty(len(prompts), num_tokens, size)
            observer = partial(Observer, starts, tokens, logits)
            llm = _engine(name, components=Components(sampler=observer))
            tokens = _tokens(llm.generate(prompts, params, use_tqdm=False))
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


@dataclass(frozen=True)
class Rounds:
    """What the steps behind a text's prompt gave; those too near its end for k drafts are left out.

    `stood[t, j]` counts the rounds of text t, of k drafts each, of which j drafts stood;
    `without[t]` its steps that had no drafts; `begins[t, i]` whether a round began at token i.
    """

    stood: Tensor  # int64 [num_texts, 1 + k]
    without: Tensor  # int64 [num_texts]
    begins: Tensor  # bool [num_texts, num_tokens]

    @classmethod
    def of(cls, trace: Trace, outputs: Sequence[RequestOutput], k: int) -> Rounds:
        """Count a trace's rounds."""
        text_of = {f"{output.request_id}-0": text for text, output in enumerate(outputs)}
        num_tokens = len(outputs[0].outputs[0].token_ids)
        stood = torch.zeros(len(outputs), 1 + k, dtype=torch.int64)
        without = torch.zeros(len(outputs), dtype=torch.int64)
        begins = torch.zeros(len(outputs), num_tokens, dtype=torch.bool)
        for step, entry in _rounds(trace, outputs):
            text = text_of[entry.request_id]
            place = entry.chosen_positions[0] - len(outputs[text].prompt_token_ids)
            if place + 1 + k > num_tokens:  # no room for all drafts, whatever was guessed
                continue
            if entry.num_draft_tokens == k:
                stood[text, len(step.result.token_ids[entry.request_id]) - 1] += 1
                begins[text, place] = True
            elif entry.num_draft_tokens == 0:
                without[text] += 1
        return cls(stood, without, begins)

    @property
    def tokens(self) -> Tensor:
        """Tokens that each text's steps gave, int64 [num_texts]."""
        return self.stood @ torch.arange(1, self.stood.shape[1] + 1) + self.without

    @property
    def steps(self) -> Tensor:
        """Steps of each text, with drafts and without, int64 [num_texts]."""
        return self.stood.sum(1) + self.without

    @property
    def tokens_a_step(self) -> float:
        """Tokens of all texts over their steps."""
        return int(self.tokens.sum()) / int(self.steps.sum())

    @property
    def share_drafted(self) -> float:
        """How many of the steps had drafts, of 1."""
        return int(self.stood.sum()) / int(self.steps.sum())

    def conditional(self) -> dict[str, float]:
        """Return how often draft i stood where those before it had, as `acceptance_<i>`.

        Beside each is its interval, and in how many rounds the drafts before it had stood
        (`judged_<i>`). A draft that was never judged has no numbers.
        """
        found: dict[str, float] = {}
        for i in range(1, self.stood.shape[1]):
            kept, judged = self.stood[:, i:].sum(1), self.stood[:, i - 1 :].sum(1)
            if judged.sum() == 0:
                break
            low, high = interval(kept, judged)
            found[f"acceptance_{i}"] = int(kept.sum()) / int(judged.sum())
            found |= {f"acceptance_{i}_low": low, f"acceptance_{i}_high": high}
            found[f"judged_{i}"] = float(judged.sum())
        return found


def _rounds(trace: Trace, outputs: Sequence[RequestOutput]) -> list[tuple[Any, ScheduledEntry]]:
    """Return the entries behind the prompts, each with its step."""
    begun = {f"{output.request_id}-0": len(output.prompt_token_ids) for output in outputs}
    return [
        (step, entry)
        for step in trace.steps
        for entry in step.scheduled.entries
        if entry.samples and entry.start >= begun[entry.request_id]
    ]


def _round_rows(
    model: str,
    config: dict[str, Any],
    name: str,
    prompts: list[list[int]],
    exact: Mapping[float, Exact],
) -> list[Row]:
    """Generate at each temperature of `exact` and count what stood."""
    llm = _engine(model, speculative_config=config)
    k, verification = config["num_speculative_tokens"], config.get("verification", "coupled")
    rows = []
    for temperature, known in exact.items():
        trace = llm.engine.trace = Trace()
        params = _params(len(prompts), known.tokens.shape[1], temperature)
        outputs = llm.generate(prompts, params, use_tqdm=False)
        rounds = Rounds.of(trace, outputs, k)
        low, high = interval(rounds.tokens, rounds.steps)
        unchanged = (_tokens(outputs) == known.tokens).all(1)
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
        config = _config("ngram", k, draft)
        config |= {"verification": "synthetic", "acceptance_rate": 0.0}
        components = Components(proposer=Constant)
        llm = _engine(model, 1, speculative_config=config, components=components)
        times: dict[bool, list[float]] = {False: [], True: []}
        for turn, speculate in product(range(1 + sizes.repeats), times):
            trace = llm.engine.trace = Trace()
            params = _params(len(prompts), sizes.tokens, 0.0, speculate=speculate)
            outputs = llm.generate(prompts, params, use_tqdm=False)
            if turn > 0:
                steps = [
                    s for s, e in _rounds(trace, outputs) if e.num_draft_tokens == k * speculate
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
            drafting = _drafting_ms(model, _config("draft", k, draft), prompts, sizes)
            costs.draft[k] = drafting / k / one
            case, parameters = f"draft-k{k}", {"batch": 1, "k": k, **_load()}
            baselines = {"one_token": one}
            rows.append(Row(case, "ms_per_step", drafting, "ms", baselines, dict(parameters)))
    return costs, rows


def _drafting_ms(
    model: str, config: dict[str, Any], prompts: list[list[int]], sizes: Sizes
) -> float:
    llm = _engine(model, 1, speculative_config=config)
    runner = llm.engine.executor.worker.runner  # type: ignore[attr-defined]
    runner.drafting = timed = TimedDrafting(runner.drafting)
    for turn in range(1 + sizes.repeats):
        if turn == 1:  # the first is not counted
            timed.seconds.clear()
        llm.generate(prompts, _params(len(prompts), sizes.tokens, 0.0), use_tqdm=False)
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


def _speed_rows(
    model: str, draft: str, kind: str, texts: Texts, sizes: Sizes, costs: Costs
) -> list[Row]:
    """Time whole texts at batch 1, greedy, every engine's turn after another's.

    Of a text's runs the best counts. Its time is that from its first token to its last.
    """
    starts = [len(prompt) for prompt in texts.prompts]
    params = _params(len(starts), sizes.tokens, 0.0)
    parts = Components()
    if texts.told is not None:
        parts = Components(sampler=lambda: Observer(starts, texts.told))
    configs: dict[tuple[str, int], dict[str, Any] | None] = {("plain", 0): None}
    configs |= {(who, k): _config(who, k, draft) for who, k in TIMED}
    llms = {
        name: _engine(model, 1, speculative_config=config, components=parts)
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
            rounds[name], said[name] = Rounds.of(trace, outputs, name[1]), _tokens(outputs)
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


def _engine(model: str, max_num_seqs: int = 16, **options: Any) -> LLM:
    return LLM(
        model,
        device="cpu",
        dtype="float32",
        max_num_seqs=max_num_seqs,
        max_model_len=1024,
        enable_prefix_caching=False,
        **options,
    )


def _config(who: str, k: int, draft: str) -> dict[str, Any]:
    named = {"method": "draft_model", "model": draft} if who == "draft" else {"method": "ngram"}
    return {**named, "num_speculative_tokens": k}


def _params(
    count: int, num_tokens: int, temperature: float, *, speculate: bool = True
) -> list[SamplingParams]:
    """Return parameters for each of `count` texts, with the text's number as its seed."""
    return [
        SamplingParams(
            max_tokens=num_tokens,
            temperature=temperature,
            seed=text,
            ignore_eos=True,
            speculate=speculate,
        )
        for text in range(count)
    ]


def _tokens(outputs: Sequence[RequestOutput]) -> Tensor:
    """Return the generated tokens, int64 [num_texts, num_tokens]."""
    return torch.tensor([output.outputs[0].token_ids for output in outputs])


def _probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Return what a draw at `temperature` has, from float32 [N, V]; 0 puts all on the largest."""
    if temperature == 0:
        return torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)
    return torch.softmax(logits.double() / temperature, dim=1)
