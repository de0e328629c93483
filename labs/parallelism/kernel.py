"""Judge the frontier task: a sum of four ranks' terms in one shot, with residual and norm.

    python labs/parallelism/kernel.py NOTEBOOK [--course-key-file FILE]
    python labs/parallelism/kernel.py NOTEBOOK --interpreted

The cell with the line `# frontier: kernel` is compiled in the sandbox that grading uses, which has
no GPU. What it is compiled to runs on the first GPU of this machine, in a process that holds none
of the reader's Python, on inputs drawn for each call from the course's seed. `--interpreted` needs
no GPU: it runs the cell in Triton's interpreter, says whether it is right, and gives no bonus.

The four terms lie in the memory of one GPU and are written before the kernel starts. So the judge
sees the kernel's arithmetic, its order and its own traffic, and neither a link nor a meeting. The
61 tokens of a decode step take the reference 2.3 µs on an H200, in a graph. That is too little to
be told from another kernel's time launch by launch, so there are more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from labkit.gpu.frontier import KERNEL_MARK, compile_cell, run
from labkit.gpu.interpreted import Buffer, compare, output
from labkit.gpu.interpreted import run as interpret
from labkit.gpu.kernels import Array, KernelTask, Roofline, judge_speed, measure
from labkit.gpu.runner import Argument, Pointer, Runner
from labkit.reader.kernel_child import PACKAGES, harness
from labkit.reader.lab import load_lab
from labkit.reader.subject import Subject, Wrong, in_child
from labkit.sandbox.process import Child, Limits, Surroundings

LAB = load_lab(Path(__file__).parent)
NAME, RANKS, EPS = "one_shot", 4, 1e-6
SIZES = {"tokens": 1021, "width": 4096}  # 8 MB a term: more than a decode step has, see below
SMALL = ({"tokens": 5, "width": 256}, {"tokens": 1, "width": 1024})  # in the interpreter
BYTES = 2  # of a float16
TOLERANCE = 2e-3  # two roundings to float16
AT_LEAST = 0.5  # of the reference's speed; less earns nothing
BONUS = 10.0
INPUTS = (*(f"term_{rank}" for rank in range(RANKS)), "residual", "weight")
INTERPRETING = Limits(call_seconds=60.0, wall_seconds=120.0, cpu_seconds=100)

# The interpreter takes a list of launches, each with its kernel's name.
LAUNCHES = f"""
def launches(tokens, width):
    return [{{"kernel": "{NAME}", **launch(tokens=tokens, width=width)}}]
"""

REFERENCE = """
import triton
import triton.language as tl


@triton.jit
def one_shot(
    term_0, term_1, term_2, term_3, residual, weight, stream, normed, WIDTH: tl.constexpr
):
    column = tl.arange(0, WIDTH)
    place = tl.program_id(0) * WIDTH + column
    # All five loads are on their way before the first is waited for.
    first = tl.load(term_0 + place).to(tl.float32)
    second = tl.load(term_1 + place).to(tl.float32)
    third = tl.load(term_2 + place).to(tl.float32)
    fourth = tl.load(term_3 + place).to(tl.float32)
    old = tl.load(residual + place).to(tl.float32)
    scale = tl.load(weight + column).to(tl.float32)
    total = old + fourth + third + second + first
    tl.store(stream + place, total.to(tl.float16))
    mean = tl.sum(total * total, 0) / WIDTH
    tl.store(normed + place, (total / tl.sqrt(mean + 1e-6) * scale).to(tl.float16))


def launch(tokens, width):
    return {
        "grid": (tokens,), "constants": {"WIDTH": width}, "num_warps": 8, "num_stages": 1,
    }
