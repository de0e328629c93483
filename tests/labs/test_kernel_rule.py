"""The rule for GPU kernels, with kernels in NumPy and a clock of the test's own."""

from __future__ import annotations

import numpy as np
import pytest

from labkit.kernels import (
    Answer,
    Array,
    KernelTask,
    Problem,
    Roofline,
    Speed,
    judge_speed,
    measure,
    poisoned,
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
WAY = 5e-3  # seconds there and back


class Time:
    """A clock that only kernels move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def kernel(self, seconds: float, work: Answer) -> Answer:
        def answer(problem: Problem) -> object:
            self.now += WAY + seconds
            return work(problem)

        return answer


def _add(problem: Problem) -> Array:
    problem.output[:] = problem.inputs[0] + problem.inputs[1]
    return problem.output


def _measure(work: Answer, seconds: float, calls: int = 5) -> Speed | str:
    clock = Time()
    return measure(
        TASK,
        clock.kernel(seconds, work),
        clock.kernel(4e-6, _add),
        clock.kernel(0.0, lambda problem: problem.output),
        np.random.default_rng(3),
        calls=calls,
        clock=clock,
    )


def test_a_right_kernel_gets_its_time_without_the_way() -> None:
    speed = _measure(_add, 8e-6)
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
    # Time that the idle call ate up, or a clock that ran backwards, is no speed either.
    assert too_fast(Speed(-1e-6, 1.0), TASK, MACHINE) is not None
    assert MACHINE.least_seconds(640, 384) == pytest.approx(10e-6)  # here by the arithmetic


def test_an_output_left_as_it_was_is_noticed() -> None:
    def half(problem: Problem) -> Array:
        problem.output[: SIZE // 2] = (problem.inputs[0] + problem.inputs[1])[: SIZE // 2]
        return problem.output

    assert _measure(half, 8e-6) == "32 of 64 numbers of the output were never written"
    assert _measure(lambda problem: problem.output, 8e-6) == (
        "64 of 64 numbers of the output were never written"
    )


def test_an_answer_from_memory_is_wrong_the_second_time() -> None:
    kept: list[Array] = []

    def remembers(problem: Problem) -> Array:
        kept.append(_add(problem).copy())
        return kept[0]

    assert "at index 0: expected" in str(_measure(remembers, 8e-6))
    kept.clear()
    assert isinstance(_measure(remembers, 8e-6, calls=1), Speed)


def test_every_timed_call_is_judged() -> None:
    calls = 0

    def tires(problem: Problem) -> Array:
        nonlocal calls
        calls += 1
        return _add(problem) if calls < 5 else problem.inputs[0]

    assert "at index" in str(_measure(tires, 8e-6))
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
    assert wrong(problem, got, want, 1e-5) == "expected the output back, float32 of shape (64,)"


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_poison_is_not_a_number_and_is_counted(dtype: str) -> None:
    output = poisoned((3, 4), dtype)
    assert np.isnan(output).all()
    assert untouched(output) == 12
    output[1] = 0
    output[2, 0] = np.nan  # a NaN that was computed has other bits
    assert untouched(output) == 7


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
    assert wrong(problem, want.copy(), want, 0.0) is None
    assert wrong(problem, problem.output, want, 0.0) is not None
