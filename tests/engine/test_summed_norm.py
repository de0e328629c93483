"""The sum over ranks in a norm's kernel: ranks that are streams of one GPU, in plain memory."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import poisoned
from torch import Tensor

from quire.kernels.summed_norm import Mailbox, summed_add_rms_norm

pytestmark = pytest.mark.gpu

EPS, FEW_ROWS, MOST_ROWS = 1e-5, 8, 64


def mailboxes(num_ranks: int, columns: int) -> list[Mailbox]:
    """Return one a rank; what a peer's address is for other GPUs, is one of this GPU here."""
    size = Mailbox.num_bytes(num_ranks, FEW_ROWS, MOST_ROWS, columns)
    memory = [torch.zeros(size, dtype=torch.uint8, device="cuda") for _ in range(num_ranks)]
    addresses = torch.tensor([own.data_ptr() for own in memory], device="cuda")
    return [
        Mailbox(
            rank=rank,
            size=num_ranks,
            few_rows=FEW_ROWS,
            most_rows=MOST_ROWS,
            addresses=addresses,
            counts=torch.zeros(MOST_ROWS, dtype=torch.int32, device="cuda"),
            memory=memory[rank],
        )
        for rank in range(num_ranks)
    ]


def load_kernels(boxes: list[Mailbox], columns: int, dtype: torch.dtype) -> None:
    """Have every rank's kernels loaded: that may wait for kernels that wait for one another.

    Full of ones, memory holds what a first sum waits for.
    """
    weight = torch.ones(columns, device="cuda", dtype=dtype)
    for num_rows in (FEW_ROWS, FEW_ROWS + 1):
        for box in boxes:
            for other in boxes:
                other.memory.view(torch.int32).fill_(1)
            box.counts.zero_()
            part = torch.ones(num_rows, columns, device="cuda", dtype=dtype)
            summed_add_rms_norm(part, part.clone(), weight, EPS, box)
            torch.cuda.synchronize()
    for box in boxes:
        box.memory.zero_()
        box.counts.zero_()


def on_every_rank(
    boxes: list[Mailbox], parts: Tensor, residual: Tensor, weight: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Let the ranks run beside one another; each has a residual of its own."""
    results = []
    residuals = [residual.clone() for _ in boxes]
    torch.cuda.synchronize()
    for box, part, own in zip(boxes, parts, residuals, strict=True):
        with torch.cuda.stream(torch.cuda.Stream()):
            results.append(summed_add_rms_norm(part, own, weight, EPS, box))
    torch.cuda.synchronize()
    return results


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("columns", [96, 4096, 5120])
def test_sums_and_norms(columns: int, num_ranks: int, dtype: torch.dtype) -> None:
    """Rows with a count a number and rows with one behind them, in turn, through one mailbox."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to("cuda", dtype)

    boxes, weight = mailboxes(num_ranks, columns), draw(columns)
    load_kernels(boxes, columns, dtype)
    for num_rows in (1, 8, 1, 40, 9, 3, 64, 64, 1):
        parts, residual = draw(num_ranks, num_rows, columns), draw(num_rows, columns)
        with poisoned():
            results = on_every_rank(boxes, parts, residual, weight)
        total = parts.double().sum(0) + residual.double()
        scale = (total.square().mean(-1, keepdim=True) + EPS).rsqrt()
        tolerance = 2.0**-7 if dtype == torch.bfloat16 else 2.0**-10
        for normed, stream in results:
            assert torch.equal(normed, results[0][0])
            assert torch.equal(stream, results[0][1])
        torch.testing.assert_close(stream.double(), total, rtol=tolerance, atol=1e-5)
        expected = total * scale * weight.double()
        torch.testing.assert_close(normed.double(), expected, rtol=tolerance, atol=1e-4)
        assert not any(tensor.isnan().any() for tensor in (normed, stream))
    for box in boxes:
        assert box.counts[0] == 9
        assert box.counts[63] == 2


def test_a_captured_step_counts_on() -> None:
    """Each replay of a graph is one more time: what came for the last one is not taken again."""
    boxes, weight = mailboxes(2, 512), torch.ones(512, device="cuda", dtype=torch.bfloat16)
    parts = torch.zeros(2, 3, 512, device="cuda", dtype=torch.bfloat16)
    residuals = [torch.zeros_like(parts[0]) for _ in boxes]
    streams = [torch.cuda.Stream() for _ in boxes]
    load_kernels(boxes, 512, torch.bfloat16)
    graphs = []
    for box, part, residual, stream in zip(boxes, parts, residuals, streams, strict=True):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            summed_add_rms_norm(part, residual, weight, EPS, box)
        graphs.append(graph)
    for turn in range(1, 6):
        parts.fill_(turn)
        torch.cuda.synchronize()
        for graph, stream in zip(graphs, streams, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
        torch.cuda.synchronize()
        for residual in residuals:
            assert (residual == turn * (turn + 1)).all()  # 2 + 4 + … + 2 · turn
