"""From logits to tokens: parameters, noise, processors, the sampler."""

from quire.sampling.params import SamplingParams
from quire.sampling.sampler import Sampler, SamplerOutput, TokenLogprobs, TorchSampler
from quire.sampling.tensors import Penalties, SamplingTensors

__all__ = [
    "Penalties",
    "Sampler",
    "SamplerOutput",
    "SamplingParams",
    "SamplingTensors",
    "TokenLogprobs",
    "TorchSampler",
]
