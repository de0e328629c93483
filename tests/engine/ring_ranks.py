"""A rank of a ring in a process of its own: the process imports this module."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from kernel_checks import draw

from quire.parallel.ring_attention import ring_attention
from quire.parallel.ring_layout import Zigzag
from quire.parallel.torch_comm import TorchComm, world

HEADS, HEAD_SIZE, SCALE = (4, 2), 64, 0.2


def prompt(num_tokens: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """The same queries, keys and values in every process."""
    return [
        draw("cpu", num_tokens, n, HEAD_SIZE, dtype=dtype) * sign
        for n, sign in ((HEADS[0], 1), (HEADS[1], 1), (HEADS[1], -1))
    ]


def rank(
    number: int, size: int, folder: str, kind: str, lengths: list[int], dtype: torch.dtype
) -> None:
    """Attend to prompts of these lengths; leave what this rank has of each in the folder."""
    device = torch.device(kind, number) if kind == "cuda" else torch.device(kind)
    with world(number, size, f"file://{folder}/meeting", device):
        assert dist.group.WORLD is not None
        comm, found = TorchComm(dist.group.WORLD), []
        for length in lengths:
            layout = Zigzag(length, size)
            own = [x[layout.rows(number)].to(device) for x in prompt(length, dtype)]
            found.append(ring_attention(comm, *own, SCALE, layout).cpu())
        torch.save(found, Path(folder) / f"{number}.pt")
