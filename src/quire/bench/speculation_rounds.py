"""What the halves of `quire bench speculation-acceptance` share: engines, texts, counted rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quire.bench.cache_compression import RESAMPLES
from quire.llm import LLM
from quire.messages import ScheduledEntry
from quire.outputs import RequestOutput
from quire.sampling.params import SamplingParams
from quire.sampling.sampler import TorchSampler
from quire.sampling.tensors import SamplingTensors
from quire.trace import Trace


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    texts: int = 48
    prompt_tokens: int = 120  # in blocks of 16 the last has room for the drafts of the first round
    tokens: int = 96  # generated
    timed_texts: int = 8  # of each kind
    repeats: int = 4  # of each timed text, after one that is not counted


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
        for step, entry in rounds_of(trace, outputs):
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


def rounds_of(trace: Trace, outputs: Sequence[RequestOutput]) -> list[tuple[Any, ScheduledEntry]]:
    """Return the entries behind the prompts, each with its step."""
    begun = {f"{output.request_id}-0": len(output.prompt_token_ids) for output in outputs}
    return [
        (step, entry)
        for step in trace.steps
        for entry in step.scheduled.entries
        if entry.samples and entry.start >= begun[entry.request_id]
    ]


def cpu_engine(model: str, max_num_seqs: int = 16, **options: Any) -> LLM:
    """Return an engine in float32 that shares no prefixes."""
    return LLM(
        model,
        device="cpu",
        dtype="float32",
        max_num_seqs=max_num_seqs,
        max_model_len=1024,
        enable_prefix_caching=False,
        **options,
    )


def drafting_config(who: str, k: int, draft: str) -> dict[str, Any]:
    """Return a `speculative_config` of k drafts: of the model `draft`, or of n-grams."""
    named = {"method": "draft_model", "model": draft} if who == "draft" else {"method": "ngram"}
    return {**named, "num_speculative_tokens": k}


def params_of(
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


def tokens_of(outputs: Sequence[RequestOutput]) -> Tensor:
    """Return the generated tokens, int64 [num_texts, num_tokens]."""
    return torch.tensor([output.outputs[0].token_ids for output in outputs])
