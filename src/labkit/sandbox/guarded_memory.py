"""The memory of interpreted kernels: buffers at addresses of their own, and a guard in front of it.

A part of the cell that `labkit.sandbox.interpreter` is, loaded before it. Addresses are numbers
that nothing is mapped to: a buffer's rows may lie 2³¹ elements apart and take no memory, so that an
offset of 32 bits misses them.
"""

from typing import Any

KINDS = {"fp16": "float16", "fp32": "float32", "i32": "int32", "i64": "int64"}
POISON = {"fp16": float("nan"), "fp32": float("nan"), "i32": 0x5A5A5A5A, "i64": 0x5A5A5A5A5A5A5A5A}
REGION = 44  # bits of an address within one buffer: 16 TiB
NOBODY, SEVERAL = -1, -2


class KernelFault(Exception):
    """A kernel or its launch did what a GPU would punish; the message says what."""


class GuardedBuffer:
    """Rows of a tensor at addresses of their own; knows which program touched each element.

    Element [i, c] has the offset `places[i] * stride + c` from the buffer's first address.
    """

    def __init__(self, number: int, name: str, given: dict[str, Any]) -> None:
        """Make a buffer of what `run_kernels` was given for it."""
        import numpy as np

        self.name, self.kind, self.writable = name, given["kind"], given["writable"]
        self.rows, self.columns = given["shape"]
        self.stride, self.places = given["stride"], given["places"]
        self.base = (number + 1) << REGION
        dtype = np.dtype(KINDS[self.kind])
        self.itemsize = dtype.itemsize
        size = self.rows * self.columns
        self.is_dense = self.places is None
        if given["data"] is None:
            self.data = np.full(size, POISON[self.kind], dtype)
        else:
            self.data = given["data"].reshape(-1).astype(dtype)
        self.written = np.zeros(size, bool)
        self.start_launch()

    def start_launch(self) -> None:
        """Forget which programs touched what: a launch ends before the next begins."""
        import numpy as np

        self.writer = np.full(self.data.size, NOBODY, np.int32)
        self.reader = np.full(self.data.size, NOBODY, np.int32)
        self.read_bytes = self.written_bytes = 0

    def locate(self, addresses: Any, verb: str) -> Any:
        """Return the places in `data` of addresses.

        Raises:
            KernelFault: one of them is none of this buffer's.
        """
        import numpy as np

        offsets = addresses.astype(np.int64) - self.base
        elements = offsets // self.itemsize
        if (offsets % self.itemsize).any():
            raise KernelFault(f"it {verb} `{self.name}` in the middle of an element")
        if self.is_dense and self.stride == self.columns:
            found, wrong = elements, (elements < 0) | (elements >= self.data.size)
        else:
            row, column = elements // self.stride, elements % self.stride
            places = np.arange(self.rows) if self.is_dense else self.places
            index = np.minimum(np.searchsorted(places, row), self.rows - 1)
            found, wrong = index * self.columns + column, column >= self.columns
            wrong = wrong | (places[index] != row)
        if wrong.any():
            self._complain(int(elements[wrong][0]), int(wrong.sum()), verb)
        return found

    def _complain(self, element: int, count: int, verb: str) -> None:
        words = f"element {element} of `{self.name}`"
        if self.rows == 1:
            words += f", which has {self.columns}"
        else:
            row, column = divmod(element, self.stride)
            words = f"row {row}, column {column} of `{self.name}`"
            words += f", whose rows have {self.columns} columns"
            words += f", {self.stride} elements apart" if self.stride != self.columns else ""
            some = list(range(self.rows)) if self.is_dense else self.places.tolist()
            words += f"; there are rows {some[:6]}" + (", …" if len(some) > 6 else "")
            if row not in some and max(some) * self.stride >= 1 << 31:
                words += " (offsets here pass 2³¹, so they need 64 bits)"
        more = f" (and {count - 1} more such places)" if count > 1 else ""
        raise KernelFault(f"it {verb} out of bounds: {words}{more}")


