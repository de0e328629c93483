"""Hidden tests of `partial` and `combine`, beside sums in float64."""

from __future__ import annotations

import re

import numpy as np

from labkit.gpu.interpreted import ptx

from .driving import judge_product, launch_product


def _inputs(rng, rows, n, k):
    return rng.integers(-8, 9, (rows, k)) / 8, rng.integers(-8, 9, (n, k)) / 8


def test_partial_sums(student, variant, seed):
    """What each split leaves in the workspace."""
    rng = np.random.default_rng(seed)
    for rows, n, k, splits in ((2, 5, 320, 2), (1, 70, 200, 3)):
        x, weight = _inputs(rng, rows, n, k)
        judge_product(student, x, weight, splits, order=seed, names="partials")


def test_product(student, variant, seed):
    """The product: one row, sixteen rows, tails in every direction."""
    rng = np.random.default_rng(seed + 1)
    for rows, n, k, splits in ((16, 65, 130, 2), (3, 1, 1, 1), (7, 64, 64, 1), (5, 130, 65, 2)):
        x, weight = _inputs(rng, rows, n, k)
        why = f"{rows} rows, n {n}, k {k}, {splits} splits"
        judge_product(student, x, weight, splits, order=seed, because=why, names="y")


def test_order_of_sums(student, variant, seed):
    """Sums of which float32 loses a part, another one in each order."""
    rng = np.random.default_rng(seed + 2)
    for sums in (
        [4096.0, 1, 1, -4096.0], [1, 4096.0, 1, -4096.0, 1], [4096.0, 1, 1, 1, -4096.0, 1, 1]
    ):  # fmt: skip
        x = np.zeros((2, 64 * len(sums)))
        weight = np.zeros((3, 64 * len(sums)))
        for block, value in enumerate(sums):
            place = 64 * block + int(rng.integers(64))
            x[:, place] = abs(value)
            weight[:, place] = value
        why = f"the sums are {[value * abs(value) for value in sums]}"
        ran = judge_product(student, x, weight, len(sums), order=seed, because=why, tolerance=0.0)
        _one_by_one(student, ran, len(sums))


def _one_by_one(student, ran, splits):
    """`tl.sum` over a tile of splits adds in this order in the interpreter alone."""
    last = ran.launches[-1]
    if last["loads"] < splits * last["programs"]:
        student.fail(
            f"called {ran.said}\nexpected a load for each of the {splits} splits in each of the "
            f"{last['programs']} programs of `combine`, whose sums are added one after another\n"
            f"got {last['loads']} loads"
        )


def test_empty_split(student, variant, seed):
    """More splits than blocks: the workspace has their zeros, and the product is right."""
    rng = np.random.default_rng(seed + 3)
    for k, splits in ((70, 5), (1, 3), (64, 2), (600, 11)):
        x, weight = _inputs(rng, 2, 9, k)
        judge_product(student, x, weight, splits, because=f"{k} columns, {splits} splits")


def test_twice(student, variant, seed):
    """A workspace with the sums of another call gives the same as one of poison."""
    rng = np.random.default_rng(seed + 4)
    x, weight = _inputs(rng, 3, 20, 200)
    for splits in (2, 6):
        first = judge_product(student, x, weight, splits)
        why = "the workspace holds the sums of a call before"
        left = first.data["partials"] * 3 + 1
        judge_product(student, -x, weight, splits, left=left, because=why)


def test_shared(student, variant, seed):
    """Bytes of the weight, and the most that one program reads."""
    rng = np.random.default_rng(seed + 5)
    x, weight = _inputs(rng, 1, 128, 512)
    ran = launch_product(student, x, weight, 4)
    if ran.read("weight") != 2 * weight.size:
        student.fail(
            f"called {ran.said}\nexpected {2 * weight.size} bytes read of `weight`, each number "
            f"once\ngot {ran.read('weight')}"
        )
    most = int(ran.launches[0]["most_read"])
    share = 2 * weight.size // 4 + 2 * x.size
    if most > share:
        student.fail(
            f"called {ran.said}\nexpected no program of `partial` to read more than the {share} "
            f"bytes of one split\ngot one that reads {most}"
        )


def test_matrix_units(student, variant, seed):
    """The PTX for a Hopper multiplies with wgmma, and `combine` compiles."""
    scalars = {"rows": 16, "n": 4096, "k": 4096, "splits": 4}
    kinds = {"x": "fp16", "weight": "fp16", "partials": "fp32", "y": "fp16"}
    text = ptx(student, "product_launch", scalars, kinds, scalars)
    ptx(student, "product_launch", scalars, kinds, scalars, launch=1)
    if "wgmma.mma_async" not in text:
        student.fail(
            "compiled `partial` of product_launch(rows=16, n=4096, k=4096, splits=4) for sm_90\n"
            f"expected wgmma\ngot {_instead(text)} (wgmma takes at least 64 rows of the left "
            "operand of `tl.dot`, at least 16 columns of the right one, and num_warps 4 or more)"
        )


def _instead(text):
    """The product of matrix units that the PTX has, and how many warps a program."""
    warps = int(re.search(r"\.reqntid (\d+)", text)[1]) // 32
    found = "mma.sync, the older instruction" if "mma.sync" in text else "no matrix units"
    return f"{found}, in programs of {warps} warp{'s' * (warps > 1)}"
