"""Launches of the tasks, on inputs of a test's choice."""

from __future__ import annotations

from typing import Any

import numpy as np

from labkit.gpu.interpreted import Buffer, Ran, compare, output, ptx, run

from .packing import Matrix

# One rounding to float16 is at most 4.9e-4, sums in another order far less; two roundings are more.
TOLERANCE = 6e-4
FAR = (1 << 29) + 16  # elements between rows, so that the offset of row 4 passes 2³¹


def half(values: Any) -> np.ndarray:
    """Numbers rounded to float16, in float64."""
    return np.asarray(values, np.float64).astype(np.float16).astype(np.float64)


def compile_all(
    student: Any, plan: str, sizes: dict[str, Any], kinds: str, scalars: dict[str, int]
) -> None:
    """Compile the kernel of every launch; `kinds` is lines of a name and a type."""
    found = dict(line.split() for line in kinds.strip().splitlines())
    names = student.call("launches_of", plan, sizes, said=lambda: f"{plan}({sizes})")
    for launch in range(len(names)):
        ptx(student, plan, sizes, found, scalars, launch)


# ---- norm


def normed(
    variant: str, x: Any, residual: Any, weight: Any, eps: float, group: int
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The sum and the norm of each row, in float64."""
    total = np.asarray(x) + np.asarray(residual)
    rounded = half(total)
    if variant == "words":
        root = np.sqrt((rounded**2).mean(1, keepdims=True) + eps)
        return rounded, rounded / root * (1 + np.asarray(weight))
    if variant == "sinks":
        return rounded, total / (np.sqrt((total**2).mean(1, keepdims=True)) + eps) * weight
    parts = total.reshape(len(total), -1, group)
    parts = parts / np.sqrt((parts**2).mean(2, keepdims=True) + eps)
    return rounded, parts.reshape(total.shape) * weight


def judge_norm(
    student: Any, variant: str, x: Any, residual: Any, weight: Any, eps: float, group: int,
    stride: int | None = None, order: int = 0, because: str = "", names: str = "residual out",
    tolerance: float = TOLERANCE,
) -> None:  # fmt: skip
    """Launch `add_norm` and compare the outputs in `names`."""
    x, residual, weight = half(x), half(residual), half(weight)
    rows, size = x.shape
    stride = stride or size
    sizes: dict[str, Any] = {"rows": rows, "size": size, "stride": stride, "eps": eps}
    scalars = {"rows": rows, "size": size, "stride": stride}
    if variant == "rope":
        sizes["group"] = scalars["group"] = group
    buffers = {
        "x": Buffer("fp16", x, stride=stride),
        "residual": Buffer("fp16", residual, stride=stride, writable=True),
        "weight": Buffer("fp16", weight),
        "out": output("fp16", rows, size, stride=stride),
    }
    ran = run(student, "add_norm_launch", sizes, buffers, scalars, order=order)
    total, norm = normed(variant, x, residual, weight, eps, group)
    if "residual" in names:
        compare(student, ran, "residual", total, 0.0, because)
    if "out" in names:
        compare(student, ran, "out", norm, tolerance, because)


# ---- gemv


def launch_gemv(
    student: Any, variant: str, matrix: Matrix, x: np.ndarray, stride: int | None = None,
    order: int = 0,
) -> Ran:  # fmt: skip
    """Launch `gemv`."""
    stride = stride or matrix.words.shape[1]
    grids = Buffer("fp16" if variant == "rope" else "i32", matrix.grids)
    buffers = {
        "x": Buffer("fp16", x),
        "words": Buffer("i32", matrix.words, stride=stride),
        "scales": Buffer("fp16", matrix.scales),
        ("offsets" if variant == "rope" else "zeros"): grids,
        "y": output("fp16", matrix.n),
    }
    scalars = {"n": matrix.n, "k": matrix.k, "words_stride": stride}
    sizes = {**scalars, "group": matrix.group}
    return run(student, "gemv_launch", sizes, buffers, scalars, order=order)


def judge_gemv(
    student: Any, variant: str, matrix: Matrix, x: Any, stride: int | None = None, order: int = 0,
    because: str = "",
) -> Ran:  # fmt: skip
    """Launch `gemv` and compare."""
    x = half(x)
    ran = launch_gemv(student, variant, matrix, x, stride, order)
    compare(student, ran, "y", matrix.weights @ x, TOLERANCE, because)
    return ran


# ---- split


def sums_of_splits(x: np.ndarray, weight: np.ndarray, splits: int) -> np.ndarray:
    """What `partials` must hold, in float64 [splits, rows, n]."""
    found = np.zeros((splits, len(x), len(weight)))
    for begin in range(0, x.shape[1], 64):
        block = slice(begin, begin + 64)
        found[begin // 64 % splits] += x[:, block] @ weight[:, block].T
    return found


def launch_product(
    student: Any, x: np.ndarray, weight: np.ndarray, splits: int, order: int = 0,
    left: np.ndarray | None = None,
) -> Ran:  # fmt: skip
    """Launch `partial` and `combine`, with a workspace of what was left."""
    (rows, k), n = x.shape, len(weight)
    scalars = {"rows": rows, "n": n, "k": k, "splits": splits}
    workspace = Buffer("fp32", left, (1, splits * rows * n), writable=True)
    buffers = {
        "x": Buffer("fp16", x.reshape(1, -1)),
        "weight": Buffer("fp16", weight.reshape(1, -1)),
        "partials": workspace,
        "y": output("fp16", rows * n),
    }
    return run(student, "product_launch", scalars, buffers, scalars, order=order)


def judge_product(
    student: Any, x: Any, weight: Any, splits: int, order: int = 0, because: str = "",
    left: np.ndarray | None = None, names: str = "partials y", tolerance: float = TOLERANCE,
) -> Ran:  # fmt: skip
    """Launch both kernels and compare the outputs in `names`."""
    x, weight = half(x), half(weight)
    ran = launch_product(student, x, weight, splits, order, left)
    sums = sums_of_splits(x, weight, splits)
    if "partials" in names:
        compare(student, ran, "partials", sums.reshape(1, -1), 1e-5, because)
    if "y" in names:
        total = np.zeros(sums.shape[1:], np.float32)
        for part in sums:
            total = total + part.astype(np.float32)
        compare(student, ran, "y", total.astype(np.float64).reshape(1, -1), tolerance, because)
    return ran
