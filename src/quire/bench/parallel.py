"""`quire bench parallel`: sums of two ranks by size, and whole runs of one, two and two times one.

`all-reduce-<n>kb` is a sum in a captured graph, over NCCL (the baseline) and, by `shots`, over
peers' memory in one shot or two; `shots` 0 is NCCL's own row. `sum-norm-<n>kb` is a sum with the
addition to the residual stream and the norm behind it, in one kernel, beside the fastest sum and
`add_rms_norm` in kernels of their own ("apart"). The runs are those of `quire bench
engine` on Qwen3-8B's shape: on one GPU, with its matrices on two, and with a replica on each, where
`mix256` is sent to each replica.
"""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from quire.bench.engine import Load, mix256, uniform_load
from quire.bench.measurement import Row
from quire.errors import QuireError
from quire.kernels.norm import add_rms_norm
from quire.llm import LLM
from quire.models.config import ModelConfig
from quire.parallel.comm import NormingComm
from quire.parallel.torch_comm import TorchComm

KILOBYTES = (8, 32, 128, 256, 512, 1024, 2048, 8192, 32768)
NORMED = (8, 32, 64, 128, 256, 512, 2048, 16384, 131072)  # kilobytes, of rows of 8
REPEAT = 20  # sums in a graph
LAYOUTS: dict[str, dict[str, int]] = {
    "one": {},
    "tp2": {"tensor_parallel_size": 2},
    "dp2": {"data_parallel_size": 2},
}


def run(model: ModelConfig, name: str, device: torch.device) -> list[Row]:
    """Measure sums, then runs of a model.

    Raises:
        QuireError: fewer than two GPUs.
    """
    count = torch.cuda.device_count()
    if device.type != "cuda" or count < 2:
        raise QuireError(f"bench parallel needs two GPUs, and torch sees {count}")
    rows = all_reduces()
    found = {label: measure(model, options, label) for label, options in LAYOUTS.items()}
    for label, values in found.items():
        for load, (value, metric, unit) in values.items():
            baselines = {} if label == "one" else {"one": found["one"][load][0]}
            rows.append(Row(f"{name}-{label}-{load}", metric, value, unit, baselines))
    return rows


def measure(
    model: ModelConfig, options: dict[str, int], label: str
) -> dict[str, tuple[float, str, str]]:
    """Return milliseconds a token at batch 1 and tokens a second of the served load."""
    llm = LLM(
        model,
        device="cuda",
        max_model_len=2048,
        max_num_seqs=256,
        max_num_batched_tokens=16384,
        enable_prefix_caching=False,
        **options,  # type: ignore[arg-type]
    )
    prompts, params = mix256()
    if label == "dp2":  # as much for each, and no prompt twice
        prompts, params = [*prompts, *(prompt[::-1] for prompt in prompts)], params * 2
    one, many = uniform_load(1, 128, 256), (prompts, params)
    seconds, served = _seconds(llm, one, 5), _seconds(llm, many, 2)
    llm.engine.shutdown()
    del llm
    gc.collect()
    torch.cuda.empty_cache()
    num_tokens = sum(own.output_limit for own in params)
    return {
        "batch1": (seconds / 256 * 1e3, "ms_per_token", "ms"),
        "mix256": (num_tokens / served, "tokens_per_second", "tokens/s"),
    }


def _seconds(llm: LLM, load: Load, repeats: int) -> float:
    """Return the median time of a load after a warm-up; the devices are in other processes."""
    taken = []
    for _ in range(1 + repeats):
        begin = time.perf_counter()
        llm.generate(*load, use_tqdm=False)
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[1:])


def all_reduces() -> list[Row]:
    """Measure sums of two ranks, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        answers = Path(folder) / "answers.pt"
        spawn(_rank, args=(f"file://{folder}/ranks", str(answers)), nprocs=2)
        times: dict[tuple[int, int], float]
        normed: dict[int, tuple[float, float]]
        times, normed = torch.load(answers)
    sums = [
        Row(
            f"all-reduce-{kilobytes}kb-{('nccl', 'one-shot', 'two-shot')[shots]}",
            "us",
            value,
            "us",
            {} if shots == 0 else {"nccl": times[kilobytes, 0]},
            {"kilobytes": kilobytes, "shots": shots},
        )
        for (kilobytes, shots), value in times.items()
    ]
    return sums + [
        Row(
            f"sum-norm-{kilobytes}kb", "us", fused, "us", {"apart": apart}, {"kilobytes": kilobytes}
        )
        for kilobytes, (fused, apart) in normed.items()
    ]


def _rank(rank: int, rendezvous: str, answers: str) -> None:
    import torch.distributed._symmetric_memory as symm_mem

    from quire.parallel.direct_comm import DirectComm

    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl", init_method=rendezvous, rank=rank, world_size=2, device_id=device
    )
    group = dist.group.WORLD
    assert group is not None
    buffer = symm_mem.empty(KILOBYTES[-1] * 512, dtype=torch.bfloat16, device=device)
    symm_mem.rendezvous(buffer, group.group_name)
    times: dict[tuple[int, int], float] = {}
    for kilobytes in KILOBYTES:
        x = torch.randn(kilobytes * 512, device=device).bfloat16()
        for shots in (0, 1, 2) if kilobytes <= 2048 else (0, 2):
            times[kilobytes, shots] = _us_of_sum(x, buffer[: len(x)], shots, group.group_name)
    comm = DirectComm(group, device, torch.bfloat16)
    normed = {kilobytes: _us_of_sum_and_norm(comm, kilobytes, device) for kilobytes in NORMED}
    if rank == 0:
        torch.save((times, normed), answers)
    dist.destroy_process_group()


@torch.inference_mode()
def _us_of_sum_and_norm(
    comm: TorchComm, kilobytes: int, device: torch.device
) -> tuple[float, float]:
    """Return the microseconds of sum, addition and norm: in one kernel, and apart."""
    assert isinstance(comm, NormingComm)
    part = torch.randn(kilobytes // 8, 4096, device=device).bfloat16()
    residual, weight = torch.randn_like(part), torch.ones_like(part[0])

    def apart() -> None:
        add_rms_norm(comm.all_reduce(part), residual, weight, 1e-6)

    return (
        _us_of(lambda: comm.add_rms_norm(part, residual, weight, 1e-6), part, residual),
        _us_of(apart, part, residual),
    )


@torch.inference_mode()
def _us_of_sum(x: torch.Tensor, place: torch.Tensor, shots: int, group_name: str) -> float:
    """Return the median microseconds of a sum in a captured graph of `REPEAT` of them."""

    def work() -> None:
        if shots == 0:
            dist.all_reduce(x)
        elif shots == 1:
            torch.ops.symm_mem.one_shot_all_reduce_copy(place, x, "sum", group_name)
        else:
            place.copy_(x)
            torch.ops.symm_mem.two_shot_all_reduce_(place, "sum", group_name)

    return _us_of(work, x)


def _us_of(work: Callable[[], object], *changed: torch.Tensor) -> float:
    """Return the median microseconds of work in a captured graph; tensors that grow start anew."""
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    dist.barrier()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(REPEAT):
            work()
    taken = []
    for _ in range(12):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for tensor in changed:
            tensor.normal_()
        dist.barrier()
        torch.cuda.synchronize()
        graph.replay()
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        taken.append(begin.elapsed_time(end) / REPEAT * 1e3)
    return statistics.median(taken)
