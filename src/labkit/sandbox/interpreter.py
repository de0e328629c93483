"""Runs a reader's Triton kernels in Triton's interpreter, with what the interpreter hides put back.

`labkit.reader.kernel_child` loads this file, behind `guarded_memory.py`, as a cell of its own
before the reader's, in a process that has Triton and no GPU. The interpreter forgives what a GPU
does not: a masked lane without `other` reads 0, a read or write out of bounds reaches whatever
lies there, programs run in order. Here such a lane reads poison, each address must lie in a buffer,
programs run in a shuffled order and may not touch what another one of the launch has written.
"""

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the cell has them in front of it
    from labkit.sandbox.guarded_memory import Guard, GuardedBuffer, KernelFault

os.environ["TRITON_INTERPRET"] = "1"  # before the first cell imports Triton

LAUNCH_KEYS = {"kernel", "grid", "constants", "num_warps", "num_stages"}
MOST_PROGRAMS = 4096


class WithoutTorch:
    """Says that there is no torch: Triton would import it, in two seconds, and need not."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Find nothing, and end the search for torch."""
        if name == "torch":
            raise ModuleNotFoundError("kernels are interpreted without torch", name=name)


if not any(type(one).__name__ == "WithoutTorch" for one in sys.meta_path):
    sys.meta_path.insert(0, WithoutTorch())


def run_kernels(
    plan: str,
    sizes: dict[str, Any],
    buffers: dict[str, Any],
    scalars: dict[str, int],
    order: int,
) -> dict[str, Any]:
    """Run the launches that the reader's `plan(**sizes)` returns.

    Args:
        plan: the name of the function that returns them.
        sizes: what it is called with.
        buffers: by name, `kind`, `shape` [rows, columns], `data` (None: poison), `stride` between
            the rows, `places` (numbers of the rows that there are, None for all), `writable`.
        scalars: other arguments that a kernel may take, whole numbers.
        order: seed of the order in which programs run.

    Returns:
        `fault`, in words; or for each writable buffer `data` and whether each element was
        `written`, and for each launch its counts.
    """
    import numpy as np

    made = {name: GuardedBuffer(i, name, given) for i, (name, given) in enumerate(buffers.items())}
    launches = _planned(plan, sizes)
    rng = np.random.default_rng(order)
    try:
        counts = _run_all(plan, launches, made, scalars, rng)
    except KernelFault as fault:
        return {"fault": str(fault)}
    outputs = {name: one for name, one in made.items() if one.writable}
    return {
        "data": {
            name: one.data.astype("int64" if one.kind[0] == "i" else "float32").reshape(
                one.rows, one.columns
            )
            for name, one in outputs.items()
        },
        "written": {
            name: one.written.reshape(one.rows, one.columns) for name, one in outputs.items()
        },
        "launches": counts,
    }


def launches_of(plan: str, sizes: dict[str, Any]) -> list[str]:
    """The names of the kernels that `plan(**sizes)` launches, in order."""
    return [one["kernel"] for one in _planned(plan, sizes)]


def _planned(plan: str, sizes: dict[str, Any]) -> Any:
    if plan not in globals():
        raise KernelFault(f"your cells define no `{plan}`")
    return globals()[plan](**sizes)


def _run_all(
    plan: str, launches: Any, buffers: dict[str, GuardedBuffer], scalars: dict[str, int], rng: Any
) -> list[dict[str, Any]]:
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    if type(launches) is not list or not all(type(one) is dict for one in launches):
        raise KernelFault(f"{plan} is to return a list of launches, each a dict, not {launches!r}")
    builder = interpreter.interpreter_builder
    guard = Guard(builder, buffers)
    original = interpreter._get_np_dtype
    interpreter._get_np_dtype = _numpy_type  # Triton's own makes a table at each call
    # Once for all programs: a device function, `tl.sum` too, would do it again at each call.
    names = type("Names", (), {"__globals__": {"tl": tl, "core": tl.core}})
    scope = interpreter._patch_lang(names)
    scope.set_attr(tl.tensor, "__bool__", _truth)
    # A bound of `range`: Triton 3.6 does not read it with NumPy 2.4 and later.
    scope.set_attr(tl.tensor, "__index__", lambda self: self.handle.data.item())
    _remember_shapes(scope)
    calling = interpreter.InterpretedFunction.__call__
    interpreter.InterpretedFunction.__call__ = lambda self, *a, **k: self.rewrite()(*a, **k)
    vars(builder).update(guard.operations())
    try:
        with np.errstate(all="ignore"):
            return [_run_one(plan, one, buffers, scalars, guard, rng) for one in launches]
    finally:
        for name in guard.operations():
            del vars(builder)[name]
        interpreter.InterpretedFunction.__call__ = calling
        interpreter._get_np_dtype = original
        scope.restore()


