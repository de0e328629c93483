"""Hidden tests of `gemv`, beside products in float64."""

from __future__ import annotations

import re

import numpy as np

from labkit.gpu.interpreted import ptx

from .driving import FAR, judge_gemv, launch_gemv
from .packing import Matrix


def _x(rng, k):
    return rng.integers(-8, 9, k) / 8


def _small(variant, rng, n, k, group):
    """A matrix whose codes are at most 7: what others stand for is for two tests alone."""
    return Matrix(variant, rng, n, k, group, rng.integers(0, 8, (n, k)))


def test_places(student, variant, seed):
    """One column at a time: which code of a word it meets."""
    rng = np.random.default_rng(seed)
    for group in (32, 64):
        codes = rng.integers(0, 16, (3, group))
        matrix = Matrix(variant, rng, 3, group, group, codes, plain=True)
        for column in rng.permutation(group)[: 8 if group == 32 else 4]:
            x = np.zeros(group)
            x[column] = 1
            why = f"x is 1 in column {column} alone, whose codes are {codes[:, column].tolist()}"
            judge_gemv(student, variant, matrix, x, because=why)


def test_grids(student, variant, seed):
    """Each group of each row has its own grid; more groups than a word of zeros holds."""
    rng = np.random.default_rng(seed + 1)
    matrix = Matrix(variant, rng, 5, 32 * 11, 32)
    judge_gemv(student, variant, matrix, _x(rng, matrix.k), order=seed)
    matrix, x = Matrix(variant, rng, 1, 32 * 11, 32), np.zeros(32 * 11)
    for group, target in enumerate([384.0, *[0.1] * 9, -384.0]):
        column = 32 * group + int(np.abs(matrix.weights[0, 32 * group : 32 * group + 32]).argmax())
        x[column] = target / matrix.weights[0, column]
    why = "a large sum, nine small ones, and what takes the large one away again"
    judge_gemv(student, variant, matrix, x, because=why)
    for groups, group in ((8, 32), (3, 64), (3, 128)):
        matrix = Matrix(variant, rng, 3, groups * group, group)
        judge_gemv(
            student, variant, matrix, _x(rng, matrix.k), because=f"{groups} groups of {group}"
        )


def test_last_group(student, variant, seed):
    """A last group of one column, of all but one, and one that is the only group."""
    rng = np.random.default_rng(seed + 2)
    for k, group in ((33, 32), (63, 32), (5, 64), (200, 128)):
        matrix = _small(variant, rng, 4, k, group)
        why = f"{k} columns in groups of {group}"
        judge_gemv(student, variant, matrix, _x(rng, k), because=why)


def test_any_rows(student, variant, seed):
    """One row, numbers of rows that no tile divides, and more columns than a tile has."""
    rng = np.random.default_rng(seed + 3)
    for n, k in ((1, 1), (37, 64), (65, 32), (3, 541)):
        matrix = _small(variant, rng, n, k, 32)
        judge_gemv(
            student, variant, matrix, _x(rng, k), order=seed, because=f"{n} rows, {k} columns"
        )


def test_far_rows(student, variant, seed):
    """Rows of words with gaps between them, and so far apart that offsets pass 2³¹."""
    rng = np.random.default_rng(seed + 4)
    matrix = _small(variant, rng, 6, 70, 32)
    judge_gemv(student, variant, matrix, _x(rng, 70), stride=20, order=seed)
    judge_gemv(student, variant, matrix, _x(rng, 70), stride=FAR, order=seed)


def test_read_once(student, variant, seed):
    """The bytes read of `words` are those that it has."""
    rng = np.random.default_rng(seed + 5)
    matrix = Matrix(variant, rng, 40, 128, 64)
    ran = launch_gemv(student, variant, matrix, _x(rng, 128))
    if ran.read("words") != 4 * matrix.words.size:
        student.fail(
            f"called {ran.said}\nexpected {4 * matrix.words.size} bytes read of `words`, each word "
            f"once\ngot {ran.read('words')}"
        )


def test_wide_loads(student, variant, seed):
    """The PTX for a Hopper loads four words at once."""
    scalars = {"n": 4096, "k": 4096, "words_stride": 512}
    grids = {"offsets": "fp16"} if variant == "rope" else {"zeros": "i32"}
    kinds = {"x": "fp16", "words": "i32", "scales": "fp16", **grids, "y": "fp16"}
    text = ptx(student, "gemv_launch", {**scalars, "group": 128}, kinds, scalars)
    lines = text.splitlines()
    wide = any("ld.global" in line and ".v4.b32" in line for line in lines)
    if not wide and "cp.async.cg" not in text:
        student.fail(
            "compiled the kernel of gemv_launch(n=4096, k=4096, group=128, words_stride=512) for "
            "sm_90\nexpected ld.global.v4.b32 or cp.async.cg\ngot no load of 16 bytes: the widest "
            f"is {_widest(lines)} (a thread loads 16 bytes if its warps' tile has 4 neighbouring "
            "words for each thread: a larger tile, or fewer warps)"
        )


def _widest(lines):
    """The load of the most bytes among lines of PTX."""
    found = [line.split("ld.global.")[1].split()[0] for line in lines if "ld.global." in line]

    def size(kind):
        parts = kind.split(".")
        many = next((int(part[1:]) for part in parts if re.fullmatch(r"v\d", part)), 1)
        return many * int(re.sub(r"\D", "", parts[-1]))

    return f"ld.global.{max(found, key=size)}" if found else "none of global memory"
