"""`quire bench power`: what the GPU draws while it decodes, and the energy of a token.

The energy is that of NVML's counter (millijoules since the driver was loaded, of the whole board)
before and after seconds of decoding; it needs the package nvidia-ml-py. The host's processor and
its memory are not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from quire.bench.measurement import Row
from quire.errors import QuireError
from quire.llm import LLM
from quire.models.config import ModelConfig
from quire.sampling.params import SamplingParams

BATCHES = (1, 8, 64, 256)
PROMPT_TOKENS = 16  # the prompts' share of the time stays under a hundredth
OUTPUT_TOKENS = 512  # so a decode step meets 272 tokens of context on average
SECONDS = 6.0  # the counter moves every 0.1 s or so


def run(model: str | ModelConfig, device: torch.device) -> list[Row]:
    """Measure the idle board, then decoding at several batch sizes.

    Raises:
        QuireError: not a GPU, or its energy cannot be read.
    """
    if device.type != "cuda":
        raise QuireError("bench power reads a GPU's energy counter; use --device cuda")
    joules = energy_counter(device)
    llm = LLM(
        model,
        device=device,
        max_model_len=PROMPT_TOKENS + OUTPUT_TOKENS,
        max_num_seqs=max(BATCHES),
        max_num_batched_tokens=max(BATCHES) * PROMPT_TOKENS,
        enable_prefix_caching=False,
    )
    params = SamplingParams(max_tokens=OUTPUT_TOKENS, temperature=0, ignore_eos=True)
    vocab_size = llm.model_config.vocab_size

    def decode(batch: int) -> None:
        generator = torch.Generator().manual_seed(batch)
        ids = torch.randint(vocab_size, (batch, PROMPT_TOKENS), generator=generator)
        llm.generate(ids.tolist(), params, use_tqdm=False)

    watts, _, _ = _measure(lambda: time.sleep(0.1), joules)
    rows = [Row("idle", "watts", watts, "W")]
    for batch in BATCHES:
        decode(batch)
        watts, seconds, calls = _measure(lambda batch=batch: decode(batch), joules)  # type: ignore[misc]
        num_tokens = calls * batch * OUTPUT_TOKENS
        parameters = {
            "batch": batch,
            "output_tokens": OUTPUT_TOKENS,
            "tokens_per_second": num_tokens / seconds,
        }
        rows.append(Row(f"decode-batch{batch}", "watts", watts, "W", {}, parameters))
        rows.append(
            Row(
                f"decode-batch{batch}",
                "joules_per_token",
                watts * seconds / num_tokens,
                "J",
                {},
                parameters,
            )
        )
    return rows


def energy_counter(device: torch.device) -> Callable[[], float]:
    """Return a function that reads the joules which the board has used.

    Raises:
        QuireError: there is no nvidia-ml-py, or no such counter (before Volta).
    """
    try:
        import pynvml
    except ImportError as error:
        raise QuireError(
            "bench power needs NVIDIA's package nvidia-ml-py: pip install nvidia-ml-py"
        ) from error
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(
            f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        )
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as error:
        raise QuireError(f"the energy of {device} cannot be read: {error}") from error
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3


def _measure(work: Callable[[], None], joules: Callable[[], float]) -> tuple[float, float, int]:
    """Return mean watts, seconds and how often `work` ran in them."""
    begin, energy, calls = time.perf_counter(), joules(), 0
    while time.perf_counter() - begin < SECONDS:
        work()
        calls += 1
    seconds = time.perf_counter() - begin
    return (joules() - energy) / seconds, seconds, calls
