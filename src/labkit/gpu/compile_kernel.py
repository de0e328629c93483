"""Compiles a reader's Triton kernel to PTX, in the child that holds the reader's cell.

`labkit.gpu.frontier` loads this file as a cell of its own before the reader's, so it reads the
kernel and `launch` from the namespace that both share. No GPU is needed. Triton's stages run up
to PTX and no further: `ptxas` would be a process, Triton's cache files, and a child may have
neither. Whatever comes back is untrusted, since the reader's code could have answered in its
place; the checks here serve words, those that count are in `labkit.gpu.runner`.
"""

from __future__ import annotations

from typing import Any

# The instruction set that the text is written in: 8.0 came with CUDA 12.0 and Hopper, 8.6 is the
# first to know Blackwell. Named here, since Triton would start `ptxas` to ask it.
PTX_VERSION, PTX_VERSION_BLACKWELL = 80, 86
PLAN = {"grid", "constants", "num_warps", "num_stages"}


class Refused(Exception):
    """`launch` or the kernel is not what was asked for; the message says how."""


def compile_kernel(
    name: str,
    offered: dict[str, str],
    aligned: list[str],
    sizes: dict[str, int],
    capability: int,
) -> dict[str, Any]:
    """Compile the kernel `name` with the constants that the reader's `launch(**sizes)` gives.

    Args:
        name: of the `@triton.jit` function.
        offered: Triton's type of each argument that a launch can pass, such as `*bf16` or `i32`.
        aligned: those of them that are multiples of 16.
        sizes: the ints that `launch` is called with.
        capability: of the GPU, 90 for `sm_90`.

    Returns:
        `ptx`, its `entry`, `arguments` in its order, and `shared` bytes, `num_warps`, `grid`; or
        `refused`, the words of a `Refused`. What the reader's code raises comes through.
    """
    try:
        return _compile(name, offered, aligned, sizes, capability)
    except Refused as refused:
        return {"refused": str(refused)}


def _compile(
    name: str, offered: dict[str, str], aligned: list[str], sizes: dict[str, int], capability: int
) -> dict[str, Any]:
    from triton import JITFunction
    from triton._C.libtriton import ir
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, CompilationError, make_backend

    kernel = globals().get(name)
    if not isinstance(kernel, JITFunction):
        raise Refused(f"{name} is to be a function under @triton.jit in this cell")
    if "launch" not in globals():
        raise Refused("launch is not defined in this cell")
    plan = _plan(globals()["launch"](**sizes))
    source = ASTSource(*_signature(kernel, offered, aligned, plan["constants"]))
    target = GPUTarget("cuda", capability, 32)
    backend = make_backend(target)
    options = backend.parse_options(
        {
            "num_warps": plan["num_warps"],
            "num_stages": plan["num_stages"],
            "ptx_version": PTX_VERSION if capability < 100 else PTX_VERSION_BLACKWELL,
        }
    )
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    functions, modules = backend.get_codegen_implementation(options), backend.get_module_map()
    try:
        module = source.make_ir(target, options, functions, modules, context)
    except CompilationError as error:
        raise Refused(_words_of(kernel, error)) from None
    stages: dict[str, Any] = {}
    backend.add_stages(stages, options, source.language)
    facts: dict[str, Any] = {}
    for stage in ("ttir", "ttgir", "llir", "ptx"):
        module = stages[stage](module, facts)
    if facts.get("global_scratch_size", 0):
        raise Refused(f"{name} needs scratch memory of Triton's own, which is not passed here")
    return {
        "ptx": module,
        "entry": facts["name"],
        "arguments": [one for one in kernel.arg_names if one not in plan["constants"]],
        "shared": facts["shared"],
        "num_warps": facts.get("num_warps", plan["num_warps"]),
        "grid": plan["grid"],
    }


def _plan(plan: Any) -> dict[str, Any]:
    """What `launch` returned, if it is a dict of what is asked for."""
    if type(plan) is not dict or set(plan) != PLAN:
        raise Refused(f"launch is to return a dict with the keys {sorted(PLAN)}, not {plan!r}")
    if type(plan["constants"]) is not dict:
        raise Refused(f"launch: constants is to be a dict, not {plan['constants']!r}")
    warps, stages = plan["num_warps"], plan["num_stages"]
    if type(warps) is not int or warps not in (1, 2, 4, 8, 16, 32):
        raise Refused(f"launch: num_warps is to be 1, 2, 4, 8, 16 or 32, not {warps!r}")
    if type(stages) is not int or not 1 <= stages <= 16:
        raise Refused(f"launch: num_stages is to be 1 to 16, not {stages!r}")
    return {**plan, "grid": list(plan["grid"])}


def _signature(
    kernel: Any, offered: dict[str, str], aligned: list[str], constants: dict[str, Any]
) -> tuple[Any, dict[str, str], dict[tuple[int], Any], dict[tuple[int], Any]]:
    """What Triton compiles from: the kernel, its arguments' types, constants, and alignments."""
    names = kernel.arg_names
    missing = [one for one in names if one not in offered and one not in constants]
    if missing:
        raise Refused(
            f"{kernel.__name__} takes {', '.join(missing)}: neither among launch's constants nor "
            f"among the arguments {', '.join(offered)}"
        )
    unknown = [one for one in constants if one not in names]
    if unknown:
        raise Refused(f"launch: {kernel.__name__} takes no constant {', '.join(unknown)}")
    types = {one: "constexpr" if one in constants else offered[one] for one in names}
    places = {one: (number,) for number, one in enumerate(names)}
    fixed = {places[one]: value for one, value in constants.items()}
    multiples = {
        places[one]: [["tt.divisibility", 16]]
        for one in aligned
        if one in places and one not in constants
    }
    return kernel, types, fixed, multiples


def _words_of(kernel: Any, error: Any) -> str:
    """A compiler's complaint: the innermost one, with the kernel's line it is about."""
    while type(error.__cause__) is type(error):
        error = error.__cause__
    about = error.error_message or error.__cause__ or type(error).__name__
    number = getattr(error.node, "lineno", None)
    lines = kernel.src.split("\n")
    line = "" if number is None or number > len(lines) else f" in `{lines[number - 1].strip()}`"
    return f"{kernel.__name__} does not compile{line}: {about}"
