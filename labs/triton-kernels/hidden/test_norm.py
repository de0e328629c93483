"""Hidden tests of `add_norm`, beside float64."""

from __future__ import annotations

import numpy as np

from .driving import FAR, compile_all, judge_norm, normed


def _inputs(rng, rows, size, scale=1.0):
    x, residual = rng.normal(size=(2, rows, size)) * scale
    return x, residual, rng.normal(size=size)


def test_sum(student, variant, seed):
    """The sum of two float16 numbers, rounded once, in place of the residual."""
    rng = np.random.default_rng(seed)
    x, residual, weight = _inputs(rng, 5, 48)
    judge_norm(student, variant, x, residual * 300, weight, 1e-5, 16, names="residual")


def test_norm(student, variant, seed):
    """Rows of unlike sizes, where the margin counts and where the rounding of the sum does."""
    rng = np.random.default_rng(seed + 1)
    x, residual, weight = _inputs(rng, 4, 96)
    judge_norm(student, variant, x, residual, weight, 1e-6, 24, order=seed)
    why = "a small row, so that eps counts"
    judge_norm(student, variant, x / 30, residual / 30, weight, 0.01, 24, because=why)
    _which_sum(student, variant, rng)


def _which_sum(student, variant, rng):
    """Sums of 2049 and 2051, which float16 rounds to 2048 and 2052; then 2049 alone.

    Weights are such that the right norm is nearly a float16 of its own, and the norm of the other
    sum one that is next to it. Where all are rounded down, the mean shows which sum it is of.
    """
    for larger in (3.0, 1.0):
        _one_sum(student, variant, rng, larger)


def _one_sum(student, variant, rng, larger):
    residual = np.full((1, 48), 2048.0) * rng.choice([-1.0, 1.0], (1, 48))
    odd = np.arange(48) % 2
    x = np.sign(residual) * np.where(odd, larger, 1.0)
    _, plain = normed(
        variant, x, residual, np.full(48, 0.0 if variant == "words" else 1.0), 0.0, 24
    )
    added = 1.0 if variant == "words" else 0.0
    choice = np.arange(1.8, 1.99, 2.0**-10).astype(np.float16).astype(float) - added
    choice = choice.astype(np.float16).astype(float)
    made = np.abs(plain[0])[:, None] * (choice + added)[None, :]
    off = np.abs(made - made.astype(np.float16).astype(float))
    weight = choice[np.array([rng.choice(np.flatnonzero(row < 1.5e-4)) for row in off])]
    why = f"the sums are 2049 and {2048 + larger:.0f}; norm and mean are of the sum that is asked"
    judge_norm(student, variant, x, residual, weight, 0.0, 24, because=why, tolerance=3e-4)


def test_any_size(student, variant, seed):
    """Sizes that are no powers of two, a row of one number, a row of zeros."""
    rng = np.random.default_rng(seed + 2)
    for rows, size, group in ((1, 4096, 2048), (1, 1, 1), (3, 33, 11), (2, 200, 100)):
        x, residual, weight = _inputs(rng, rows, size)
        judge_norm(student, variant, x, residual, weight, 1e-5, group, because=f"size {size}")
    judge_norm(student, variant, x * 0, residual * 0, weight, 1e-5, group, because="rows of zeros")


def test_far_rows(student, variant, seed):
    """Rows with gaps between them, and rows so far apart that offsets pass 2³¹."""
    rng = np.random.default_rng(seed + 3)
    x, residual, weight = _inputs(rng, 6, 20)
    judge_norm(student, variant, x, residual, weight, 1e-5, 10, stride=32, order=seed)
    judge_norm(student, variant, x, residual, weight, 1e-5, 10, stride=FAR, order=seed)


def test_compiles(student, variant):
    """Compiled for a Hopper, for rows of 4,096 numbers."""
    scalars = {"rows": 8, "size": 4096, "stride": 4096}
    if variant == "rope":
        scalars["group"] = 1024
    kinds = "x fp16\nresidual fp16\nweight fp16\nout fp16"
    compile_all(student, "add_norm_launch", {**scalars, "eps": 1e-6}, kinds, scalars)
