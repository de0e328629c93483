"""`SamplingTensors`: the sampling parameters of one step as tensors, one row a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from quire.sampling.params import LogitsProcessor, SamplingParams
from quire.sending import send

RowFunction = tuple[int, LogitsProcessor, list[int]]  # row, function, its request's output so far


@dataclass
class SamplingTensors:
    """What a `Sampler` needs beside the logits. R is the number of tokens the step chooses.

    A field that no row of the step uses is None or empty, so that a greedy step costs an argmax
    and nothing more.
    """

    temperature: Tensor  # float32 [R]; 0 marks a greedy row
    seeds: Tensor  # int64 [R]
    positions: Tensor  # int64 [R], position of the token being chosen
    all_greedy: bool
    top_k: Tensor | None = None  # int64 [R]
    top_p: Tensor | None = None  # float32 [R]
    min_p: Tensor | None = None  # float32 [R]
    penalties: Penalties | None = None
    num_logprobs: int | None = None  # the most that any row asks for
    bias: Tensor | None = None  # float32 [R, V], added to the logits (`quire.sampling.bias`)
    functions: Sequence[RowFunction] = ()  # of the rows' own, in the order of their application
    failures: dict[int, str] = field(default_factory=dict)  # by row: what its function did instead

    @classmethod
    def build(
        cls,
        params: Sequence[SamplingParams],
        seeds: Sequence[int],
        positions: Sequence[int],
        device: torch.device,
        penalties: Penalties | None = None,
    ) -> SamplingTensors:
        """Gather the parameters of a step's rows, in row order.

        What depends on tokens or vocabulary is given (penalties) or set afterwards (`bias`,
        `functions`).
        """

        def column(name: str, neutral: float, dtype: torch.dtype) -> Tensor | None:
            values = [getattr(p, name) for p in params]
            if all(value == neutral for value in values):
                return None
            return torch.tensor(values, dtype=dtype, device=device)

        asked = [p.logprobs for p in params if p.logprobs is not None]
        return cls(
            temperature=torch.tensor(
                [p.temperature for p in params], dtype=torch.float32, device=device
            ),
            seeds=torch.tensor(seeds, dtype=torch.int64, device=device),
            positions=torch.tensor(positions, dtype=torch.int64, device=device),
            all_greedy=all(p.greedy for p in params),
            top_k=column("top_k", 0, torch.int64),
            top_p=column("top_p", 1.0, torch.float32),
            min_p=column("min_p", 0.0, torch.float32),
            penalties=penalties,
            num_logprobs=max(asked, default=None),
        )


@dataclass
class Penalties:
    """Strengths and token counts of the rows of a step; V is the vocabulary."""

    repetition: Tensor  # float32 [R, 1]
    presence: Tensor  # float32 [R, 1]
    frequency: Tensor  # float32 [R, 1]
    prompt_counts: Tensor  # int32 [R, V]
    output_counts: Tensor  # int32 [R, V]

    @classmethod
    def build(
        cls,
        params: Sequence[SamplingParams],
        token_ids: Tensor,
        num_prompt_tokens: Tensor,
        num_tokens: Tensor,
        vocab_size: int,
    ) -> Penalties:
        """Count the tokens of each row without asking the device for anything.

        Args:
            token_ids: int64 [R, L], prompt and output of each row, then anything.
            num_prompt_tokens, num_tokens: [R], where the prompt ends and where the row ends.
        """
        device = token_ids.device
        position = torch.arange(token_ids.shape[1], device=device)

        def column(name: str) -> Tensor:
            values = [[getattr(p, name)] for p in params]
            return send(torch.tensor(values, dtype=torch.float32), device)

        def count(begin: Tensor | int, end: Tensor) -> Tensor:
            # Tokens outside [begin, end) are counted in a column behind the vocabulary.
            counted = (position >= begin) & (position < end[:, None])
            ids = torch.where(counted, token_ids, vocab_size)
            counts = torch.zeros((len(ids), vocab_size + 1), dtype=torch.int32, device=device)
            ones = torch.ones_like(ids, dtype=torch.int32)
            return counts.scatter_add_(1, ids, ones)[:, :vocab_size]

        return cls(
            repetition=column("repetition_penalty"),
            presence=column("presence_penalty"),
            frequency=column("frequency_penalty"),
            prompt_counts=count(0, num_prompt_tokens),
            output_counts=count(num_prompt_tokens[:, None], num_tokens),
        )