class Guard:
    """The interpreter's memory operations, over guarded buffers; counts what a launch does."""

    def __init__(self, builder: Any, buffers: dict[str, GuardedBuffer]) -> None:
        """Stand in for `builder`'s operations on addresses of `buffers`."""
        self._builder, self._buffers = builder, list(buffers.values())
        self.start_launch()

    def start_launch(self) -> None:
        """Count from 0."""
        self.program = 0
        self.loads = self.stores = self.dots = self.most = self._own = 0
        for buffer in self._buffers:
            buffer.start_launch()

    def start_program(self, number: int) -> None:
        """The accesses to come are those of a program."""
        self.program, self._own = number, 0

    def operations(self) -> dict[str, Any]:
        """What takes the place of the builder's own, by their names."""
        return {
            "create_masked_load": self.load,
            "create_masked_store": self.store,
            "create_atomic_rmw": self.atomic,
            "create_atomic_cas": self.atomic,
            "create_dot": self.dot,
            "cast_impl": self.cast,
        }

    def _find(self, pointers: Any, mask: Any, verb: str) -> list[Any]:
        """The buffers of the lanes of a mask: each with its lanes, and their places in it."""
        import numpy as np

        # A comparison keeps the type of what it compared, so a mask may consist of whole numbers.
        lanes = np.broadcast_to(mask.data, pointers.data.shape).astype(bool)
        addresses = pointers.data[lanes]
        if not addresses.size:
            return []
        regions = (addresses.astype(np.int64) + (1 << (REGION - 1))) >> REGION
        found = []
        for region in np.unique(regions):
            if not 1 <= region <= len(self._buffers):
                raise KernelFault(f"it {verb} out of bounds: an address of no buffer")
            buffer, here = self._buffers[region - 1], lanes.copy()
            here[lanes] = regions == region
            found.append((buffer, here, buffer.locate(pointers.data[here], verb)))
        return found

    def load(self, pointers: Any, mask: Any, other: Any, *hints: Any) -> Any:
        """Read the lanes of a mask; the others get `other`, or poison."""
        import numpy as np
        from triton.runtime.interpreter import TensorHandle, _get_np_dtype

        kind = pointers.get_element_ty()
        values = np.empty(pointers.data.shape, _get_np_dtype(kind))
        if other is None:
            values[...] = POISON.get(str(kind).replace("int", "i"), 0x5A)
            if values.ndim > 0 and values.dtype.kind == "f":
                values[..., 1::2] = np.inf  # a maximum ignores NaN
        else:
            values[...] = other.data
        self.loads += 1
        for buffer, lanes, places in self._find(pointers, mask, "reads"):
            writers = buffer.writer[places]
            self._refuse_others(buffer, writers, "reads what program {} of the launch has written")
            readers = buffer.reader[places]
            mine = (readers == NOBODY) | (readers == self.program)
            buffer.reader[places] = np.where(mine, self.program, SEVERAL)
            values[lanes] = buffer.data[places]
            size = len(places) * buffer.itemsize
            buffer.read_bytes += size
            self._own += size
            self.most = max(self.most, self._own)
        return TensorHandle(values, kind)

    def store(self, pointers: Any, value: Any, mask: Any, *hints: Any) -> None:
        """Write the lanes of a mask."""
        import numpy as np

        self.stores += 1
        data = np.broadcast_to(value.data, pointers.data.shape)
        for buffer, lanes, places in self._find(pointers, mask, "writes"):
            if not buffer.writable:
                raise KernelFault(f"it writes to `{buffer.name}`, which is an input")
            self._refuse_others(
                buffer, buffer.writer[places], "writes what program {} of the launch has written"
            )
            self._refuse_others(
                buffer, buffer.reader[places], "writes what program {} of the launch has read"
            )
            buffer.writer[places] = self.program
            buffer.data[places] = data[lanes]
            buffer.written[places] = True
            buffer.written_bytes += len(places) * buffer.itemsize

    def _refuse_others(self, buffer: GuardedBuffer, programs: Any, words: str) -> None:
        strange = programs[(programs != NOBODY) & (programs != self.program)]
        if strange.size:
            other = "another" if strange[0] == SEVERAL else str(int(strange[0]))
            said = words.format(other)
            raise KernelFault(f"it {said}, in `{buffer.name}`: programs have no order")

    def atomic(self, *args: Any) -> Any:
        """Refuse: what programs add to one place comes in no order, and a sum depends on it."""
        raise KernelFault("it uses an atomic operation, whose order nobody fixes")

    def dot(self, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
        """Multiply; float32 loses 13 bits, as TF32 does, unless the precision is "ieee"."""
        from triton._C.libtriton import ir

        self.dots += 1
        if precision == ir.INPUT_PRECISION.TF32:
            a, b = _tf32(a), _tf32(b)
        return type(self._builder).create_dot(self._builder, a, b, d, precision, imprecise)

    def cast(self, source: Any, target: Any) -> Any:
        """Convert; bfloat16 is refused, since the interpreter computes with its bits."""
        import triton.language as tl

        if tl.bfloat16 in (source.dtype.scalar, target.scalar):
            raise KernelFault("it uses bfloat16, whose bits the interpreter takes for integers")
        return type(self._builder).cast_impl(self._builder, source, target)


def _tf32(handle: Any) -> Any:
    import numpy as np
    from triton.runtime.interpreter import TensorHandle

    if handle.data.dtype != np.float32:
        return handle
    bits = np.ascontiguousarray(handle.data).view(np.uint32)
    return TensorHandle(((bits + 0x1000) & 0xFFFFE000).view(np.float32), handle.dtype)
