"""From logits to tokens: parameters, what shapes the logits, the sampler."""

from quire.sampling.params import LogitsProcessor, SamplingParams
from quire.sampling.sampler import Sampler, SamplerOutput, TokenLogprobs, TorchSampler
from quire.sampling.tensors import Penalties, SamplingTensors

__all__ = [
    "LogitsProcessor",
    "Penalties",
    "Sampler",
    "SamplerOutput",
    "SamplingParams",
    "SamplingTensors",
    "TokenLogprobs",
    "TorchSampler",
]
