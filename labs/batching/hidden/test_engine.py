"""Hidden tests of `Memory`, beside an oracle and in quire."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from labkit.grading.twin import Twin

from .in_quire import BLOCK_SIZE, own_tokens, run
from .memory_oracle import MemoryOracle
from .scheduler_oracle import SchedulerOracle


def _memory(student, num_blocks, block_size, spare=0):
    return Twin(student, MemoryOracle(num_blocks, block_size, spare), num_blocks, block_size, spare)


def _place(memory, *entries, because=""):
    """Place (request, start, count) and look at what is left."""
    full = [[name, seat, start, count] for seat, (name, start, count) in enumerate(entries)]
    gone = memory.call("place", full, because=because)
    memory.call("num_free")
    return gone


@given(
    blocks=st.integers(1, 6), size=st.integers(1, 5), prompt=st.integers(1, 30),
    output=st.integers(1, 9),
)  # fmt: skip
@example(blocks=2, size=4, prompt=6, output=3)
@example(blocks=2, size=4, prompt=6, output=4)
@example(blocks=2, size=4, prompt=8, output=1)
def test_fits(student, variant, blocks, size, prompt, output):
    """All positions but that of the last token need room."""
    memory = _memory(student, blocks, size, spare=1)
    memory.call("fits", prompt, output)
    memory.call("fits", blocks * size, 1)


@given(size=st.integers(1, 4), lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4))
@example(size=4, lengths=[8, 4])
def test_blocks_are_counted(student, variant, size, lengths):
    """A block more only when the last one is full; all back at the end."""
    memory = _memory(student, 40, size)
    for i, length in enumerate(lengths):
        cached = i % 2 * (length // 2)  # positions that need no computing, and room all the same
        _place(memory, (f"r{i}", cached, length - cached))
    for step in range(5):
        _place(memory, *((f"r{i}", length + step, 1) for i, length in enumerate(lengths)))
    for name in ("r0", "r0", "nobody"):
        memory.call("free", name)
        memory.call("num_free")


@given(
    lengths=st.lists(st.integers(1, 6), min_size=2, max_size=5), size=st.integers(1, 2),
    order=st.permutations(range(5)), skipped=st.integers(0, 6), again=st.integers(0, 4),
    more=st.integers(1, 4),
)  # fmt: skip
@example(lengths=[2, 2, 2], size=1, order=[0, 1, 2, 3, 4], skipped=6, again=4, more=1)
@example(lengths=[3, 1, 3], size=1, order=[0, 1, 2, 3, 4], skipped=1, again=4, more=1)
@example(lengths=[1, 4], size=1, order=[1, 0, 2, 3, 4], skipped=6, again=4, more=1)
@example(lengths=[2, 2, 2], size=1, order=[0, 1, 2, 3, 4], skipped=6, again=0, more=1)
@example(lengths=[1, 1, 4], size=1, order=[2, 0, 1, 3, 4], skipped=6, again=4, more=2)
def test_cheapest_gives_way(student, variant, lengths, size, order, skipped, again, more):
    """Those with the fewest positions give way, placed already or not, with an entry or not."""
    memory = _memory(student, sum(-(-n // size) for n in lengths), size)
    ends = {f"r{i}": length for i, length in enumerate(lengths)}
    for name, length in ends.items():
        _place(memory, (name, 0, length))
    if f"r{again}" in ends:  # it ends, and one of its name comes: the latest of all
        memory.call("free", f"r{again}")
        _place(memory, (f"r{again}", 0, ends[f"r{again}"]))
    for _ in range(4):
        names = [f"r{i}" for i in order if f"r{i}" in ends and i != skipped]
        gone = _place(memory, *((name, ends[name], more) for name in names))
        ends = {n: end + more * (n in names) for n, end in ends.items() if n not in gone}
        back = gone[:1]  # it comes back as a new one, if there is room
        if back and not _place(memory, (back[0], 0, 1)):
            ends |= {back[0]: 1}


@given(
    running=st.lists(st.integers(1, 5), max_size=3),
    new=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    blocks=st.integers(5, 18),
    spare=st.integers(0, 2),
)
@example(running=[2], new=[9, 1], blocks=8, spare=0)
@example(running=[4, 1], new=[1], blocks=5, spare=0)
@example(running=[], new=[4, 2], blocks=5, spare=0)
def test_new_ones_wait(student, variant, running, new, blocks, spare):
    """No new request overtakes one that finds no room, or comes in while others must go."""
    memory = _memory(student, blocks, 1, spare)
    for i, length in enumerate(running):
        _place(memory, (f"r{i}", 0, length))
    known = memory.oracle.owners
    entries = [(f"r{i}", n, 1) for i, n in enumerate(running) if f"r{i}" in known]
    _place(memory, *entries, *((f"n{i}", 0, n) for i, n in enumerate(new)))
    # Positions that were cached need room as any others.
    _place(memory, *((f"m{i}", n // 2, n - n // 2) for i, n in enumerate(new)))


@given(
    spare=st.integers(0, 4), lengths=st.lists(st.integers(1, 12), min_size=2, max_size=5),
    together=st.booleans(),
)  # fmt: skip
@example(spare=2, lengths=[12, 1], together=False)
@example(spare=2, lengths=[6, 4, 1], together=False)
@example(spare=1, lengths=[8, 4, 2], together=False)
@example(spare=2, lengths=[6, 5], together=True)
@example(spare=2, lengths=[6, 4, 1], together=True)
def test_spare(student, variant, spare, lengths, together):
    """Some blocks are kept for the growth of those that run, one placed just before included."""
    memory = _memory(student, 12, 1, spare)
    if together:
        _place(memory, *((f"r{i}", 0, length) for i, length in enumerate(lengths)))
    for i, length in enumerate(lengths):
        if not _place(memory, (f"s{i}", 0, length)):
            _place(memory, (f"s{i}", length, 1))


def _served(student, make_scheduler, seed, limit):
    """Serve in quire with this scheduler and the student's memory; compare the tokens."""
    first, count = seed % 28, 7
    for overlap in (False, True):
        got = run(
            make_scheduler, lambda blocks: _memory(student, blocks, BLOCK_SIZE, 1), count, first,
            overlap, limit,
        )  # fmt: skip
        student.compare(
            f"quire-mini-draft with your parts on {count} requests{' and overlap' * overlap}", got,
            own_tokens(count, first),
        )  # fmt: skip


class _Alone:
    """The oracle in the place of a `Twin`."""

    def __init__(self, oracle):
        self.call = lambda name, *args: getattr(oracle, name)(*args)


def test_tokens_in_quire(student, variant, seed):
    """Your memory in quire, with requests preempted on the way."""
    _served(student, lambda seats: _Alone(SchedulerOracle(seats, 3, 4)), seed, None)


def test_whole_notebook(student, variant, seed):
    """Your own scheduler and your memory in quire, prompts cut in parts included."""
    for limit in (None, 5):
        _served(student, lambda seats: Twin(student, SchedulerOracle(seats, 3, 4), seats, 3, 4),
                seed, limit)  # fmt: skip
