"""Judge the frontier task on a GPU: a reader's cache-write kernel against the reference below.

    python labs/paged-kv-cache/kernel.py NOTEBOOK [--course-key-file FILE]

The cell with the line `# frontier: kernel` is compiled in the sandbox that grading uses, which
has no GPU. What it is compiled to runs on the first GPU of this machine, in a process that holds
none of the reader's Python, on inputs drawn for each call from the course's seed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from labkit.gpu.frontier import KERNEL_MARK, compile_cell, run
from labkit.gpu.kernels import Array, KernelTask, Roofline, from_bfloat16, judge_speed, measure
from labkit.gpu.runner import Argument, Device, NoGpu, Pointer, Runner
from labkit.reader.lab import load_lab
from labkit.reader.subject import Wrong
from quire.analysis.hardware import load_hardware

LAB = load_lab(Path(__file__).parent)
SIZES = {"num_tokens": 16_381, "num_blocks": 1_100, "block_size": 16, "kv_heads": 8}
SIZES |= {"head_size": 128}
SKIPPED = 61  # tokens whose slot is -1
ROW = SIZES["kv_heads"] * SIZES["head_size"]  # numbers of a token's key, and of its value
NUM_SLOTS = SIZES["num_blocks"] * SIZES["block_size"]
BYTES = 2  # of a bfloat16
AT_LEAST = 0.5  # of the reference's speed; less earns nothing
BONUS = 10.0

# Inputs are key, value and slots; the output is both caches, one behind the other.
ARGUMENTS: dict[str, Argument] = {
    "key": Pointer("*bf16", 0),
    "value": Pointer("*bf16", 1),
    "slots": Pointer("*i64", 2),
    "key_cache": Pointer("*bf16", 3),
    "value_cache": Pointer("*bf16", 3, NUM_SLOTS * ROW * BYTES),
    "num_tokens": SIZES["num_tokens"],
}

REFERENCE = """
import triton
import triton.language as tl


@triton.jit
def cache_write(
    key, value, slots, key_cache, value_cache, num_tokens, ROW: tl.constexpr, TOKENS: tl.constexpr
):
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    slot = tl.load(slots + token, mask=token < num_tokens, other=-1)
    is_written = (slot >= 0)[:, None]
    column = tl.arange(0, ROW)[None, :]
    source = token.to(tl.int64)[:, None] * ROW + column
    target = slot[:, None] * ROW + column
    keys = tl.load(key + source, mask=is_written)
    values = tl.load(value + source, mask=is_written)
    tl.store(key_cache + target, keys, mask=is_written)
    tl.store(value_cache + target, values, mask=is_written)


def launch(num_tokens, num_blocks, block_size, kv_heads, head_size):
    return {
        "grid": (triton.cdiv(num_tokens, 4),),
        "constants": {"ROW": kv_heads * head_size, "TOKENS": 4},
        "num_warps": 4,
        "num_stages": 1,
    }
"""


def make(rng: np.random.Generator) -> list[Array]:
    """Draw key and value, as bits of bfloat16 [num_tokens, kv_heads, head_size], and slots."""
    shape = (SIZES["num_tokens"], SIZES["kv_heads"], SIZES["head_size"])
    # Any bits but those of an exponent of ones: no infinity, no NaN, nothing like the poison.
    key, value = (rng.integers(0, 1 << 16, shape, np.uint16) & 0xBFFF for _ in range(2))
    slots = rng.permutation(NUM_SLOTS)[: SIZES["num_tokens"]].astype(np.int64)
    slots[rng.permutation(len(slots))[:SKIPPED]] = -1
    return [key, value, slots]


def oracle(inputs: list[Array]) -> Array:
    """Return both caches, float64 [2, slots, numbers of a row], NaN where nothing is written."""
    *rows, slots = inputs
    caches = np.full((2, NUM_SLOTS, ROW), np.nan)
    is_written = slots >= 0
    for cache, bits in zip(caches, rows, strict=True):
        cache[slots[is_written]] = from_bfloat16(bits.reshape(-1, ROW)[is_written])
    return caches


TASK = KernelTask(
    make,
    oracle,
    dtype="bfloat16",
    flops=0,
    # Key and value of each token that has a slot, read and written once, and the slots.
    moved=(SIZES["num_tokens"] - SKIPPED) * 4 * ROW * BYTES + SIZES["num_tokens"] * 8,
    tolerance=0.0,
)


def roofline(device: Device) -> Roofline:
    """Return the data sheet's peaks of a GPU, with the cache that it reports itself.

    Raises:
        NoGpu: the book has no data sheet of it.
    """
    known = {key: one for key, one in load_hardware().items() if one.name.startswith("NVIDIA")}
    for key, one in known.items():
        if key.partition("-")[0] in device.name.lower():
            peak = one.peak_flops["fp16"]
            return Roofline(peak, one.bandwidth_bytes_per_s, device.cache_bytes)
    raise NoGpu(f"no bandwidth is known for {device.name!r}; judge on one of {', '.join(known)}")


def judge(source: str, seed: int, unsafe_local: bool = False, calls: int = 9) -> float:
    """Return the bonus of a kernel's cell, on inputs of a seed.

    Raises:
        Wrong: it does not compile, is wrong, or is slower than half of the reference's speed.
        NoGpu: there is no GPU here, or one that the book does not know.
    """
    with Runner() as reader, Runner() as reference:
        peaks = roofline(reader.device)
        for runner, cell in ((reference, REFERENCE), (reader, source)):
            launch = compile_cell(
                cell, "cache_write", ARGUMENTS, SIZES, runner.device, unsafe_local=unsafe_local
            )
            runner.load(launch)
        rng = np.random.default_rng(seed)
        speed = measure(TASK, reader.run, reference.run, rng, calls=calls)
    if isinstance(speed, str):
        raise Wrong(speed)
    complaint = judge_speed(speed, TASK, peaks, AT_LEAST)
    if complaint is not None:
        raise Wrong(complaint)
    least = peaks.least_seconds(TASK.flops, TASK.moved)
    print(f"{reader.device.name}: {TASK.moved / 1e6:.1f} MB, at least {least * 1e6:.1f} µs")
    for name, seconds in (("yours", speed.seconds), ("the reference", speed.reference)):
        rate = TASK.moved / seconds / 1e12
        print(f"{name:13}  {seconds * 1e6:6.1f} µs  {rate:5.2f} TB/s")
    bonus = BONUS * min(1.0, speed.share)
    print(f"bonus: {bonus:.1f} of {BONUS:.0f}")
    return bonus


if __name__ == "__main__":
    description = __doc__.partition("\n")[0]
    run(LAB, description, judge, KERNEL_MARK, ("unsafe_local",))
