"""TTFT, TPOT, throughput and price of a workload, as limits.

The workload is one static batch: `batch` requests arrive together, are prefilled in one
step and decoded in lockstep, which is what this chapter's engine does. Every time is a
roofline, so with `mfu = mbu = 1` and no overhead it is a lower bound on the latency and an
upper bound on the throughput of any engine that does this arithmetic; it is no promise.
To predict a real engine, pass the MFU, MBU and overhead that were measured on it.

Metrics carry their usual names [zhong2024distserve]: TTFT, time to first token, and TPOT,
time per output token after the first.
"""

from __future__ import annotations

from dataclasses import dataclass

from quire.analysis.cost import joules_per_token, usd_per_million_tokens
from quire.analysis.hardware import Hardware
from quire.analysis.memory import activation_bytes, kv_cache_bytes, logit_bytes, weight_bytes
from quire.analysis.roofline import binding_ceiling, roofline_time
from quire.analysis.work import Work, decode_work, prefill_work
from quire.models.config import ModelConfig


@dataclass(frozen=True)
class MemoryLedger:
    """What lies in device memory at the end of the workload, in bytes.

    `activations` is the workspace of a step of `max_num_batched_tokens` tokens, reserved
    once, as production engines do. Nothing is set aside for CUDA's context, the allocator's
    fragmentation or captured graphs.
    """

    weights: float
    kv_cache: float
    activations: float
    logits: float
    capacity: float
    max_batch: int  # sequences of this length that fit beside the weights; 0: not even one

    @property
    def total(self) -> float:
        """Bytes in use."""
        return self.weights + self.kv_cache + self.activations + self.logits

    @property
    def fits(self) -> bool:
        """Whether the workload fits in the device's memory."""
        return self.total <= self.capacity


@dataclass(frozen=True)
class Prediction:
    """Limits of one static batch on one device. Times in seconds, prices in dollars."""

    ttft_s: float
    tpot_s: float  # mean over the output tokens after the first
    request_latency_s: float
    output_tokens_per_s: float  # of the whole batch, prefill included in the time
    usd_per_million_output_tokens: float  # all of the machine's time, charged to the output
    joules_per_output_token: float  # at the board's power limit
    prefill: Work
    prefill_bound: str  # "compute" or "memory"
    decode: Work  # the last decode step
    decode_bound: str
    compute_dtype: str
    memory: MemoryLedger


def memory_ledger(
    config: ModelConfig,
    capacity: float,
    *,
    batch: int,
    context: int,
    weight_dtype: str,
    kv_dtype: str,
    compute_dtype: str,
    max_num_batched_tokens: int = 2048,
) -> MemoryLedger:
    """Add up the memory of `batch` sequences of `context` tokens on one device.

    The largest batch solves weights + activations + B·(cache + logits) ≤ capacity.
    """
    weights = weight_bytes(config, weight_dtype)
    activations = activation_bytes(config, max_num_batched_tokens, compute_dtype)
    cache_per_sequence = kv_cache_bytes(config, context, kv_dtype)
    logits_per_sequence = logit_bytes(config, 1)
    room = capacity - weights - activations
    return MemoryLedger(
        weights=weights,
        kv_cache=batch * cache_per_sequence,
        activations=activations,
        logits=batch * logits_per_sequence,
        capacity=capacity,
        max_batch=max(0, int(room // (cache_per_sequence + logits_per_sequence))),
    )


def predict(
    config: ModelConfig,
    hardware: Hardware,
    *,
    batch: int = 1,
    prompt_tokens: int = 512,
    output_tokens: int = 128,
    weight_dtype: str = "bf16",
    kv_dtype: str = "bf16",
    mfu: float = 1.0,
    mbu: float = 1.0,
    step_overhead_s: float = 0.0,
    max_num_batched_tokens: int = 2048,
) -> Prediction:
    """Predict the limits of decoding `batch` equal requests on one device.

    The prompt's step yields the first token. Step i (i = 1 … output_tokens - 1) feeds back
    token i, attends to prompt_tokens + i tokens and yields token i + 1. So

        TTFT = roofline(prefill) + overhead
        TPOT = mean over i of roofline(decode at context prompt_tokens + i) + overhead

    Args:
        config: sizes of the model.
        hardware: ceilings of the device; `hardware.measured()` for those we measured.
        batch: requests decoded together.
        prompt_tokens: tokens of each prompt.
        output_tokens: tokens generated for each request, at least 2.
        weight_dtype: how the weights are stored and read.
        kv_dtype: how the cache is stored and read.
        mfu: share of the arithmetic peak that the engine reaches, in (0, 1].
        mbu: share of the bandwidth that the engine reaches, in (0, 1].
        step_overhead_s: seconds a step spends on neither (launches, scheduling, sampling).
        max_num_batched_tokens: tokens of the largest step, for the activation workspace.

    Raises:
        ValueError: a count below its minimum, a share outside (0, 1], an unknown dtype.
    """
    for name, count, least in (
        ("batch", batch, 1),
        ("prompt_tokens", prompt_tokens, 1),
        ("output_tokens", output_tokens, 2),
        ("max_num_batched_tokens", max_num_batched_tokens, 1),
    ):
        if count < least:
            raise ValueError(f"{name}={count} is too small; it must be at least {least}")
    for name, share in (("mfu", mfu), ("mbu", mbu)):
        if not 0 < share <= 1:
            raise ValueError(f"{name}={share} is not a share; give a number in (0, 1]")
    if not step_overhead_s >= 0:
        raise ValueError(f"step_overhead_s={step_overhead_s} is negative; give seconds, 0 or more")

    compute_dtype = hardware.compute_dtype(weight_dtype)

    def seconds(work: Work) -> float:
        limit = roofline_time(
            work.flops, work.bytes_moved, hardware, compute_dtype, mfu=mfu, mbu=mbu
        )
        return limit + step_overhead_s

    prefill = prefill_work(config, batch, prompt_tokens, weight_dtype, kv_dtype)
    steps = [
        decode_work(config, batch, prompt_tokens + i, weight_dtype, kv_dtype)
        for i in range(1, output_tokens)
    ]
    ttft = seconds(prefill)
    decode_time = sum(seconds(step) for step in steps)
    latency = ttft + decode_time
    throughput = batch * output_tokens / latency
    return Prediction(
        ttft_s=ttft,
        tpot_s=decode_time / len(steps),
        request_latency_s=latency,
        output_tokens_per_s=throughput,
        usd_per_million_output_tokens=usd_per_million_tokens(hardware.usd_per_hour, throughput),
        joules_per_output_token=joules_per_token(hardware.tdp_watts, throughput),
        prefill=prefill,
        prefill_bound=binding_ceiling(prefill, hardware, compute_dtype),
        decode=steps[-1],
        decode_bound=binding_ceiling(steps[-1], hardware, compute_dtype),
        compute_dtype=compute_dtype,
        memory=memory_ledger(
            config,
            hardware.memory_bytes,
            batch=batch,
            context=prompt_tokens + output_tokens,
            weight_dtype=weight_dtype,
            kv_dtype=kv_dtype,
            compute_dtype=compute_dtype,
            max_num_batched_tokens=max_num_batched_tokens,
        ),
    )
