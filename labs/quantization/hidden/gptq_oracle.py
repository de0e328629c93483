"""The loop as the best that is left: what the columns to come should be, given all errors so far.

With the columns Q rounded, the output's error is least when the columns F that are left become
w_F + H_FF⁻¹ H_FQ (w_Q - ŵ_Q), w being the weights as they were given. That is solved anew for
each column, in fractions.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from .grid_oracle import TooClose, code_of, number_of, remembered, search_row

MOST_CONDITION = 1e4  # above it float64 loses too many digits for the margins of the tests
Matrix = list[list[Fraction]]


def solve(matrix: Matrix, right: Matrix) -> Matrix:
    """X with matrix · X = right, by elimination."""
    size = len(matrix)
    rows = [[*a, *b] for a, b in zip(matrix, right, strict=True)]
    for k in range(size):
        pivot = next(i for i in range(k, size) if rows[i][k] != 0)
        rows[k], rows[pivot] = rows[pivot], rows[k]
        rows[k] = [value / rows[k][k] for value in rows[k]]
        for i in range(size):
            if i != k and rows[i][k] != 0:
                factor = rows[i][k]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[k], strict=True)]
    return [row[size:] for row in rows]


def damped(variant: str, hessian: Any, damp: float) -> Matrix:
    """The hessian with its damping on the live columns."""
    h = [[Fraction(value) for value in row] for row in hessian]
    diagonal = sorted(h[k][k] for k in range(len(h)) if h[k][k] != 0)
    if not diagonal:
        return h
    count = len(diagonal)
    if variant == "dense":
        size = sum(diagonal, Fraction(0)) / count
    elif variant == "doubled":
        size = diagonal[-1]
    else:
        size = (diagonal[(count - 1) // 2] + diagonal[count // 2]) / 2
    for k in range(len(h)):
        if h[k][k] != 0:
            h[k][k] += Fraction(damp) * size
    return h


def _check(h: Matrix, live: Sequence[int]) -> None:
    if live:
        matrix = np.array([[float(h[i][j]) for j in live] for i in live])
        if np.linalg.cond(matrix) > MOST_CONDITION:
            raise TooClose


def loop(
    variant: str, weights: Any, hessian: Any, bits: int, ladder: Sequence[float], damp: float,
    order: Sequence[int], group_of: Sequence[int], early: bool = False,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Visit the columns in `order`; column k is of group `group_of[k]`.

    The grids are found before the loop with `early`, else when the first column of a group is
    visited.
    """
    given = [[Fraction(value) for value in row] for row in weights]
    h = damped(variant, hessian, damp)
    dead = [hessian[k][k] == 0 for k in range(len(h))]
    _check(h, [k for k in order if not dead[k]])
    groups = max(group_of) + 1
    members = [[k for k in order if group_of[k] == g] for g in range(groups)]
    codes = [[0] * len(order) for _ in given]
    grids: list[dict[int, Any]] = [{} for _ in given]
    errors: list[dict[int, Fraction]] = [{} for _ in given]  # of live columns, from the given

    def find(row: int, g: int, now: Sequence[Fraction], exact: bool) -> None:
        part = [now[k] for k in members[g]]
        importance = [hessian[k][k] for k in members[g]]
        grids[row][g] = search_row(variant, part, importance, bits, ladder, exact)

    if early:
        for row, now in enumerate(given):
            for g in range(groups):
                find(row, g, now, True)
    for place, k in enumerate(order):
        left = [j for j in order[place:] if not dead[j]]
        done = [j for j in order[:place] if not dead[j]]
        pay: Matrix = []
        if left and done:
            pay = solve([[h[i][j] for j in left] for i in left],
                        [[h[i][j] for j in done] for i in left])  # fmt: skip
        for row, start in enumerate(given):
            now, touched = list(start), set()
            for j, shares in zip(left, pay, strict=False):
                moved = [s * errors[row][q] for s, q in zip(shares, done, strict=True)]
                if any(moved):
                    touched.add(j)
                now[j] += sum(moved, Fraction(0))
            g = group_of[k]
            if g not in grids[row]:
                find(row, g, now, not touched.intersection(members[g]))
            code = code_of(variant, now[k], grids[row][g], bits, k not in touched)
            codes[row][k] = code
            if not dead[k]:
                errors[row][k] = start[k] - number_of(code, grids[row][g])
    return {
        "codes": np.array(codes),
        "scales": np.array([[float(one[g][0]) for g in range(groups)] for one in grids]),
        "zeros": np.array([[one[g][1] for g in range(groups)] for one in grids]),
    }


@remembered
def gptq(
    variant: str, weights: Any, hessian: Any, bits: int, group: int, ladder: Sequence[float],
    damp: float,
) -> dict[str, np.ndarray]:  # fmt: skip
    """What `gptq` must return."""
    order = range(len(hessian))
    return loop(variant, weights, hessian, bits, ladder, damp, order, [k // group for k in order])
