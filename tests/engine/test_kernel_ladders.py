"""`quire bench kernel-ladders` without a GPU: every kernel right, compiled for Hopper, compared.

The kernels run in Triton's interpreter at tiny sizes, in a process of its own, since the
interpreter has to be chosen before Triton is imported; so has the compiler.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from quire.analysis import find_hardware
from quire.analysis.kernels import tile_of
from quire.bench import kernel_ladders
from quire.bench.ladders import (
    autotune,
    cheats,
    decode,
    gemv,
    int4_gemv,
    ladder,
    launches,
    matmul,
    prefill,
    ptx,
    softmax,
)
from quire.bench.measurement import Row
from quire.errors import QuireError
from quire.kernels.runtime import jit, tl
from quire.kernels.tuning import TABLES, read_table

CPU = torch.device("cpu")
HALF, SINGLE = torch.float16, torch.float32
TINY = matmul.Tiling(32, 32, 32, 4, 1, 1)
DECODE = decode.Sizes(2, 150, 4, 2, 16, 16, 4)  # the last of four shares has no key
PREFILL = prefill.Sizes(2, 40, 2, 1, 16)
TUNING = read_table(TABLES / "default.toml", 32, 2)
STEPS = {
    "softmax": ["torch-in-parts", "fused", "online"],
    "gemv": ["small-loads", "wide-loads", "split-columns", "engine"],
    "int4-gemv": ["naive", "zero-a-group", "magic-number", "matrix-units", "engine"],
    "matmul": ["row-order", "grouped-order", "large-tiles", "pipelined"],
    "matmul-m64": ["tiles", "split-k"],
    "decode": ["a-query-head", "gqa-rows", "split-kv", "engine"],
    "prefill": ["scores-in-memory", "online", "skipping", "engine"],
}


def _tiny_matmul() -> ladder.Ladder[matmul.Matrices]:
    tilings = {
        "row-order": TINY,
        "grouped-order": replace(TINY, group=2),
        "large-tiles": replace(TINY, outputs=64, group=2),
        "pipelined": replace(TINY, outputs=64, group=2, num_stages=2),
    }
    return matmul.ladder_of("matmul", CPU, HALF, (70, 100, 80), tilings)


def _tiny_split() -> ladder.Ladder[matmul.Matrices]:
    tilings = {"tiles": TINY, "split-k": replace(TINY, split=3)}
    return matmul.ladder_of("matmul-m64", CPU, HALF, (5, 40, 200), tilings)


TINY_LADDERS: dict[str, Callable[[], ladder.Ladder[Any]]] = {
    "softmax": lambda: softmax.ladder(CPU, HALF, (3, 5000)),
    "softmax-float32": lambda: softmax.ladder(CPU, SINGLE, (3, 300)),
    "gemv": lambda: gemv.ladder(CPU, HALF, (9, 600)),
    "gemv-float32": lambda: gemv.ladder(CPU, SINGLE, (5, 256)),
    "int4-gemv": lambda: int4_gemv.ladder(CPU, HALF, (70, 640)),
    "matmul": _tiny_matmul,
    "matmul-m64": _tiny_split,
    "decode": lambda: decode.ladder(CPU, HALF, DECODE, TUNING),
    "prefill": lambda: prefill.ladder(CPU, HALF, PREFILL, TUNING, (32, 32)),
}


def dry_run(name: str) -> dict[str, Any]:
    """Rows of a tiny ladder, and what could not be measured; in the interpreter."""
    unmeasured: list[str] = []
    ceilings = find_hardware("h200-sxm").measured()
    rows = ladder.rows(TINY_LADDERS[name](), CPU, ceilings, unmeasured)
    return {"rows": [vars(row) for row in rows], "unmeasured": unmeasured}


def cheat_rows() -> dict[str, Any]:
    ceilings = find_hardware("h200-sxm").measured()
    return {"rows": [vars(row) for row in cheats.rows(CPU, ceilings, HALF, (48, 64), 64, TINY)]}


def autotune_rows() -> dict[str, Any]:
    def run_five_times(call: Callable[[], None], quantiles: tuple[float, ...]) -> list[float]:
        for _ in range(5):
            call()
        return [1.0] * len(quantiles)

    return {"rows": [vars(row) for row in autotune.rows(CPU, run_five_times, 2000)]}


def wrong_rows() -> dict[str, Any]:
    """A ladder with a wrong step, one that leaves its output unwritten, and a right one."""
    good = TINY_LADDERS["gemv"]()
    steps = {
        "wrong": lambda product: (gemv.engine(product).double() * 1.03).half(),
        "unwritten": lambda product: torch.empty(1, 9, dtype=HALF),
        "engine": gemv.engine,
    }
    unmeasured: list[str] = []
    rows = ladder.rows(replace(good, steps=steps), CPU, None, unmeasured)
    return {"rows": [vars(row) for row in rows], "unmeasured": unmeasured}


def tiles_of_programs() -> dict[str, Any]:
    """Where the ladder's kernel puts its programs, beside the model that counts misses."""
    found = {}
    for down, across, group in ((3, 5, 1), (5, 3, 2), (4, 4, 4), (2, 3, 8)):
        out = torch.zeros(down * across, 2, dtype=torch.int32)
        _order_kernel[(down * across,)](out, down, across, group=group)
        found[f"{down} {across} {group}"] = out.tolist()
    return {"found": found}


