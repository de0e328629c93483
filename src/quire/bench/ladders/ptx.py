"""What the compiler made of a kernel: instructions of its PTX counted, on any machine.

Counts are of the text, not of what runs: a loop's body counts once, however often it is
taken. They tell what a kernel does at all, and compare kernels of one shape.
"""

from __future__ import annotations

import re
from typing import Any

from quire.bench.measurement import Row
from quire.errors import QuireError
from quire.kernels.runtime import HAS_TRITON

PATTERNS = {
    "loads_16_bytes": r"ld\.global\S*\.(v4\.b32|v2\.b64|v8\.b16)|cp\.async\.cg\.\S+",
    "loads": r"ld\.global\S*|cp\.async\.c[ag]\.\S+",
    "shared_stores": r"st\.shared\S*|stmatrix\S*",
    "shared_loads": r"ld\.shared\S*|ldmatrix\S*",
    "barriers": r"bar\.sync|barrier\.sync\S*",
    "shifts": r"sh[lrf]\.\S+",
    "logic": r"(and|or|xor|not|lop3)\.b(16|32|64)",
    "bit_fields": r"bfe\.\S+",
    "conversions": r"cvt\.\S+",
    "int_to_float": r"cvt\.r\S*\.f\S+\.[us](8|16|32)",
    "multiply_adds": r"(fma|mul|add|sub)\.\S*f(16|16x2|32|32x2)|(fma|mul|add|sub)\.\S*bf16\S*",
    "wgmma": r"wgmma\.mma_async\S*",
    "mma": r"mma\.sync\S*",
    "offsets_64_bits": r"(mul\.wide|mad\.wide|add|mul\.lo|mad\.lo)\.[su]64|mul\.wide\.\S+",
}


def ptx_counts(
    kernel: Any,
    signature: dict[str, str],
    constants: dict[str, Any],
    options: dict[str, int] | None = None,
    capability: int = 90,
) -> dict[str, int]:
    """Compile a kernel for a GPU, which need not be there, and count its instructions.

    `shared_bytes` is no count: the shared memory of a program.

    Args:
        kernel: a function under `triton.jit`.
        signature: type of every argument that is no constant: "*bf16", "i32"; with ":16" a
            number that is a multiple of 16, of which Triton makes a kernel of its own.
        constants: value of every other argument.
        options: `num_warps`, `num_stages`.
        capability: compute capability, 90 for Hopper.

    Raises:
        QuireError: Triton's interpreter is on, or Triton is not installed.
        ValueError: an argument has no type and no value, or the kernel has none of that name.
    """
    compiled = compile_for(kernel, signature, constants, options, capability)
    shared = {"shared_bytes": int(compiled.metadata.shared)}
    return count(str(compiled.asm["ptx"])) | shared


def compile_for(
    kernel: Any,
    signature: dict[str, str],
    constants: dict[str, Any],
    options: dict[str, int] | None = None,
    capability: int = 90,
) -> Any:
    """Return Triton's compiled kernel; pointers are multiples of 16 bytes. See `ptx_counts`."""
    if not HAS_TRITON:
        raise QuireError("counting PTX compiles kernels: install triton, pip install triton")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if not isinstance(kernel, triton.JITFunction):
        raise QuireError(
            f"{kernel} is not compiled but interpreted: count PTX in a process without "
            "TRITON_INTERPRET"
        )
    names = kernel.arg_names
    unknown = set(names) ^ (set(signature) | set(constants))
    if unknown:
        raise ValueError(f"arguments {sorted(unknown)}: each needs one type or one value")
    place = {name: (i,) for i, name in enumerate(names)}
    source = ASTSource(
        kernel,
        {name: signature.get(name, "constexpr").removesuffix(":16") for name in names},
        {place[name]: value for name, value in constants.items()},
        {
            place[name]: [["tt.divisibility", 16]]
            for name, kind in signature.items()
            if kind.startswith("*") or kind.endswith(":16")
        },
    )
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options=options or {})


def count(ptx: str) -> dict[str, int]:
    """Count the instructions of a PTX text by kind; comments and debug sections do not count."""
    instructions = []
    for line in ptx.splitlines():
        text = line.split("//")[0].strip().lstrip("{").strip()
        words = re.sub(r"^@!?%?\w+\s+", "", text).split()  # without a predicate
        if words and not words[0].startswith((".", "$", "%")):
            instructions.append(words[0].rstrip(";"))
    counts = {
        name: sum(re.fullmatch(pattern, word) is not None for word in instructions)
        for name, pattern in PATTERNS.items()
    }
    return {"instructions": len(instructions), **counts}


def row(case: str, counts: dict[str, int]) -> Row:
    """Return the counts of one step; the value is the number of instructions."""
    others = {name: float(number) for name, number in counts.items() if name != "instructions"}
    return Row(f"ptx-{case}", "instructions", float(counts["instructions"]), "1", {}, others)
