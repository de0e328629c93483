"""Hidden tests of the depth task, each of which asks the part of the variant."""

from __future__ import annotations

import numpy as np

from . import deep_rope, deep_sinks, deep_words
from .driving import compile_all

PARTS = {"words": deep_words, "sinks": deep_sinks, "rope": deep_rope}


def test_numbers(student, variant, seed):
    """The numbers that the kernel computes."""
    PARTS[variant].numbers(student, np.random.default_rng(seed))


def test_special(student, variant, seed):
    """What is left out: places, tokens and slots that count for nothing."""
    PARTS[variant].special(student, np.random.default_rng(seed + 1))


def test_edges(student, variant, seed):
    """Cases at the edges."""
    PARTS[variant].edges(student, np.random.default_rng(seed + 2))


def test_far(student, variant, seed):
    """Offsets beyond 2³¹."""
    PARTS[variant].far(student, np.random.default_rng(seed + 3))


def test_any(student, variant, seed):
    """Sizes that no tile divides."""
    PARTS[variant].any_sizes(student, np.random.default_rng(seed + 4))


COMPILED = {
    "words": (
        {"n": 4096, "k": 4096, "words_stride": 384, "exceptions": 8},
        {"group": 128},
        """
        x fp16
        words i32
        scales fp16
        zeros fp16
        columns i32
        values fp16
        y fp16
        """,
    ),
    "sinks": (
        {
            "seqs": 8, "heads": 32, "kv_heads": 8, "size": 64, "page": 16, "table": 64,
            "splits": 4,
        },
        {"scale": 0.125},
        """
        query fp16
        key_cache fp16
        value_cache fp16
        block_table i32
        lengths i32
        sinks fp32
        workspace fp32
        out fp16
        """,
    ),
    "rope": (
        {"tokens": 8, "heads": 32, "kv_heads": 8, "size": 64, "rotary": 48},
        {"eps": 1e-6},
        """
        qkv fp16
        query_norm fp16
        key_norm fp16
        table fp32
        positions i64
        slots i64
        query fp16
        key_cache fp16
        value_cache fp16
        """,
    ),
}  # fmt: skip


def test_compiles(student, variant):
    """Every kernel of the launches, compiled for a Hopper."""
    scalars, more, kinds = COMPILED[variant]
    compile_all(student, "deep_launch", {**scalars, **more}, kinds, scalars)