@jit
def _order_kernel(out, down, across, group: tl.constexpr):  # type: ignore[no-untyped-def]
    row, column = matmul._tile_of(tl.program_id(0), down, across, group)
    tl.store(out + tl.program_id(0) * 2, row)
    tl.store(out + tl.program_id(0) * 2 + 1, column)


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    **{name: lambda name=name: dry_run(name) for name in TINY_LADDERS},  # type: ignore[misc]
    "tiles": tiles_of_programs,
    "cheats": cheat_rows,
    "autotune": autotune_rows,
    "wrong": wrong_rows,
}


def compiled() -> dict[str, dict[str, int]]:
    """Instructions of every kernel, compiled for Hopper."""
    return {
        each.step: ptx.ptx_counts(each.kernel, each.signature, each.constants, each.options)
        for each in launches.counted() + launches.others()
    }


def main(what: str) -> None:
    torch.set_num_threads(1)
    report: dict[str, Any] = {}
    if what == "compiled":
        report = dict(compiled())
    else:
        for name, part in PARTS.items():
            begin = time.perf_counter()
            try:
                report[name] = part()
            except Exception:  # told to the test that asks for it
                report[name] = {"failure": traceback.format_exc()}
            report[name]["seconds"] = time.perf_counter() - begin
    print(json.dumps(report))


