"""What a swapped sampler returned: faults are named by its class before they do harm elsewhere.

Types and shapes are known when the step is queued. Values on a GPU are not, as looking at them
would make the host wait: `check_values` is for where they are read anyway, and until then an
id that a sampler made up is clamped to the vocabulary (`InputBatch.keep`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from quire.errors import QuireError
from quire.kernels.sampling import NO_TOKEN
from quire.sampling.sampler import SamplerOutput, TokenLogprobs
from quire.sampling.tensors import SamplingTensors


def check_sampled(
    sampled: object, num_requests: int, tensors: SamplingTensors, vocab_size: int, name: str
) -> None:
    """Check types and shapes of what the sampler called `name` returned for so many requests.

    Args:
        tensors: what the sampler was given, for N rows of logits.

    Raises:
        QuireError: it is no `SamplerOutput`; a tensor has a wrong type, shape or device.
    """
    if not isinstance(sampled, SamplerOutput):
        raise QuireError(
            f"{name} returned {_kind(sampled)}: a sampler returns SamplerOutput(tokens), with "
            f"tokens int64 [{num_requests}, 1]"
        )
    _check_tokens(sampled, num_requests, tensors, name)
    if tensors.num_logprobs is not None:
        most = min(tensors.num_logprobs, vocab_size)
        _check_logprobs(sampled.logprobs, len(tensors.seeds), tensors.num_logprobs, most, name)


def check_values(sampled: SamplerOutput, vocab_size: int, name: str) -> None:
    """Check the numbers in `SamplerOutput.tokens` and `num_accepted`; waits for the device.

    Raises:
        QuireError: more tokens are accepted of a row than it has, or none; an accepted one is
            neither in the vocabulary nor `NO_TOKEN`.
    """
    columns = sampled.tokens.shape[1]
    counts = [1] * len(sampled.tokens)
    if sampled.num_accepted is not None:
        counts = sampled.num_accepted.tolist()
    for row, count in enumerate(counts):
        if not 1 <= count <= columns:
            raise QuireError(
                f"{name} returned num_accepted={count} for row {row}, which has "
                f"{columns} tokens: must lie in [1, {columns}]"
            )
    # As Python's numbers, which are read anyway: a step of a few rows has few of them.
    for row, (tokens, count) in enumerate(zip(sampled.tokens.tolist(), counts, strict=True)):
        for token in tokens[:count]:
            if token != NO_TOKEN and not 0 <= token < vocab_size:
                raise QuireError(
                    f"{name} returned token id {token} for row {row}: must lie in "
                    f"[0, {vocab_size}), the vocabulary, or be NO_TOKEN ({NO_TOKEN}) where there "
                    "is none to choose"
                )


def _check_tokens(
    sampled: SamplerOutput, num_requests: int, tensors: SamplingTensors, name: str
) -> None:
    tokens, counts = sampled.tokens, sampled.num_accepted
    where = tensors.seeds.device
    if not isinstance(tokens, Tensor) or tokens.dtype != torch.int64 or tokens.device != where:
        raise QuireError(
            f"{name} returned tokens as {_kind(tokens)}: must be a tensor of int64 on {where}"
        )
    shape, most = list(tokens.shape), 1 + len(tensors.seeds) - num_requests
    if len(shape) != 2 or shape[0] != num_requests or not 1 <= shape[1] <= most:
        raise QuireError(
            f"{name} returned tokens of shape {shape}: must be [{num_requests}, 1], one row a "
            "request, or as many columns as tokens can be accepted of one"
        )
    if shape[1] > 1 and counts is None:
        raise QuireError(
            f"{name} returned tokens of shape {shape} without num_accepted: say how many of each "
            "row's tokens count"
        )
    if counts is not None and not _fits(counts, False, [num_requests]):
        raise QuireError(
            f"{name} returned num_accepted as {_kind(counts)}: must be a tensor of "
            f"integers, [{num_requests}], or None for one token a row"
        )


def _check_logprobs(logprobs: object, num_rows: int, asked: int, num_top: int, name: str) -> None:
    """Check log-probabilities of so many rows of logits and so many most probable tokens."""
    if logprobs is None:
        raise QuireError(
            f"logprobs={asked} was asked for, but {name} returned none: set "
            "SamplerOutput.logprobs (quire.sampling.sampler.gather_logprobs computes them)"
        )
    if not isinstance(logprobs, TokenLogprobs):
        raise QuireError(f"{name} returned logprobs as {_kind(logprobs)}: must be TokenLogprobs")
    columns = logprobs.top_ids.shape[-1:] if isinstance(logprobs.top_ids, Tensor) else ()
    width = max(num_top, *columns)  # more than were asked for do no harm
    for part, is_float, shape in [
        ("chosen", True, [num_rows]),
        ("rank", False, [num_rows]),
        ("top_ids", False, [num_rows, width]),
        ("top_values", True, [num_rows, width]),
    ]:
        value = getattr(logprobs, part)
        if not _fits(value, is_float, shape):
            raise QuireError(
                f"{name} returned logprobs.{part} as {_kind(value)}: must be a tensor of "
                f"{'floats' if is_float else 'integers'}, {shape}, for {num_rows} rows of logits "
                f"and logprobs={asked}"
            )


def _fits(value: object, is_float: bool, shape: list[int]) -> bool:
    """Whether this is a tensor of floats, or else of integers, of this shape."""
    if not isinstance(value, Tensor) or list(value.shape) != shape:
        return False
    return value.is_floating_point() if is_float else value.dtype in (torch.int64, torch.int32)


def _kind(value: object) -> str:
    """Say what something is: a tensor's type, shape and device, or a class."""
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"a tensor of {dtype}, {list(value.shape)}, on {value.device}"
    return "None" if value is None else f"a {type(value).__name__}"
