"""Parts that fail on one rank, or on all: a rank's process imports them from here."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from quire.errors import QuireError
from quire.sampling.drafts import Drafts
from quire.sampling.sampler import SamplerOutput, TorchSampler
from quire.sampling.tensors import SamplingTensors


class FailsAlone(TorchSampler):
    """Rank 1 raises when it chooses the third token of a sequence that began with 3 tokens."""

    def __call__(
        self, logits: Tensor, sampling: SamplingTensors, drafts: Drafts | None = None
    ) -> SamplerOutput:
        if dist.get_rank() == 1 and 5 in sampling.positions.tolist():
            raise ValueError("bits flipped")
        return super().__call__(logits, sampling, drafts)


class FailsEverywhere(TorchSampler):
    """Every rank raises for one position."""

    def __call__(
        self, logits: Tensor, sampling: SamplingTensors, drafts: Drafts | None = None
    ) -> SamplerOutput:
        if 5 in sampling.positions.tolist():
            raise QuireError("no fifth token today")
        return super().__call__(logits, sampling, drafts)


class ChoosesOtherwise(TorchSampler):
    """Rank 1 chooses the next token id at one position."""

    def __call__(
        self, logits: Tensor, sampling: SamplingTensors, drafts: Drafts | None = None
    ) -> SamplerOutput:
        sampled = super().__call__(logits, sampling, drafts)
        if dist.get_rank() == 1 and 5 in sampling.positions.tolist():
            sampled.tokens = (sampled.tokens + 1) % logits.shape[1]
        return sampled


def wait_until_ended(pids: list[int], seconds: float) -> bool:
    """Whether all processes have ended within so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(_runs(pid) for pid in pids):
            return True
        os.sched_yield()
    return False


def _runs(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"  # a zombie has ended