"""


def arguments() -> dict[str, Argument]:
    """What the kernel may take; both outputs lie in one buffer, one behind the other."""
    tokens, width = SIZES["tokens"], SIZES["width"]
    found: dict[str, Argument] = {name: Pointer("*fp16", i) for i, name in enumerate(INPUTS)}
    found["stream"] = Pointer("*fp16", len(INPUTS))
    found["normed"] = Pointer("*fp16", len(INPUTS), tokens * width * BYTES)
    return found | {"tokens": tokens}


def make(rng: np.random.Generator, tokens: int, width: int) -> list[Array]:
    """Draw terms and residual, float16 [tokens, width], and weight [width].

    In two columns of three rank 2 has what rank 0 has, with the other sign, and the others have
    little: there another order of the sum gives other bits. The last token's numbers are so small
    that `EPS` counts.
    """
    *terms, residual = rng.normal(size=(RANKS + 1, tokens, width))
    cancels = np.arange(width) % 3 > 0
    large = rng.uniform(1e4, 3e4, (tokens, width)) * rng.choice((-1.0, 1.0), (tokens, width))
    terms[0] = np.where(cancels, large, terms[0]).astype(np.float16)
    terms[2] = np.where(cancels, -terms[0], terms[2])
    for one in (terms[1], terms[3], residual):
        one *= np.where(cancels, 0.02, 1.0)
    size = np.where(np.arange(tokens) < tokens - 1, 1.0, 1e-3)[:, None]
    rows = [(one * size).astype(np.float16) for one in (*terms, residual)]
    return [*rows, rng.normal(size=width).astype(np.float16)]


def summed(inputs: list[Array]) -> Array:
    """Return the sum in float32: the residual, then term by term from the last rank to rank 0."""
    total = inputs[RANKS].astype(np.float32)
    for one in reversed(inputs[:RANKS]):
        total += one.astype(np.float32)
    return total


def oracle(inputs: list[Array]) -> Array:
    """Return stream and normed, float64 [2, tokens, width]."""
    total = summed(inputs).astype(np.float64)
    scale = np.sqrt((total**2).mean(1, keepdims=True) + EPS)
    return np.stack([total, total / scale * inputs[-1].astype(np.float64)])


def judge_order(stream: Array, inputs: list[Array], said: str) -> None:
    """Complain unless a stream has the bits that every rank has to have.

    Raises:
        Wrong: some of its numbers have other bits.
    """
    off = stream.astype(np.float16) != summed(inputs).astype(np.float16)
    if off.any():
        raise Wrong(
            f"called {said}\nexpected `stream` to be the float32 sum in the order residual, "
            f"term_{RANKS - 1}, …, term_0, rounded once\ngot other bits in {int(off.sum())} of "
            f"{off.size} numbers: ranks that add up in different orders disagree"
        )


def judge_interpreted(source: str, seed: int, unsafe_local: bool = False) -> None:
    """Run a kernel's cell in Triton's interpreter on small inputs, and print what it read.

    Raises:
        Wrong: it is wrong, or reads or writes what it may not.
    """
    with Child(Surroundings(PACKAGES), INTERPRETING, unsafe_local=unsafe_local) as child:
        ask = in_child(child)
        cells = [["interpreter", harness()], ["kernel", source], ["launches", LAUNCHES]]
        loaded = ask({"op": "load", "cells": cells, "readable": True})
        if "error" in loaded:
            raise Wrong(f"running the cell: {loaded['error']}")
        for number, sizes in enumerate(SMALL):
            shape = sizes["tokens"], sizes["width"]
            inputs = make(np.random.default_rng(seed + number), *shape)
            buffers = dict(zip(INPUTS, (Buffer("fp16", one) for one in inputs), strict=True))
            buffers |= {"stream": output("fp16", *shape), "normed": output("fp16", *shape)}
            scalars = {"tokens": sizes["tokens"]}
            subject, (stream, normed) = Subject(ask), oracle(inputs)
            ran = interpret(subject, "launches", sizes, buffers, scalars, order=seed)
            compare(subject, ran, "stream", stream, TOLERANCE)
            judge_order(ran.data["stream"], inputs, ran.said)
            compare(subject, ran, "normed", normed, TOLERANCE)
            each = {name: ran.read(name) for name in INPUTS}
            print(f"{shape}: right; bytes read: {each}")


def judge(
    source: str, seed: int, unsafe_local: bool = False, interpreted: bool = False, calls: int = 9
) -> float:
    """Return the bonus of a kernel's cell, on inputs of a seed; 0 where it is interpreted.

    Raises:
        Wrong: it does not compile, is wrong, or is slower than half of the reference's speed.
        NoGpu: there is no GPU here.
    """
    if interpreted:
        judge_interpreted(source, seed, unsafe_local)
        return 0.0
    tokens, width = SIZES["tokens"], SIZES["width"]
    moved = (RANKS + 3) * tokens * width * BYTES + width * BYTES

    def drawn(rng: np.random.Generator) -> list[Array]:
        return make(rng, tokens, width)

    task = KernelTask(drawn, oracle, "float16", 0, moved, TOLERANCE)
    with Runner() as reader, Runner() as reference:
        for runner, cell in ((reference, REFERENCE), (reader, source)):
            launch = compile_cell(
                cell, NAME, arguments(), SIZES, runner.device, unsafe_local=unsafe_local
            )
            runner.load(launch)
        rng = np.random.default_rng(seed)
        problem, _ = task.problem(rng)
        left, _ = reader.run(problem)
        judge_order(left[0], problem.inputs, f"{NAME} on {tokens} tokens")
        speed = measure(task, reader.run, reference.run, rng, calls=calls)
    if isinstance(speed, str):
        raise Wrong(speed)
    # All of it fits an H200's cache, so no rate of the memory bounds the time from below.
    complaint = judge_speed(speed, task, Roofline(float("inf"), float("inf")), AT_LEAST)
    if complaint is not None:
        raise Wrong(complaint)
    print(f"{reader.device.name}: {moved / 1e6:.1f} MB")
    for name, seconds in (("yours", speed.seconds), ("the reference", speed.reference)):
        print(f"{name:13}  {seconds * 1e6:6.1f} µs")
    bonus = BONUS * min(1.0, speed.share)
    print(f"bonus: {bonus:.1f} of {BONUS:.0f}")
    return bonus


def main() -> Any:
    """Judge the notebook that the command line names."""
    switches = ("unsafe_local", "interpreted")
    return run(LAB, __doc__.partition("\n")[0], judge, KERNEL_MARK, switches)


if __name__ == "__main__":
    main()
