"""`quire bench collectives`: what ranks on the GPUs of one machine tell each other, by its size.

Each row is one exchange between 2, 4 or 8 ranks, as many as there are GPUs. Its `kilobytes` are
those of the whole buffer, as in NCCL's own tests: what each rank adds to a sum, has after an
all-gather and before a reduce-scatter, or hands out in an all-to-all. It is timed in a captured
graph.

`all-reduce-<n>kb-<way>-x<ranks>`: over NCCL; over peers' memory in one shot or two; "launched" is
NCCL's again, each call launched from Python. `sum-norm-<n>kb-x<ranks>`: a sum with the addition to
the residual stream and the norm behind it, in one kernel, beside the fastest sum and `add_rms_norm`
in kernels of their own ("apart").
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from quire.bench.measurement import Row
from quire.bench.several_gpus import count_gpus
from quire.kernels.norm import add_rms_norm
from quire.kernels.summed_norm import summed_add_rms_norm
from quire.parallel.direct_comm import DirectComm
from quire.parallel.torch_comm import world

GROUPS = (2, 4, 8)  # ranks
KILOBYTES = (8, 32, 128, 256, 512, 1024, 2048, 8192, 32768, 65536)
MOST_OF_ONE_SHOT = 2048  # kilobytes
LAUNCHED = (8, 128, 2048, 65536)  # kilobytes
COLUMNS = 4096  # of a norm
NORMED = (8, 32, 64, 128, 256, 512, 1024, 2048, 8192, 16384, 131072)  # kilobytes, of such rows
EXCHANGES = ("reduce-scatter", "all-gather", "all-to-all")
REPEAT = 20  # calls in a graph


def run(device: torch.device) -> list[Row]:
    """Measure every exchange in groups of each size that the GPUs allow.

    Raises:
        QuireError: fewer than two GPUs.
    """
    count = count_gpus("collectives", device)
    return [row for size in GROUPS if size <= count for row in _rows(size)]


def _rows(size: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        answers = Path(folder) / "answers.pt"
        spawn(_rank, args=(size, f"file://{folder}/ranks", str(answers)), nprocs=size)
        found: dict[str, dict[int, dict[str, float]]] = torch.load(answers)
    rows = []
    for kind, by_size in found.items():
        for kilobytes, ways in by_size.items():
            parameters: dict[str, float] = {"ranks": size, "kilobytes": kilobytes}
            case = f"{kind}-{kilobytes}kb"
            if kind == "sum-norm":
                beside = {"apart": ways["apart"]}
                rows.append(Row(f"{case}-x{size}", "us", ways["fused"], "us", beside, parameters))
                continue
            for way, value in ways.items():
                beside = {} if way == "nccl" else {"nccl": ways["nccl"]}
                rows.append(Row(f"{case}-{way}-x{size}", "us", value, "us", beside, parameters))
    return rows


def _rank(rank: int, size: int, rendezvous: str, answers: str) -> None:
    device = torch.device("cuda", rank)
    with world(rank, size, rendezvous, device), torch.inference_mode():
        group = dist.group.WORLD
        assert group is not None
        comm = DirectComm(group, device, torch.bfloat16)
        found = {
            "all-reduce": _sums(group, device),
            "sum-norm": {n: times for n in NORMED if (times := _normed(comm, n, device))},
            **{
                kind: {n: _exchange(kind, n, size, device) for n in KILOBYTES} for kind in EXCHANGES
            },
        }
    if rank == 0:
        torch.save(found, answers)


def _sums(group: dist.ProcessGroup, device: torch.device) -> dict[int, dict[str, float]]:
    """Return the microseconds of sums, by kilobytes and way."""
    import torch.distributed._symmetric_memory as symm_mem

    buffer = symm_mem.empty(KILOBYTES[-1] * 512, dtype=torch.bfloat16, device=device)
    symm_mem.rendezvous(buffer, group.group_name)
    found = {}
    for kilobytes in KILOBYTES:
        x = torch.randn(kilobytes * 512, device=device).bfloat16()
        place = buffer[: len(x)]

        def one_shot(x: Tensor = x, place: Tensor = place) -> None:
            torch.ops.symm_mem.one_shot_all_reduce_copy(place, x, "sum", group.group_name)

        def two_shot(x: Tensor = x, place: Tensor = place) -> None:
            place.copy_(x)
            torch.ops.symm_mem.two_shot_all_reduce_(place, "sum", group.group_name)

        def nccl(x: Tensor = x) -> None:
            dist.all_reduce(x)

        ways = {"nccl": _us_of(nccl, x)}
        if kilobytes in LAUNCHED:
            ways["launched"] = _us_launched(nccl, x)
        if kilobytes <= MOST_OF_ONE_SHOT:
            ways["one-shot"] = _us_of(one_shot, x)
        ways["two-shot"] = _us_of(two_shot, x)
        found[kilobytes] = ways
    return found


def _normed(comm: DirectComm, kilobytes: int, device: torch.device) -> dict[str, float]:
    """Return the microseconds of sum, addition and norm: in one kernel, and apart.

    Nothing where a rank's mailbox has no room for so many rows.
    """
    num_rows = (kilobytes << 10) // (2 * COLUMNS)
    mailbox = comm.mailbox(COLUMNS)
    if num_rows > mailbox.most_rows:
        return {}
    part = torch.randn(num_rows, COLUMNS, device=device).bfloat16()
    residual, weight = torch.randn_like(part), torch.ones_like(part[0])

    def fused() -> None:
        summed_add_rms_norm(part, residual, weight, 1e-6, mailbox)

    def apart() -> None:
        add_rms_norm(comm.all_reduce(part), residual, weight, 1e-6)

    return {"fused": _us_of(fused, part, residual), "apart": _us_of(apart, part, residual)}


def _exchange(kind: str, kilobytes: int, size: int, device: torch.device) -> dict[str, float]:
    """Return the microseconds of an exchange over NCCL whose whole buffer has so many bytes."""
    whole = torch.randn(kilobytes * 512, device=device).bfloat16()
    part = whole[: len(whole) // size].clone()
    received = torch.empty_like(whole)

    def work() -> None:
        if kind == "reduce-scatter":
            dist.reduce_scatter_tensor(part, whole)
        elif kind == "all-gather":
            dist.all_gather_into_tensor(whole, part)
        else:
            dist.all_to_all_single(received, whole)

    ways = {"nccl": _us_of(work, whole)}
    if kilobytes in LAUNCHED:
        ways["launched"] = _us_launched(work, whole)
    return ways


def _us_of(work: Callable[[], object], *changed: Tensor) -> float:
    """Return the median microseconds of work in a captured graph; tensors that grow start anew."""
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    dist.barrier()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(REPEAT):
            work()
    return _median_us(graph.replay, changed)


def _us_launched(work: Callable[[], object], *changed: Tensor) -> float:
    """Return the median microseconds of work that Python launches, call after call."""

    def calls() -> None:
        for _ in range(REPEAT):
            work()

    return _median_us(calls, changed)


def _median_us(calls: Callable[[], object], changed: tuple[Tensor, ...]) -> float:
    """Return the microseconds of one of `REPEAT` calls; each is timed from where ranks have met."""
    taken = []
    for _ in range(12):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for tensor in changed:
            tensor.normal_()
        dist.barrier()
        torch.cuda.synchronize()
        calls()
        begin.record()
        calls()
        end.record()
        torch.cuda.synchronize()
        taken.append(begin.elapsed_time(end) / REPEAT * 1e3)
    return statistics.median(taken)
