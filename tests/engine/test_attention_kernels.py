"""The attention kernels against float64: under the interpreter, and on a GPU at real sizes."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import attention_cases
import pytest
import torch
from attention_cases import error, make_step, oracle

from quire.errors import QuireError
from quire.kernels.tuning import TABLES, DecodeTuning, PrefillTuning, Tuning, read_table, tuning

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}


@pytest.fixture(scope="module")
def tiny_errors() -> dict[str, float]:
    """The errors of all tiny steps, from one process under Triton's interpreter."""
    pytest.importorskip("triton")
    script = Path(attention_cases.__file__)
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    errors: dict[str, float] = json.loads(done.stdout)
    return errors


@pytest.mark.parametrize("name", attention_cases.TINY)
def test_tiny_steps_under_the_interpreter(name: str, tiny_errors: dict[str, float]) -> None:
    """Ragged lengths, group sizes, windows, block sizes; from blocks, fresh, and captured."""
    found = {key: value for key, value in tiny_errors.items() if key.startswith(f"{name}, ")}
    assert len(found) >= 2
    assert all(value < 1e-5 for value in found.values()), found


def test_a_plan_covers_every_token_once() -> None:
    """Each sequence in its list, its tiles from the last to the first, lists aligned."""
    pytest.importorskip("triton")
    from quire.attention.triton_backend import _Plan
    from quire.kernels.prompts import Prefill

    new, lengths = [70, 1, 33, 1, 2, 1, 64], [70, 9, 40, 1, 2, 300, 65]
    step = make_step(new, lengths, (8, 2), head_size=16)
    settings = Tuning(DecodeTuning(16, 1, 2, 16, 32), PrefillTuning(128, 16, 1, 2))
    plan = _Plan.of(step.query, step.kv, step.batch, Prefill(settings, on_hopper=False))
    assert plan.fresh.tolist() == [[0, 64], [0, 32], [0, 0], [4, 0]]
    assert plan.chunks.tolist() == [[2, 32], [2, 0], [6, 32], [6, 0]]
    assert plan.decodes is not None
    assert plan.decodes.tolist() == [1, 3, 5]
    assert [x.data_ptr() % 16 for x in (plan.fresh, plan.chunks, plan.decodes)] == [0, 0, 0]
    decode_only = _Plan.of(step.query, step.kv, step.captured(), Prefill(settings, on_hopper=False))
    assert decode_only.decodes is None
    assert len(decode_only.fresh) + len(decode_only.chunks) == 0


HOPPER_STEP = {"new": [40], "lengths": [40], "heads": (8, 2), "head_size": 128}


