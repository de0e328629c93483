"""Sampling as it is when every row asks for everything: what it takes of a device's memory.

Penalties, biases and log-probabilities each need some tensors as large as the logits: for 256
rows of 151,936 tokens a tensor is 156 MB in float32. A cache that left no room for them would be
found too large by the first full batch that uses them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quire.kernels.sampling import sample
from quire.sampling.bias import bias_of_rows
from quire.sampling.params import MAX_LOGPROBS, SamplingParams
from quire.sampling.processors import shape_logits
from quire.sampling.sampler import gather_logprobs
from quire.sampling.tensors import Penalties, SamplingTensors


def sample_with_everything(logits: Tensor, max_model_len: int) -> None:
    """Shape, choose and score as if each row used every option, after the longest output.

    Args:
        logits: float32 [R, V], of as many rows as a step chooses tokens for.
    """
    (num_rows, vocab_size), device = logits.shape, logits.device
    everything = SamplingParams(
        top_k=5, top_p=0.5, min_p=0.1, repetition_penalty=1.1, logprobs=MAX_LOGPROBS
    )
    params = [everything] * num_rows
    token_ids = torch.zeros((num_rows, max_model_len), dtype=torch.int64, device=device)
    ends = torch.full((num_rows,), max_model_len, device=device)
    penalties = Penalties.build(params, token_ids, ends - 1, ends, vocab_size)
    zeros = [0] * num_rows
    sampling = SamplingTensors.build(params, zeros, zeros, device, penalties)
    sampling.bias = bias_of_rows([None] * num_rows, [], vocab_size, device)
    tokens = sample(
        shape_logits(logits, sampling),
        sampling.temperature,
        sampling.top_k,
        sampling.top_p,
        sampling.min_p,
        sampling.seeds,
        sampling.positions,
    )
    gather_logprobs(logits, tokens, MAX_LOGPROBS)
