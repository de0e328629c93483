"""A process's end of a group: when it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from quire.parallel.torch_comm import world


def test_a_rank_that_fails_does_not_wait_for_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """NCCL's end of a group waits for all of it, and the error would never be seen."""
    left = []
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: left.append(True))
    rendezvous, cpu = f"file://{tmp_path}/ranks", torch.device("cpu")
    with pytest.raises(ZeroDivisionError), world(0, 2, rendezvous, cpu):
        raise ZeroDivisionError
    assert left == []
    with world(0, 2, rendezvous, cpu):
        pass
    assert left == [True]