def _report(what: str, **environment: str) -> dict[str, Any]:
    inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    answer = subprocess.run(
        [sys.executable, str(Path(__file__)), what],
        env={**inherited, "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    loaded: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return loaded


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    return _report("interpreted", TRITON_INTERPRET="1")


@pytest.fixture(scope="module")
def counts() -> dict[str, dict[str, int]]:
    return _report("compiled")


def _rows(interpreted: dict[str, Any], name: str) -> list[Row]:
    assert "failure" not in interpreted[name], interpreted[name]["failure"]
    return [Row(**row) for row in interpreted[name]["rows"]]


@pytest.mark.parametrize("name", TINY_LADDERS)
def test_every_step_is_right_and_has_a_row(name: str, interpreted: dict[str, Any]) -> None:
    """The answer is near float64's, and the row has all that the chapter's figure needs."""
    rows = _rows(interpreted, name)
    assert interpreted[name]["unmeasured"] == []
    ladder_name = name.removesuffix("-float32")
    wanted = STEPS[ladder_name]
    if ladder_name == "int4-gemv":
        wanted = wanted[:-1]  # the engine's unpacking is PTX, which no interpreter runs
    assert [row.case for row in rows] == [f"{ladder_name}-{step}" for step in wanted]
    for number, row in enumerate(rows, 1):
        assert row.parameters["step"] == number
        assert 0 <= row.parameters["relative_error"] < ladder.TOLERANCE[HALF]
        limit, seconds = row.parameters["limit_us"], row.value
        assert row.parameters["share_of_limit"] == pytest.approx(limit / seconds)
        assert any(beside.startswith("torch") for beside in row.baselines)
        if number > 1:
            faster = rows[number - 2].value / row.value
            assert row.parameters["times_faster"] == pytest.approx(faster)


def test_kernel_and_model_agree_on_the_order(interpreted: dict[str, Any]) -> None:
    for sizes, tiles in interpreted["tiles"]["found"].items():
        down, across, group = map(int, sizes.split())
        assert [tuple(each) for each in tiles] == [
            tile_of(program, down, across, group) for program in range(down * across)
        ]


def test_limits_are_bytes_or_operations() -> None:
    """At the sizes that are measured: 62.9 µs for softmax, 27.5 for the row, 202 for the square."""
    h200 = find_hardware("h200-sxm").measured()

    def limit(num_bytes: int, flops: float) -> float:
        empty: ladder.Ladder[Any] = ladder.Ladder("x", [], {}, {}, lambda x: x, num_bytes, flops)
        return empty.limit_seconds(h200)

    assert limit(2 * 16384 * 4096 * 2, 0) == pytest.approx(62.9e-6, rel=1e-3)
    assert limit(14336 * 4096 * 2, 2 * 14336 * 4096) == pytest.approx(27.5e-6, rel=1e-3)
    assert limit(2 * 4096**2 * 2 + 4096**2 * 2, 2 * 4096**3) == pytest.approx(202.4e-6, rel=1e-3)


def test_a_wrong_kernel_has_no_time(interpreted: dict[str, Any]) -> None:
    """One that is off, and one that left its output unwritten; the right one keeps its row."""
    rows = _rows(interpreted, "wrong")
    assert [row.case for row in rows] == ["gemv-engine"]
    assert "share_of_limit" not in rows[0].parameters  # a device whose ceilings are not known
    wrong, unwritten = interpreted["wrong"]["unmeasured"]
    assert wrong.startswith("gemv, wrong: off by 0.0")
    assert "gemv, unwritten: off by nan" in unwritten


def test_cheats_stand_beside_the_honest_time(interpreted: dict[str, Any]) -> None:
    rows = {row.case: row for row in _rows(interpreted, "cheats")}
    assert set(rows) == {
        "cheat-inputs-stay-in-l2",
        "cheat-zeros",
        "cheat-cached-output",
        "cheat-matmul-zeros",
        "cheat-matmul-not-synchronized",
    }
    for row in rows.values():
        faster = row.baselines["honest"] / row.value
        assert row.parameters["times_too_fast"] == pytest.approx(faster)
    cached = rows["cheat-cached-output"]
    assert cached.parameters["times_too_fast"] > 10  # a look into a dictionary
    assert cached.parameters["error_after_a_change"] == pytest.approx(2, abs=1e-2)  # x, not −x


def test_autotune_adds_each_time(interpreted: dict[str, Any]) -> None:
    """Three configurations, five runs each, and the run that was asked for: 16 times."""
    trap, reset = _rows(interpreted, "autotune")
    assert (trap.case, trap.value) == ("autotune-trap", 16.0)
    assert (reset.case, reset.value) == ("autotune-reset-to-zero", 1.0)
    assert trap.parameters["second_call"] == reset.parameters["second_call"] == 1.0


def test_every_kernel_compiles_for_hopper(counts: dict[str, dict[str, int]]) -> None:
    wanted = {f"{name}-{step}" for name in ("gemv", "int4-gemv") for step in STEPS[name]}
    assert wanted <= set(counts)
    assert all(each["instructions"] > 50 for each in counts.values())
    assert all(each["shared_bytes"] <= 227 * 1024 for each in counts.values())


def test_counts_tell_the_ideas_apart(counts: dict[str, dict[str, int]]) -> None:
    """Each step took away what its idea says."""
    assert counts["gemv-small-loads"]["loads_16_bytes"] == 0
    assert counts["gemv-wide-loads"]["loads_16_bytes"] >= 1
    assert counts["gemv-engine"]["loads_16_bytes"] >= 8  # all of a program's share at once
    naive, zero, magic, matrix, engine = (
        counts[f"int4-gemv-{step}"] for step in STEPS["int4-gemv"]
    )
    assert naive["multiply_adds"] > 1.5 * zero["multiply_adds"]
    assert zero["int_to_float"] >= 64 > 8 > magic["int_to_float"]
    assert naive["wgmma"] == magic["wgmma"] == 0 < matrix["wgmma"]
    assert matrix["shared_stores"] > engine["shared_stores"]  # codes that change their thread
    assert counts["decode-a-query-head"]["mma"] == 0 < counts["decode-gqa-rows"]["mma"]
    assert counts["prefill-online"]["wgmma"] > 0


def test_count_reads_instructions_only() -> None:
    text = """
    .reg .b32 %r<3>;
    $L__BB0_1:
        // st.shared.b32 in a comment
        @%p1 st.shared.v4.b32 [%r1], {%r2};  // end
        { shl.b32 %r1, %r2, 2;
        ld.global.v4.b32 {%r1, %r2}, [%rd1];
        @!%p2 ld.global.L1::evict_first.v4.b32 {%r1}, [%rd2];
        ld.global.b16 %rs1, [%rd1];
        wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%f1};
        cvt.rn.f32.s32 %f1, %r1;
    """
    found = ptx.count(text)
    assert found["instructions"] == 7
    assert (found["loads"], found["loads_16_bytes"]) == (3, 2)
    assert (found["shared_stores"], found["shifts"], found["wgmma"]) == (1, 1, 1)
    assert (found["conversions"], found["int_to_float"], found["logic"]) == (1, 1, 0)


def test_errors_say_what_to_do() -> None:
    """A CPU, a ladder that does not exist, an argument without a type."""
    with pytest.raises(QuireError, match="--device cuda"):
        kernel_ladders.run(CPU)
    with pytest.raises(QuireError, match=r"\['sofmax'\].*softmax, softmax-wide"):
        kernel_ladders.run(torch.device("cuda"), ["sofmax"])
    with pytest.raises(ValueError, match="size"):
        ptx.ptx_counts(gemv._gemv_kernel, {"x": "*bf16"}, {})


if __name__ == "__main__":
    main(sys.argv[1])
