"""`quire bench ring`: attention of one long prompt, on one GPU and on rings of several.

One layer's attention of Qwen3-8B's shape, causal, in bfloat16, without its products. A row
`ring-<tokens>-<ranks>` is a zigzag ring (`quire.parallel.ring_attention`). Beside it stand the
whole prompt on one GPU with the kernel that the engine runs ("one"), a ring of contiguous pieces
("in_order"), a zigzag whose ranks send nothing and attend to their own keys in each hop
("compute"), the hops with their exchange and without attention ("sends"), and the zigzag where the
host queues kernels while they run ("eager"): for all the others it has queued them before. What
takes the longest of the ranks counts.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from quire.attention.triton_backend import TritonAttention
from quire.bench.measurement import Row
from quire.errors import QuireError
from quire.kv.batch import AttentionBatch
from quire.kv.layer import LayerKV
from quire.models.config import ModelConfig
from quire.parallel.comm import Comm, Solo
from quire.parallel.ring_attention import hops, ring_attention
from quire.parallel.ring_layout import InOrder, RingLayout, Zigzag
from quire.parallel.torch_comm import TorchComm, world

TOKENS = (8192, 32768, 131072)
SIZES = (2, 4, 8)  # ranks of a ring
REPEATS = 5
HEAD_START = 30_000_000  # cycles that the GPU idles while the host queues: about 15 ms
TOLERANCE = 0.02  # ‖ring - one GPU‖ / ‖one GPU‖; bfloat16 rounds each number by up to 0.004

Times = dict[str, float]  # milliseconds by contender


def run(model: ModelConfig, device: torch.device) -> list[Row]:
    """Measure each length on one GPU and on as many as there are.

    Raises:
        QuireError: fewer than two GPUs; a ring's result is not that of one GPU.
    """
    count = torch.cuda.device_count()
    if device.type != "cuda" or count < 2:
        raise QuireError(
            f"bench ring times the links of at least two GPUs, and on {device.type} torch sees "
            f"{count}: run it on a machine with more of them"
        )
    sizes = [size for size in SIZES if size <= count]
    with tempfile.TemporaryDirectory() as folder:
        answers = Path(folder) / "answers.pt"
        spawn(_rank, (f"file://{folder}/ranks", str(answers), model, sizes), nprocs=sizes[-1])
        found: dict[tuple[int, int], Times] = torch.load(answers)
    return rows(model, found)


def rows(model: ModelConfig, found: dict[tuple[int, int], Times]) -> list[Row]:
    """Return a row a length and number of ranks, with what it computes and what a rank sends."""
    made = []
    for (num_tokens, size), times in found.items():
        flops = 4 * model.num_heads * model.head_size * num_tokens * (num_tokens + 1) / 2
        bytes_of_hop = 4 * model.num_kv_heads * model.head_size * num_tokens / size
        baselines = {name: value for name, value in times.items() if name != "ring"}
        parameters = {
            "tokens": float(num_tokens),
            "ranks": float(size),
            "flops": flops,
            "bytes_sent_by_rank": (size - 1) * bytes_of_hop,
        }
        case = f"ring-{num_tokens}-{size}"
        made.append(Row(case, "ms", times["ring"], "ms", baselines, parameters))
    return made


class Unsent(Solo):
    """A rank whose neighbour always sends what it has itself, at once."""

    def __init__(self, rank: int, size: int) -> None:
        """Be rank `rank` of a ring of `size` in which nobody else is."""
        self.rank, self.size = rank, size


def _rank(rank: int, rendezvous: str, answers: str, model: ModelConfig, sizes: list[int]) -> None:
    """What the process of a rank does; rank 0 writes all times down."""
    device, found = torch.device("cuda", rank), {}
    with world(rank, sizes[-1], rendezvous, device), torch.inference_mode():
        groups = {size: dist.new_group(list(range(size))) for size in sizes}
        for num_tokens in TOKENS:
            prompt = _prompt(model, num_tokens, device)
            work = whole(*prompt)
            expected = work()
            one = _milliseconds(work, None, device) if rank == 0 else 0.0
            for size, group in groups.items():
                if rank < size:
                    times = _contenders(TorchComm(group), prompt, expected)
                    found[num_tokens, size] = {**times, "one": one}
                dist.barrier()
    if rank == 0:
        torch.save(found, answers)


def _prompt(model: ModelConfig, num_tokens: int, device: torch.device) -> list[Tensor]:
    """Draw rank 0's queries, keys and values of the whole prompt on every rank."""
    drawn = [
        torch.randn(num_tokens, heads, model.head_size, dtype=torch.bfloat16, device=device)
        for heads in (model.num_heads, model.num_kv_heads, model.num_kv_heads)
    ]
    for x in drawn:
        dist.broadcast(x, 0)
    return drawn


