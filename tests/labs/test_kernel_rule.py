"""The rule for GPU kernels, with kernels in NumPy and times of the test's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from labkit.gpu.kernels import (
    Array,
    KernelTask,
    Problem,
    Roofline,
    Run,
    Speed,
    from_bfloat16,
    judge_speed,
    measure,
    poisoned,
    to_bfloat16,
    too_fast,
    untouched,
    wrong,
)

SIZE = 64
TASK = KernelTask(
    make=lambda rng: [rng.normal(size=SIZE).astype(np.float32) for _ in range(2)],
    oracle=lambda inputs: inputs[0].astype(np.float64) + inputs[1],
    dtype="float32",
    flops=SIZE,
    moved=3 * 4 * SIZE,
    tolerance=1e-5,
)
MACHINE = Roofline(flops_per_second=64e6, bytes_per_second=384e6)  # least: 2 µs, by the bytes


def _add(problem: Problem) -> Array:
    problem.output[:] = problem.inputs[0] + problem.inputs[1]
    return problem.output


def _taking(seconds: float, work: Callable[[Problem], object]) -> Run:
    return lambda problem: (work(problem), seconds)


def _measure(
    work: Callable[[Problem], object], seconds: float = 8e-6, calls: int = 5
) -> Speed | str:
    rng = np.random.default_rng(3)
    return measure(TASK, _taking(seconds, work), _taking(4e-6, _add), rng, calls=calls)


def test_a_right_kernel_gets_its_time() -> None:
    speed = _measure(_add)
    assert isinstance(speed, Speed)
    assert speed.seconds == pytest.approx(8e-6)
    assert speed.share == pytest.approx(0.5)
    assert judge_speed(speed, TASK, MACHINE, at_least=0.45) is None
    words = str(judge_speed(speed, TASK, MACHINE, at_least=0.6))
    assert words == "a call took 8 µs and the reference's 4 µs: 50% of its speed, 60% wanted"


def test_faster_than_the_machine_earns_nothing() -> None:
    speed = _measure(_add, 1e-6)
    assert isinstance(speed, Speed)
    words = str(judge_speed(speed, TASK, MACHINE, at_least=0.1))
    assert "cannot take less than 2 µs" in words
    assert too_fast(Speed(1.81e-6, 1.0), TASK, MACHINE) is None  # within the slack
    assert too_fast(Speed(1.79e-6, 1.0), TASK, MACHINE) is not None
    assert MACHINE.least_seconds(640, 384) == pytest.approx(10e-6)  # here by the arithmetic
    # What fits into the cache may not have crossed the bus; no time at all is no speed either.
    cached = replace(MACHINE, cache_bytes=768.0)
    assert cached.least_seconds(0, 960) == pytest.approx(0.5e-6)
    assert cached.least_seconds(0, 768) == 0
    assert too_fast(Speed(0.0, 1.0), replace(TASK, flops=0), cached) is not None


def test_an_output_left_as_it_was_is_noticed() -> None:
    def half(problem: Problem) -> Array:
        problem.output[: SIZE // 2] = (problem.inputs[0] + problem.inputs[1])[: SIZE // 2]
        return problem.output

    assert _measure(half) == "32 of 64 numbers of the output were never written"
    assert _measure(lambda problem: problem.output) == (
        "64 of 64 numbers of the output were never written"
    )


def test_an_answer_from_memory_is_wrong_the_second_time() -> None:
    kept: list[Array] = []

    def remembers(problem: Problem) -> Array:
        kept.append(_add(problem).copy())
        return kept[0]

    assert "at index 0: expected" in str(_measure(remembers))
    kept.clear()
    assert isinstance(_measure(remembers, calls=1), Speed)


def test_every_timed_call_is_judged() -> None:
    calls = 0

    def tires(problem: Problem) -> Array:
        nonlocal calls
        calls += 1
        return _add(problem) if calls < 5 else problem.inputs[0]

    assert "at index" in str(_measure(tires))
    assert calls == 5


def test_no_problem_comes_twice_and_a_seed_gives_the_same_ones() -> None:
    rng = np.random.default_rng(3)
    problems = [TASK.problem(rng)[0].inputs[0].tobytes() for _ in range(20)]
    assert len(set(problems)) == 20
    again = TASK.problem(np.random.default_rng(3))[0].inputs[0].tobytes()
    assert again == problems[0]


@pytest.mark.parametrize(
    "got", [None, [0.0] * SIZE, np.zeros(SIZE), np.zeros(SIZE - 1, np.float32)], ids=str
)
def test_only_the_output_itself_is_taken_back(got: object) -> None:
    problem, want = TASK.problem(np.random.default_rng(0))
    assert wrong(TASK, problem, got, want) == "expected the output back, float32 of shape (64,)"


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_poison_is_not_a_number_and_is_counted(dtype: str) -> None:
    output = poisoned((3, 4), dtype)
    assert np.isnan(output).all()
    assert untouched(output).sum() == 12
    output[1] = 0
    output[2, 0] = np.nan  # a NaN that was computed has other bits
    assert untouched(output).sum() == 7


def test_whole_numbers_may_be_minus_one() -> None:
    task = KernelTask(
        make=lambda rng: [rng.integers(-2, 1, 8)],
        oracle=lambda inputs: inputs[0].copy(),
        dtype="int64",
        flops=0,
        moved=1,
        tolerance=0.0,
    )
    problem, want = task.problem(np.random.default_rng(0))
    assert (problem.output == -1).all()
    assert wrong(task, problem, want.copy(), want) is None
    assert wrong(task, problem, problem.output, want) is not None


HALVES = KernelTask(
    make=lambda rng: [to_bfloat16(rng.normal(size=8))],
    # The first number is not asked for.
    oracle=lambda inputs: np.r_[np.nan, 2 * from_bfloat16(inputs[0]).astype(np.float64)[1:]],
    dtype="bfloat16",
    flops=8,
    moved=32,
    tolerance=0.0,
)


def test_bfloat16_lies_on_the_host_as_its_bits() -> None:
    problem, want = HALVES.problem(np.random.default_rng(0))
    assert problem.output.dtype == np.uint16
    got = problem.output.copy()
    got[1:] = to_bfloat16(2 * from_bfloat16(problem.inputs[0]))[1:]
    assert wrong(HALVES, problem, got, want) is None
    got[3] ^= 1
    assert "at index 3" in str(wrong(HALVES, problem, got, want))
    got[3] = 0xFFFF
    assert "1 of 7 numbers of the output were never written" in str(
        wrong(HALVES, problem, got, want)
    )


def test_what_no_input_asks_for_must_stay() -> None:
    problem, want = HALVES.problem(np.random.default_rng(0))
    got = to_bfloat16(2 * from_bfloat16(problem.inputs[0]))
    words = wrong(HALVES, problem, got, want)
    assert words == "1 numbers of the output were written that no input asks for"


def test_rounding_to_bfloat16_is_torchs() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, 100_000, np.uint32)
    values = np.r_[bits.view(np.float32), 0.0, -0.0, np.inf, -np.inf, 1 + 2.0**-8, 1 + 3 * 2.0**-8]
    values = values.astype(np.float32)
    rounded = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(from_bfloat16(to_bfloat16(values)), rounded)