def _run_one(
    plan: str,
    launch: dict[str, Any],
    buffers: dict[str, GuardedBuffer],
    scalars: dict[str, int],
    guard: Guard,
    rng: Any,
) -> dict[str, Any]:
    import numpy as np
    from triton.runtime import interpreter

    kernel, grid = _checked(plan, launch)
    arguments = _arguments(kernel, launch["constants"], buffers, scalars)
    function = kernel.rewrite()
    guard.start_launch()
    interpreter.interpreter_builder.set_grid_dim(*grid)
    for number in rng.permutation(int(np.prod(grid))).tolist():
        place = (number % grid[0], number // grid[0] % grid[1], number // (grid[0] * grid[1]))
        interpreter.interpreter_builder.set_grid_idx(*place)
        guard.start_program(number)
        try:
            function(**arguments)
        except KernelFault as fault:
            raise KernelFault(f"{launch['kernel']}, program {place}: {fault}") from None
        except interpreter.InterpreterError as error:
            raise (error.__cause__ or error) from None
    return {
        "kernel": launch["kernel"],
        "programs": int(np.prod(grid)),
        "loads": guard.loads,
        "stores": guard.stores,
        "dots": guard.dots,
        "most_read": guard.most,
        "read": {name: one.read_bytes for name, one in buffers.items()},
        "written": {name: one.written_bytes for name, one in buffers.items()},
    }


def _checked(plan: str, launch: dict[str, Any]) -> tuple[Any, list[int]]:
    """The kernel and the grid of a launch that is what was asked for."""
    from triton.runtime.interpreter import InterpretedFunction

    if set(launch) != LAUNCH_KEYS:
        raise KernelFault(f"{plan}: a launch has the keys {sorted(LAUNCH_KEYS)}, not {launch!r}")
    kernel = globals().get(launch["kernel"]) if type(launch["kernel"]) is str else None
    if not isinstance(kernel, InterpretedFunction):
        raise KernelFault(f"{plan}: {launch['kernel']!r} is to name a @triton.jit function")
    if launch["num_warps"] not in (1, 2, 4, 8, 16, 32):
        raise KernelFault(
            f"{plan}: num_warps is a power of two up to 32, not {launch['num_warps']!r}"
        )
    if type(launch["num_stages"]) is not int or not 1 <= launch["num_stages"] <= 16:
        raise KernelFault(f"{plan}: num_stages is 1 to 16, not {launch['num_stages']!r}")
    if type(launch["constants"]) is not dict:
        raise KernelFault(f"{plan}: constants is a dict, not {launch['constants']!r}")
    grid = launch["grid"]
    whole = type(grid) in (tuple, list) and all(type(one) is int and one > 0 for one in grid)
    if not whole or not 1 <= len(grid) <= 3:
        raise KernelFault(
            f"{plan}: a grid is a tuple of one to three numbers above 0, such as (4,), not {grid!r}"
        )
    grid = [*grid, 1, 1][:3]
    if grid[0] * grid[1] * grid[2] > MOST_PROGRAMS:
        raise KernelFault(f"{plan}: a grid of {grid} is more than {MOST_PROGRAMS} programs here")
    return kernel, grid


def _arguments(
    kernel: Any,
    constants: dict[str, Any],
    buffers: dict[str, GuardedBuffer],
    scalars: dict[str, int],
) -> dict[str, Any]:
    """What each parameter of a kernel gets, by its name."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle, _implicit_cvt

    unknown = [name for name in constants if name not in kernel.arg_names]
    if unknown:
        raise KernelFault(f"{kernel.__name__} takes no constant {', '.join(unknown)}")
    found = {}
    for name in kernel.arg_names:
        if name in constants:
            is_fixed = "constexpr" in str(kernel.fn.__annotations__.get(name, ""))
            found[name] = constants[name] if is_fixed else _implicit_cvt(constants[name])
        elif name in buffers:
            kind = tl.pointer_type(tl.str_to_ty(buffers[name].kind, None))
            address = np.array([buffers[name].base], np.uint64)
            found[name] = tl.tensor(TensorHandle(address, kind), kind)
        elif name in scalars:
            found[name] = _implicit_cvt(scalars[name])
        else:
            offered = ", ".join([*buffers, *scalars])
            raise KernelFault(
                f"{kernel.__name__} takes {name}: neither among the launch's constants nor among "
                f"the arguments {offered}"
            )
    return found


def _truth(tensor: Any) -> bool:
    """The truth of a tensor; Triton's own code asks for it to see whether `other` was given.

    There the interpreter takes the `other` of a single lane for missing where it is 0.
    """
    if sys._getframe(1).f_code.co_filename.endswith("semantic.py"):
        return True
    data = tensor.handle.data
    return bool(data) if data.size == 1 else True


def _remember_shapes(scope: Any) -> None:
    """Make the types of tensors once for each shape: a third of the interpreter's time."""
    import triton.language as tl

    block_init, tensor_init = tl.block_type.__init__, tl.tensor.__init__
    blocks: dict[Any, Any] = {}
    shapes: dict[Any, Any] = {}

    def init_block(self: Any, element_ty: Any, shape: Any) -> None:
        key = (element_ty.name, *(s.value if isinstance(s, tl.constexpr) else s for s in shape))
        if key not in blocks:
            block_init(self, element_ty, shape)
            blocks[key] = self.shape, self.numel, self.name
        self.element_ty = element_ty
        self.shape, self.numel, self.name = blocks[key]

    def init_tensor(self: Any, handle: Any, kind: Any) -> None:
        key = (*kind.shape.values,) if kind.is_block() else ()
        if key not in shapes:
            tensor_init(self, handle, kind)
            shapes[key] = self.shape, self.numel
        self.handle, self.type, self.dtype = handle, kind, kind.scalar
        self.shape, self.numel = shapes[key]

    scope.set_attr(tl.block_type, "__init__", init_block)
    scope.set_attr(tl.tensor, "__init__", init_tensor)


def _numpy_type(kind: Any) -> Any:
    import numpy as np
    import triton.language as tl

    if isinstance(kind, tl.block_type):
        kind = kind.element_ty
    if isinstance(kind, tl.pointer_type):
        return np.dtype(np.uint64)
    names = {"fp16": "float16", "fp32": "float32", "fp64": "float64", "int1": "bool"}
    return np.dtype(names.get(kind.name, kind.name))
