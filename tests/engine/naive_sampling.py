"""The next token's distribution, spelled out in Python floats: the oracle of the sampler."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy import stats
from torch import Tensor

from quire import SamplingParams

ALPHA = 1e-3  # the seeds are fixed, so a test that passes once passes always


def penalised(
    logits: Sequence[float], params: SamplingParams, prompt: Sequence[int], output: Sequence[int]
) -> list[float]:
    """Logits after the repetition, frequency and presence penalties."""
    result = []
    for token, logit in enumerate(logits):
        if token in prompt or token in output:
            if logit > 0:
                logit /= params.repetition_penalty
            else:
                logit *= params.repetition_penalty
        times = sum(1 for other in output if other == token)
        logit -= times * params.frequency_penalty
        if times:
            logit -= params.presence_penalty
        result.append(logit)
    return result


def completes(word: Sequence[int], token: int, output: Sequence[int]) -> bool:
    """Whether a token would end a word in the output."""
    return list(word) == [*output, token][-len(word) :]


def shaped(
    logits: Sequence[float],
    params: SamplingParams,
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    eos: Sequence[int] = (),
) -> list[float]:
    """Logits after all that comes before the temperature, one token after the other."""
    values = []
    for token, logit in enumerate(logits):
        if params.allowed_token_ids is not None and token not in params.allowed_token_ids:
            logit = -math.inf
        if any(completes(word, token, output) for word in params.bad_words_ids):
            logit = -math.inf
        if len(output) < params.min_tokens and (token in eos or token in params.stop_token_ids):
            logit = -math.inf
        values.append(logit + params.logit_bias.get(token, 0.0))
    for function in params.logits_processors:
        values = function(list(output), torch.tensor(values)).tolist()
    return penalised(values, params, prompt, output)


def distribution(
    logits: Sequence[float],
    params: SamplingParams,
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    eos: Sequence[int] = (),
) -> list[float]:
    """Return the probability of each token; 0 for all where every token is forbidden."""
    values = shaped(logits, params, prompt, output, eos)
    if max(values) == -math.inf:
        return [0.0] * len(values)
    if params.temperature == 0:
        best = max(range(len(values)), key=lambda token: (values[token], -token))
        return [float(token == best) for token in range(len(values))]
    largest = max(values)
    weights = [math.exp((value - largest) / params.temperature) for value in values]

    # Tokens from the most probable down, equal ones by id.
    kept = sorted(range(len(values)), key=lambda token: (-weights[token], token))
    kept = [token for token in kept if weights[token] >= params.min_p * weights[kept[0]]]
    if params.top_k:
        kept = kept[: params.top_k]
    if params.top_p < 1:
        total = sum(weights[token] for token in kept)
        nucleus: list[int] = []
        for token in kept:
            nucleus.append(token)
            if sum(weights[t] for t in nucleus) >= params.top_p * total:
                break
        kept = nucleus
    total = sum(weights[token] for token in kept)
    return [weights[token] / total if token in kept else 0.0 for token in range(len(values))]


def halve_the_last(output: list[int], logits: Tensor) -> Tensor:
    """What was just said: half its logit."""
    if output:
        logits[output[-1]] *= 0.5
    return logits


def every_other(output: list[int], logits: Tensor) -> Tensor:
    """Forbid the even or the odd tokens, as the output's length says."""
    return logits.masked_fill(torch.arange(len(logits)) % 2 == len(output) % 2, -torch.inf)


def log_softmax(logits: Sequence[float]) -> list[float]:
    """Natural logarithm of each token's probability."""
    largest = max(logits)
    total = math.log(sum(math.exp(logit - largest) for logit in logits))
    return [logit - largest - total for logit in logits]


def assert_distributed(tokens: Sequence[int], probabilities: Sequence[float]) -> None:
    """Chi-square; tokens expected fewer than five times are counted together."""
    observed = [tokens.count(token) for token in range(len(probabilities))]
    expected = [p * len(tokens) for p in probabilities]
    impossible = [t for t, p in enumerate(probabilities) if p == 0 and observed[t]]
    assert not impossible, f"tokens {impossible} have probability 0 and were drawn"
    common = [t for t, e in enumerate(expected) if e >= 5]
    rare = [t for t, e in enumerate(expected) if 0 < e < 5]
    pairs = [(observed[t], expected[t]) for t in common]
    if rare:
        pairs.append((sum(observed[t] for t in rare), sum(expected[t] for t in rare)))
    if len(pairs) == 1:
        assert pairs[0][0] == len(tokens)
        return
    assert stats.chisquare(*zip(*pairs, strict=True)).pvalue > ALPHA, (observed, expected)