def whole(q: Tensor, k: Tensor, v: Tensor) -> Callable[[], Tensor]:
    """Return the engine's attention of a prompt that starts and ends in this step."""
    num_tokens, _, head_size = q.shape
    batch = AttentionBatch.of([0, num_tokens], [num_tokens], [[0] * num_tokens], 1, q.device)
    nothing = k.new_empty(1, k.shape[1], 1, head_size)  # the cache, of which no key is read
    backend = TritonAttention()
    metadata = backend.build(batch, None)
    cache = LayerKV(nothing, nothing)
    return lambda: backend.forward(q, cache, metadata, head_size**-0.5, (k, v))


def _contenders(comm: TorchComm, prompt: list[Tensor], expected: Tensor) -> Times:
    """Time the zigzag ring and what stands beside it, after a look at their results.

    Raises:
        QuireError: they are not those of one GPU.
    """
    zigzag = Zigzag(len(expected), comm.size)
    in_order = InOrder(len(expected), comm.size)
    places, places_in_order = (
        layout.rows(comm.rank).to(expected.device) for layout in (zigzag, in_order)
    )
    own, own_in_order = ([x[rows] for x in prompt] for rows in (places, places_in_order))
    works: dict[str, Callable[[], object]] = {
        "ring": partial(attend, comm, own, zigzag),
        "in_order": partial(attend, comm, own_in_order, in_order),
        "compute": partial(attend, Unsent(comm.rank, comm.size), own, zigzag),
        "sends": lambda: list(hops(comm, own[1], own[2], zigzag)),
    }
    compare(attend(comm, own, zigzag), expected[places], f"a zigzag of {comm.size} ranks")
    compare(
        attend(comm, own_in_order, in_order),
        expected[places_in_order],
        f"a ring in order of {comm.size} ranks",
    )
    times = {name: _milliseconds(work, comm, expected.device) for name, work in works.items()}
    times["eager"] = _milliseconds(works["ring"], comm, expected.device, head_start=0)
    return times


def attend(comm: Comm, own: list[Tensor], layout: RingLayout) -> Tensor:
    """Attend in a ring with a rank's own queries, keys and values."""
    q, k, v = own
    return ring_attention(comm, q, k, v, q.shape[2] ** -0.5, layout)


def compare(found: Tensor, expected: Tensor, name: str) -> None:
    """Make sure that a ring gives what one GPU gives, but for the rounding.

    Raises:
        QuireError: it does not.
    """
    error = float((found.float() - expected.float()).norm() / expected.float().norm())
    if not error <= TOLERANCE:
        raise QuireError(
            f"{name} is off by {error:.1%} from one GPU's attention, and {TOLERANCE:.0%} is what "
            "rounding may do: its times would mean nothing; run tests/engine/test_ring_attention.py"
        )


def _milliseconds(
    work: Callable[[], object],
    comm: TorchComm | None,
    device: torch.device,
    head_start: int = HEAD_START,
) -> float:
    """Return the median time of work, each time that of the slowest rank; None: of this one.

    With a head start the GPU idles first, and the host queues everything meanwhile. Of two runs
    the second is timed: the first one lets the ranks meet.
    """
    taken = []
    for turn in range(1 + REPEATS):
        if comm is not None:
            comm.all_reduce(torch.zeros(1, device=device))
        torch.cuda.synchronize(device)
        if head_start > 0:
            torch.cuda._sleep(head_start)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        work()
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize(device)
        if turn > 0:
            taken.append(begin.elapsed_time(end))
    if comm is not None:
        slowest = comm.all_gather(torch.tensor(taken, device=device)[None], 0).amax(0)
        taken = slowest.tolist()
    return statistics.median(taken)
