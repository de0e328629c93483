"""Ranks that take turns: what the collectives give, and how mistakes are named."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from quire.parallel.lockstep import Lockstep, LockstepComm, LockstepError

Task = Callable[[LockstepComm], object]


def run(*tasks: Task) -> list[object]:
    world = Lockstep(len(tasks))

    def of(rank: int) -> Callable[[], object]:
        return lambda: tasks[rank](world.comm(rank))

    return world.run([of(rank) for rank in range(len(tasks))])


def test_collectives_give_what_their_names_say() -> None:
    def work(comm: LockstepComm) -> list[Tensor]:
        own = torch.tensor([[1.0, 2.0]]) * 10**comm.rank
        back = comm.all_to_all(
            [own.repeat(comm.rank + r, 1) for r in range(3)],
            [comm.rank] * 0 or [r + comm.rank for r in range(3)],
        )
        return [
            comm.all_reduce(own.clone()),
            comm.all_gather(own),
            comm.all_gather(own, 0),
            comm.broadcast(own, 1),
            torch.cat(back),
        ]

    for rank, (total, wide, tall, copied, swapped) in enumerate(run(work, work, work)):
        assert total.tolist() == [[111, 222]]
        assert wide.tolist() == [[1, 2, 10, 20, 100, 200]]
        assert tall.tolist() == [[1, 2], [10, 20], [100, 200]]
        assert copied.tolist() == [[10, 20]]
        expected = [[10.0**r, 2 * 10.0**r] for r in range(3) for _ in range(r + rank)]
        assert swapped.tolist() == expected


def test_a_sum_is_added_in_the_order_of_ranks() -> None:
    """1e8 + 1 - 1e8 in float32 depends on the order."""
    values = [1e8, 1.0, -1e8]
    tasks = [lambda comm, v=v: comm.all_reduce(torch.tensor([v])).item() for v in values]
    assert run(*tasks) == [0.0, 0.0, 0.0]
    moved = [tasks[0], tasks[2], tasks[1]]
    assert run(*moved) == [1.0, 1.0, 1.0]


def test_an_answer_is_each_ranks_own() -> None:
    def work(comm: LockstepComm) -> float:
        total = comm.all_reduce(torch.ones(1))
        total += comm.rank
        comm.all_gather(total)
        return total.item()

    assert run(work, work) == [2, 3]


def test_what_is_sent_arrives_at_the_one_who_receives() -> None:
    def first(comm: LockstepComm) -> float:
        comm.send(torch.tensor([7.0]), 2)
        return comm.receive(torch.empty(1), 1).item()

    def second(comm: LockstepComm) -> None:
        comm.send(torch.tensor([8.0]), 0)

    def third(comm: LockstepComm) -> float:
        return comm.receive(torch.empty(1), 0).item()

    assert run(first, second, third) == [8, None, 7]


def test_a_ring_passes_on_what_each_has() -> None:
    """Twice round, of other lengths; what is read too soon is no number."""

    def work(comm: LockstepComm) -> list[Tensor]:
        before = (comm.rank - 1) % 3
        held, like = torch.full((2, comm.rank), comm.rank + 1.0), torch.zeros(2, before)
        arrival = comm.pass_on(held, like)
        assert like.isnan().all()
        held.neg_()  # a mistake, and it shows: the exchange is when both wait
        first = arrival.wait()
        assert first is like
        second = comm.pass_on(first, torch.empty(2, (comm.rank - 2) % 3, dtype=first.dtype))
        return [first.clone(), second.wait()]

    for rank, (first, second) in enumerate(run(work, work, work)):
        before, second_before = (rank - 1) % 3, (rank - 2) % 3
        assert first.tolist() == [[-(before + 1.0)] * before] * 2
        assert second.tolist() == [[-(second_before + 1.0)] * second_before] * 2


def test_groups_of_a_world_work_apart() -> None:
    """Pairs (0, 1) and (2, 3) sum alone, then (0, 2) and (1, 3)."""
    world = Lockstep(4)

    def work(rank: int) -> tuple[float, float]:
        row = world.comm(rank, (rank // 2 * 2, rank // 2 * 2 + 1))
        column = world.comm(rank, (rank % 2, rank % 2 + 2))
        assert (row.rank, row.size, column.rank) == (rank % 2, 2, rank // 2)
        return (
            row.all_reduce(torch.tensor([float(rank)])).item(),
            column.all_reduce(torch.tensor([float(rank)])).item(),
        )

    done = world.run([lambda r=r: work(r) for r in range(4)])
    assert done == [(1, 2), (1, 4), (5, 2), (5, 4)]


def reduces(*shape: int, dtype: torch.dtype = torch.float32) -> Task:
    return lambda comm: comm.all_reduce(torch.ones(shape, dtype=dtype))


def receives(source: int) -> Task:
    return lambda comm: comm.receive(torch.empty(1), source)


MISTAKES: dict[str, tuple[list[Task], str]] = {
    "another shape": (
        [reduces(2), reduces(3)],
        r"rank 0 is in all_reduce\(float32, \[2\]\), rank 1 in all_reduce\(float32, \[3\]\)",
    ),
    "another dtype": (
        [reduces(2), reduces(2, dtype=torch.bfloat16)],
        r"rank 1 in all_reduce\(bfloat16, \[2\]\)",
    ),
    "another call": (
        [reduces(2), lambda comm: comm.all_gather(torch.ones(2))],
        r"rank 0 is in all_reduce.*rank 1 in all_gather",
    ),
    "nobody comes": (
        [reduces(2), lambda comm: None],
        r"nobody can go on: rank 0 waits in all_reduce\(float32, \[2\]\), rank 1 has returned",
    ),
    "both receive": (
        [receives(1), receives(0)],
        r"rank 0 is in send.*from 1 to 0|rank 1 is in send.*from 1 to 0.*rank 0.*|nobody can go on",
    ),
    "rows that nobody sends": (
        [lambda comm: comm.all_to_all([torch.ones(1, 2)] * 2, [1, 2])] * 2,
        r"rank 0 expected \[1, 2\] rows of the ranks in all_to_all, and they sent \[1, 1\]",
    ),
    "another length than the neighbour's": (
        [lambda comm: comm.pass_on(torch.ones(comm.rank + 1), torch.empty(2)).wait()] * 2,
        r"rank 1 expected \(float32, \[2\]\) of rank 0 in pass_on, and \(float32, \[1\]\) came",
    ),
    "an arrival that only one waits for": (
        [
            lambda comm: comm.pass_on(torch.ones(1), torch.ones(1)),
            lambda comm: comm.pass_on(torch.ones(1), torch.ones(1)).wait(),
        ],
        r"nobody can go on: rank 0 has returned, rank 1 waits in pass_on\(float32\)",
    ),
    "a circle": (
        [receives(2), receives(0), receives(1)],
        r"nobody can go on: rank 0 waits in send\(.*from 2 to 0\), rank 1 waits .* rank 2 waits",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name: str) -> None:
    tasks, message = MISTAKES[name]
    before = threading.active_count()
    with pytest.raises(LockstepError, match=message):
        run(*tasks)
    assert threading.active_count() == before


def test_an_error_ends_all_ranks() -> None:
    reached = []

    def fails(comm: LockstepComm) -> None:
        comm.all_reduce(torch.ones(1))
        raise ValueError("no weights")

    def waits(comm: LockstepComm) -> None:
        comm.all_reduce(torch.ones(1))
        comm.all_reduce(torch.ones(1))
        reached.append(comm.rank)

    before = threading.active_count()
    with pytest.raises(ValueError, match="no weights"):
        run(waits, fails, waits)
    assert reached == []
    assert threading.active_count() == before


def test_turns_are_taken_in_the_order_of_ranks() -> None:
    seen: list[int] = []

    def work(comm: LockstepComm) -> None:
        for _ in range(3):
            seen.append(comm.rank)
            comm.all_reduce(torch.ones(1))

    run(work, work, work)
    assert seen == [0, 1, 2] * 3
