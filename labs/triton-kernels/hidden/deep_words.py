"""Three bits over words with exceptions: words, weights and launches."""

from __future__ import annotations

from typing import Any

import numpy as np

from labkit.gpu.interpreted import Buffer, Ran, compare, output, run

from .driving import FAR, TOLERANCE, half


def pack(codes: np.ndarray, group: int, rng: np.random.Generator) -> np.ndarray:
    """The stream of each group, bit by bit; what is no column has any bits."""
    n, k = codes.shape
    groups = -(-k // group)
    full = rng.integers(0, 8, (n, groups * group))
    full[:, :k] = codes
    words = np.zeros((n, groups * 3 * group // 32), np.int64)
    for column in range(groups * group):
        for i in range(3):
            bit = column // group * 3 * group + column % group * 3 + i
            words[:, bit // 32] |= (full[:, column] >> i & 1) << bit % 32
    return np.where(words >= 1 << 31, words - (1 << 32), words)


class Matrix:
    """A random matrix with exceptions, and its weights in float64."""

    def __init__(
        self, rng: np.random.Generator, n: int, k: int, group: int, exceptions: int,
        listed: float = 0.6, plain: bool = False,
    ) -> None:  # fmt: skip
        """Draw one; a place of the list names a column with the chance `listed`."""
        self.n, self.k, self.group = n, k, group
        groups = -(-k // group)
        codes = rng.integers(0, 8, (n, k))
        self.words = pack(codes, group, rng)
        # All bits of a float16 are in use, so that a weight is none.
        self.scales = 2.0 ** rng.integers(-4, 0, (n, groups)) * rng.integers(
            1025, 2048, (n, groups)
        )
        self.scales, self.zeros = self.scales / 1024, half(rng.random((n, groups)) * 7)
        if plain:
            self.scales, self.zeros = self.scales * 0 + 0.5, self.zeros * 0
        self.columns = np.full((n, exceptions), -1)
        self.values = np.full((n, exceptions), np.nan)
        wide = (np.repeat(each, group, 1)[:, :k] for each in (self.zeros, self.scales))
        zero, scale = wide
        self.weights = (codes - zero) * scale
        for i in range(n):
            places = np.flatnonzero(rng.random(exceptions) < listed)[:k]
            self.columns[i, places] = rng.permutation(k)[: len(places)]
            self.values[i, places] = rng.integers(-40, 41, len(places)) / 4
            self.weights[i, self.columns[i, places]] = self.values[i, places]


def judge(
    student: Any, matrix: Matrix, x: Any, stride: int | None = None, order: int = 0,
    because: str = "",
) -> Ran:  # fmt: skip
    """Launch and compare."""
    x, stride = half(x), stride or matrix.words.shape[1]
    scalars = {
        "n": matrix.n, "k": matrix.k, "words_stride": stride, "exceptions": matrix.columns.shape[1],
    }  # fmt: skip
    buffers = {
        "x": Buffer("fp16", x),
        "words": Buffer("i32", matrix.words, stride=stride),
        "scales": Buffer("fp16", matrix.scales),
        "zeros": Buffer("fp16", matrix.zeros),
        "columns": Buffer("i32", matrix.columns),
        "values": Buffer("fp16", matrix.values),
        "y": output("fp16", matrix.n),
    }
    sizes = {**scalars, "group": matrix.group}
    ran = run(student, "deep_launch", sizes, buffers, scalars, order=order)
    compare(student, ran, "y", matrix.weights @ x, TOLERANCE, because)
    return ran


def _x(rng, k):
    return rng.integers(-8, 9, k) / 8


def numbers(student, rng):
    """Each column alone, then all of them with exceptions."""
    matrix = Matrix(rng, 3, 32, 32, 1, listed=0.0, plain=True)
    for column in (0, 10, 20, 21, 31, int(rng.integers(32))):
        x = np.zeros(32)
        x[column] = 1
        judge(student, matrix, x, because=f"x is 1 in column {column} alone")
    for group in (32, 64, 128):
        matrix = Matrix(rng, 5, 2 * group, group, 3)
        judge(student, matrix, _x(rng, 2 * group), because=f"groups of {group}, 3 exceptions")
    matrix, x = Matrix(rng, 1, 128, 32, 1, listed=0.0), np.zeros(128)
    for group, target in enumerate([384.0, 0.1, 0.1, -384.0]):
        column = 32 * group + int(np.abs(matrix.weights[0, 32 * group : 32 * group + 32]).argmax())
        x[column] = target / matrix.weights[0, column]
    why = "a large sum, two small ones, and what takes the large one away again"
    judge(student, matrix, x, because=why)


def special(student, rng):
    """Empty places of the lists, with NaN beside them; columns behind the last."""
    for k, exceptions, listed in ((40, 6, 0.4), (33, 2, 0.5), (95, 1, 1.0)):
        matrix = Matrix(rng, 6, k, 32, exceptions, listed)
        judge(
            student, matrix, _x(rng, k), because=f"{k} columns, {exceptions} places for exceptions"
        )


def edges(student, rng):
    """No exceptions at all; all of a row's columns are exceptions; one that straddles."""
    judge(student, Matrix(rng, 3, 64, 64, 4, 0.0), _x(rng, 64), because="no row has an exception")
    judge(student, Matrix(rng, 2, 9, 32, 9, 1.0), _x(rng, 9), because="all columns are exceptions")
    matrix = Matrix(rng, 2, 32, 32, 1, 0.0)
    weights = matrix.weights.copy()
    matrix.columns[:, 0], matrix.values[:, 0] = (10, 31), 3.0
    weights[0, 10] = weights[1, 31] = 3.0
    matrix.weights = weights
    judge(student, matrix, _x(rng, 32), because="exceptions in the columns 10 and 31")


def far(student, rng):
    """Rows of words far apart."""
    matrix = Matrix(rng, 6, 50, 32, 2)
    judge(student, matrix, _x(rng, 50), stride=11, order=3)
    judge(student, matrix, _x(rng, 50), stride=FAR, order=4)


def any_sizes(student, rng):
    """Rows and columns that no tile divides."""
    for n, k, group, exceptions in ((1, 1, 32, 1), (35, 70, 64, 5), (17, 130, 128, 19)):
        matrix = Matrix(rng, n, k, group, exceptions)
        judge(student, matrix, _x(rng, k), order=n, because=f"n {n}, k {k}, group {group}")