@pytest.mark.parametrize(
    ("generation", "change", "serves"),
    [
        (9, {}, True),
        (9, {"dtype": torch.float16, "block_size": 128, "heads": (4, 4)}, True),
        (8, {}, False),
        (10, {}, False),
        (9, {"dtype": torch.float32}, False),
        (9, {"head_size": 64}, False),
        (9, {"heads": (6, 2)}, False),  # three heads do not divide 64 rows
        (9, {"block_size": 4}, False),
        (9, {"window": 20}, False),
        (9, {"kv_dtype": torch.int8}, False),
        (9, {"heads_first": True}, False),
    ],
)
def test_which_steps_go_to_hoppers_kernel(
    generation: int, change: dict[str, Any], serves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else comes is the other kernel's."""
    pytest.importorskip("triton")
    from quire.kernels import hopper

    monkeypatch.setattr(hopper, "capability", lambda device: (generation, 0))
    step = make_step(**{"dtype": torch.bfloat16, **HOPPER_STEP, **change})
    assert hopper.serves_hopper(step.query, step.kv, step.window) is serves


@pytest.mark.parametrize("table", sorted(TABLES.glob("*.toml")), ids=lambda path: path.stem)
def test_a_table_has_settings_for_every_head_size(table: Path) -> None:
    """Settings that the kernels can take: powers of two, a split of at least a tile."""
    for itemsize, head_size in itertools.product((2, 4), (16, 32, 64, 128, 256)):
        settings = read_table(table, head_size, itemsize)
        decode, prefill = settings.decode, settings.prefill
        for size in (decode.tile, decode.warps, prefill.rows, prefill.keys, prefill.warps):
            assert size & (size - 1) == 0
        assert decode.tile <= decode.min_keys
        assert min(decode.tile, prefill.rows, prefill.keys) >= 16


@pytest.mark.parametrize(("head_size", "itemsize"), [(80, 2), (8, 4), (512, 2), (128, 8)])
def test_a_head_size_that_no_kernel_serves_is_refused(head_size: int, itemsize: int) -> None:
    """The error names the size and the way out."""
    with pytest.raises(QuireError, match=f"not {head_size} and {itemsize}: use Components"):
        read_table(TABLES / "default.toml", head_size, itemsize)


REAL = {
    "decode": {"new": [1] * 5, "lengths": [1, 5000, 0, 777, 16], "heads": (32, 8)},
    "decode, many": {"new": [1] * 70, "lengths": list(range(1, 3500, 50)), "heads": (8, 2)},
    "decode, one long": {"new": [1], "lengths": [9000], "heads": (8, 2)},  # of 33 splits
    "decode, window": {"new": [1] * 3, "lengths": [3000, 99, 40], "heads": (32, 8), "window": 100},
    "prompts": {"new": [300, 129, 7], "lengths": [300, 129, 7], "heads": (32, 8)},
    "mixed": {
        "new": [1, 300, 1, 129, 7],
        "lengths": [1, 300, 2000, 1000, 7],
        "heads": (8, 2),
    },
    "mixed, window": {
        "new": [1, 300, 1, 129, 70],
        "lengths": [1, 300, 2000, 1000, 70],
        "heads": (5, 1),
        "window": 100,
    },
    "mixed, many pieces": {  # more than a GPU has multiprocessors
        "new": [1, 700, 500, 90],
        "lengths": [2000, 700, 1900, 1000],
        "heads": (32, 8),
    },
    "mixed, wide group": {"new": [1, 300, 70], "lengths": [9, 300, 600], "heads": (64, 1)},
    "mixed, one head each": {"new": [1, 130, 50], "lengths": [700, 130, 600], "heads": (4, 4)},
    "mixed, small blocks": {
        "new": [1, 130, 50],
        "lengths": [700, 130, 600],
        "heads": (8, 2),
        "block_size": 8,
    },
    "mixed, heads first": {
        "new": [1, 130, 50],
        "lengths": [700, 130, 600],
        "heads": (8, 2),
        "block_size": 32,
        "heads_first": True,
    },
    **{  # the last tile of keys reaches far behind a sequence's end: of every size of block
        f"mixed, blocks of {size}": {
            "new": [1, 130, 50],
            "lengths": [700, 130, 602],
            "heads": (8, 2),
            "block_size": size,
        }
        for size in (32, 64, 128)
    },
}


HEADS = [
    (torch.bfloat16, 64),
    (torch.bfloat16, 128),
    (torch.bfloat16, 256),
    (torch.float16, 128),
    (torch.float32, 64),
    (torch.float32, 128),
    (torch.float32, 256),
]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "dtype", "head_size"),
    [
        (name, dtype, head_size)
        for name, (dtype, head_size) in itertools.product(REAL, HEADS)
        # 64 query heads of 256 numbers need more shared memory than an H200 has.
        if (name, head_size) != ("mixed, wide group", 256)
    ],
)
def test_real_steps(name: str, dtype: torch.dtype, head_size: int) -> None:
    """All dtypes and head sizes, from blocks and fresh, and a second layer with one plan.

    On Hopper also by the kernel for every GPU, which given settings ask for.
    """
    from quire.attention.triton_backend import TritonAttention

    step = make_step(head_size=head_size, dtype=dtype, device="cuda", **REAL[name])
    expected = oracle(step)
    on_hopper = torch.cuda.get_device_capability()[0] == 9 and not REAL[name].get("heads_first")
    on_hopper &= (head_size, dtype.itemsize, step.window) == (128, 2, None)
    given = tuning(torch.device("cuda"), head_size, dtype.itemsize)
    for settings in (None, given) if on_hopper else (None,):
        backend = TritonAttention(settings)
        metadata = backend.build(step.batch, step.window)
        for fresh in (None, step.fresh):
            output = backend.forward(step.query, step.kv, metadata, step.scale, fresh)
            assert error(output, expected) < TOLERANCE[dtype]
        assert metadata.plan is not None
        assert metadata.plan.prefill.on_hopper is (on_hopper and settings is None)


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [1, 4, 6])
def test_a_captured_step_follows_its_lengths(num_tokens: int) -> None:
    """One graph, replayed for other lengths and tables than it was captured with."""
    from quire.attention.triton_backend import TritonAttention

    step = make_step(
        new=[num_tokens] * 4,
        lengths=[4000, num_tokens, num_tokens, 2500],
        heads=(32, 8),
        head_size=128,
        dtype=torch.bfloat16,
        device="cuda",
    )
    backend, batch, host = TritonAttention(), step.captured(), step.batch.host
    assert host is not None

    def attend() -> torch.Tensor:
        metadata = backend.build(batch, None)
        return backend.forward(step.query, step.kv, metadata, step.scale)

    attend()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = attend()
    for lengths in ([17, 0, 0, 6], [4000, num_tokens, 0, 2500], [0, 0, 0, 300]):
        batch.lengths.copy_(torch.tensor(lengths))
        host.lengths[:] = lengths
        output.fill_(float("nan"))
        graph.replay()
        assert error(output, oracle(step)) < TOLERANCE[torch.bfloat16]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "window"),
    [(torch.bfloat16, None), (torch.bfloat16, 100), (torch.float32, None)],
)
def test_a_captured_prompt_follows_its_length(dtype: torch.dtype, window: int | None) -> None:
    """One graph of 320 tokens, replayed for prompts and chunks of fewer."""
    from quire.attention.triton_backend import TritonAttention

    step = make_step([320], [1900], (32, 8), 128, dtype=dtype, device="cuda", window=window)
    step, host = step.captured_prompts(320), step.batch.host
    assert host is not None
    backend, batch = TritonAttention(), step.batch

    def attend() -> torch.Tensor:
        metadata = backend.build(batch, window)
        return backend.forward(step.query, step.kv, metadata, step.scale, step.fresh)

    attend()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = attend()
    for new, length in ((320, 1900), (320, 320), (7, 7), (257, 1500), (2, 1900), (1, 1)):
        batch.lengths.fill_(length)
        batch.query_starts[1] = new
        output.fill_(float("nan"))
        graph.replay()
        part = replace(
            step,
            batch=replace(batch, host=replace(host, query_starts=[0, new], lengths=[length])),
            query=step.query[:new],
        )
        assert error(output[:new], oracle(part)) < TOLERANCE[dtype]
        assert output[new:].abs().sum() == 0


@pytest.mark.gpu
def test_blocks_beyond_two_billion_elements() -> None:
    """Blocks behind element 2³¹ of the cache are read where they are."""
    from quire.attention.triton_backend import TritonAttention

    step = make_step(
        new=[1, 1, 40],
        lengths=[300, 17, 90],
        heads=(4, 2),
        head_size=256,
        block_size=16,
        dtype=torch.bfloat16,
        device="cuda",
        first_block=2**31 // (16 * 2 * 256) + 1,
    )
    backend = TritonAttention()
    metadata = backend.build(step.batch, None)
    output = backend.forward(step.query, step.kv, metadata, step.scale)
    assert error(output, oracle(step)) < TOLERANCE[torch.bfloat16]
