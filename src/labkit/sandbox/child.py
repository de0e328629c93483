"""The side of labkit that meets the reader's code: loads cells and answers requests.

This file is all of labkit that exists inside the sandbox. It imports the standard library
only, so it runs by path under `python -I -S`. A request and a reply are one line of JSON
each; `Executor` serves them, `main` puts it behind a pipe. `labkit.check` uses the same
`Executor` inside the notebook, so a reader and a grader put the same question the same way.

Values travel as JSON, with two additions: bytes are `{"$bytes": hex}` and an array or tensor is
`{"$array": base64, "dtype": …, "shape": …}`, its numbers in one of `DTYPES`. Nothing else crosses,
least of all an object with an `__eq__` of its own.

Code that an earlier task of the lab holds is not here: a stand-in of the same name asks the
parent, which asks the reference in another child.
"""

from __future__ import annotations

import base64
import builtins
import copy
import json
import linecache
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

DTYPES = ("float64", "float32", "int64", "bool")
MAX_TEXT = 400  # characters of an error message
MAX_FILE = 60  # characters of the name of a cell
MAX_DEPTH = 32  # lists and dicts inside one another
MAX_BITS = 1000  # of an integer: one that still has a float next to it

Ask = Callable[[dict[str, Any]], dict[str, Any]]


def to_wire(value: Any) -> Any:
    """Turn a value into what JSON can hold.

    Raises:
        TypeError: a type that is not a plain value; the message names it.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) in (bytes, bytearray):
        return {"$bytes": value.hex()}
    if type(value) in (list, tuple):
        return [to_wire(item) for item in value]
    if type(value) is dict:
        if not all(type(key) is str for key in value):
            raise TypeError("a dict whose keys are not all strings")
        return {key: to_wire(item) for key, item in value.items()}
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if torch is not None and type(value) is torch.Tensor:
        value = value.detach().cpu()  # NumPy has no bfloat16, so floating point is widened here
        value = (value.double() if value.is_floating_point() else value).numpy()
    if numpy is not None:
        if type(value) is numpy.ndarray:
            name = _wide(value, numpy)
            data = base64.b64encode(numpy.ascontiguousarray(value, dtype=name).tobytes()).decode()
            return {"$array": data, "dtype": name, "shape": list(value.shape)}
        if isinstance(value, numpy.generic):
            return to_wire(value.item())
    raise TypeError(f"a value of type {type(value).__name__}")


def _wide(array: Any, numpy: Any) -> str:
    """The name of the dtype in which an array travels: it has every number that the array has.

    Raises:
        TypeError: there is none; the message names the array's dtype.
    """
    name: str = array.dtype.name
    if name in DTYPES:
        return name
    if name == "uint64" and (array >> 63).any():
        raise TypeError(f"an array of dtype {name} with a number from 2**63 on")
    if array.dtype.kind in "iu":
        return "int64"
    if array.dtype.kind == "f" and numpy.can_cast(array.dtype, numpy.float64):
        return "float64"
    raise TypeError(f"an array of dtype {name}")


def from_wire(value: Any, depth: int = MAX_DEPTH) -> Any:
    """Undo `to_wire`; a tuple comes back as a list.

    Raises:
        ValueError: an array whose dtype, shape and bytes disagree, bad hex, lists too deep,
            an integer too large.
    """
    if type(value) is int and value.bit_length() > MAX_BITS:
        raise ValueError(f"an integer of {value.bit_length()} bits; {MAX_BITS} are allowed")
    if type(value) not in (list, dict):
        return value
    if depth == 0:
        raise ValueError(f"more than {MAX_DEPTH} lists and dicts inside one another")
    if type(value) is list:
        return [from_wire(item, depth - 1) for item in value]
    if "$bytes" in value:
        return bytes.fromhex(value["$bytes"])
    if "$array" in value:
        return _array(value["$array"], value["dtype"], value["shape"])
    return {key: from_wire(item, depth - 1) for key, item in value.items()}


def _array(encoded: str, dtype: Any, shape: Any) -> Any:
    """An array from its bytes, once dtype, shape and number of bytes agree."""
    import numpy

    if dtype not in DTYPES or type(shape) is not list or len(shape) > MAX_DEPTH:
        raise ValueError(f"an array of dtype {dtype!r} and shape {shape!r}")
    data = base64.b64decode(encoded, validate=True)
    size = numpy.dtype(dtype).itemsize
    for n in shape:
        if type(n) is not int or n < 0:
            raise ValueError(f"an array of shape {shape!r}")
        size *= n
    if size != len(data):
        raise ValueError(f"{len(data)} bytes for an array of shape {shape!r}")
    if dtype == "bool" and data.translate(None, b"\0\1"):
        raise ValueError("truth values other than 0 and 1")
    return numpy.frombuffer(data, dtype=dtype).reshape(shape).copy()


class Executor:
    """Runs requests on a namespace.

    Requests (`op`): `load` a list of cells into a fresh namespace, after stand-ins for code
    that is elsewhere, with `readable` so that `inspect` finds their source, which Triton reads;
    `call` a function; `new` makes an object and answers its handle; `method` and `get` reach
    into one.
    """

    def __init__(
        self,
        namespace: dict[str, Any] | None = None,
        through: tuple[type[BaseException], ...] = (),
        ask: Ask | None = None,
    ) -> None:
        """Serve `namespace`, or an empty one to load cells into.

        Whatever the reader's code raises becomes an answer, save what is in `through`;
        stand-ins put their requests to `ask`.
        """
        self.namespace = {} if namespace is None else namespace
        self._through = through
        self._ask = ask
        self._objects: list[Any] = []

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer `{"value": …}` (and `"args"` asked for), or `{"error": words}`."""
        operations = {
            "load": self._load,
            "call": self._call,
            "new": self._new,
            "method": self._method,
            "get": self._get,
        }
        try:
            return operations[request["op"]](request)
        except BaseException as error:  # exit included
            if isinstance(error, self._through):
                raise
            return {"error": _words(error)}

    def _load(self, request: dict[str, Any]) -> dict[str, Any]:
        self.namespace, self._objects = {"__name__": "__main__"}, []
        for name, methods in request.get("stand_ins", {}).items():
            assert self._ask is not None
            self.namespace[name] = _stand_in(self.namespace, self._ask, name, methods)
        for name, source in request["cells"]:
            file = f"<cell {name}>"
            if request.get("readable"):
                lines = source.splitlines(keepends=True)
                linecache.cache[file] = (len(source), None, lines, file)
            # A cell has the language that a notebook gives it, not this file's `annotations`.
            exec(compile(source, file, "exec", dont_inherit=True), self.namespace)
        return {"value": None}

    def _call(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._run(self._lookup(request["name"]), request)

    def _new(self, request: dict[str, Any]) -> dict[str, Any]:
        named = from_wire(request.get("named", {}))
        made = self._lookup(request["name"])(*from_wire(request["args"]), **named)
        self._objects.append(made)
        return {"value": len(self._objects) - 1}

    def _method(self, request: dict[str, Any]) -> dict[str, Any]:
        target = self._objects[request["handle"]]
        return self._run(getattr(target, request["name"]), request)

    def _get(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._reply(getattr(self._objects[request["handle"]], request["name"]))

    def _run(self, function: Any, request: dict[str, Any]) -> dict[str, Any]:
        args = copy.deepcopy(from_wire(request["args"]))
        reply = self._reply(function(*args, **from_wire(request.get("named", {}))))
        if "error" not in reply and request.get("returning"):
            reply["args"] = [to_wire(args[i]) for i in request["returning"]]
        return reply

    def _reply(self, value: Any) -> dict[str, Any]:
        try:
            return {"value": to_wire(value)}
        except TypeError as error:
            return {"error": f"it returned {error}, which is no plain value"}

    def _lookup(self, name: str) -> Any:
        if name not in self.namespace:
            raise NameError(f"{name} is not defined: has its cell been run, under that name?")
        return self.namespace[name]


def _stand_in(namespace: dict[str, Any], ask: Ask, name: str, methods: list[str] | None) -> Any:
    """A function, or with `methods` a class, that asks whoever holds the code."""

    def send(request: dict[str, Any], args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        changeable = [i for i, arg in enumerate(args) if _can_change(arg)]
        wire = {"args": to_wire(args), "named": to_wire(named), "returning": changeable}
        reply = ask(request | wire)
        if "error" in reply:
            raise _error_of(namespace, reply["error"])
        for i, after in zip(changeable, from_wire(reply.get("args", [])), strict=False):
            _write_back(args[i], after)
        return from_wire(reply["value"])

    def function(*args: Any, **named: Any) -> Any:
        return send({"op": "call", "name": name}, args, named)

    if methods is None:
        return function

    class StandIn:
        def __init__(self, *args: Any, **named: Any) -> None:
            self._handle = send({"op": "new", "name": name}, args, named)

        def __getattr__(self, attribute: str) -> Any:
            if attribute.startswith("_"):
                raise AttributeError(attribute)
            return send({"op": "get", "handle": self._handle, "name": attribute}, (), {})

    def method(called: str) -> Any:
        def run(self: Any, *args: Any, **named: Any) -> Any:
            return send({"op": "method", "handle": self._handle, "name": called}, args, named)

        return run

    for called in methods:
        setattr(StandIn, called, method(called))
    StandIn.__name__ = StandIn.__qualname__ = function.__name__ = name
    return StandIn


def _can_change(value: Any) -> bool:
    """Whether code elsewhere may have changed its copy of a value: a list, dict or array.

    A view of an array may be read-only, `numpy.diag` of a matrix for one: nobody changes it.
    """
    if not hasattr(value, "__setitem__") or type(value) is bytearray:
        return False
    return bool(getattr(getattr(value, "flags", None), "writeable", True))


def _write_back(target: Any, after: Any) -> None:
    """Do to an argument what the code elsewhere did to its copy."""
    if type(target) is dict:
        target.clear()
        target.update(after)
    elif type(target) is list:
        target[:] = after
    else:
        target[...] = after


def _error_of(namespace: dict[str, Any], words: str) -> BaseException:
    """The exception that a stand-in's code raised elsewhere, or the nearest there is here."""
    name, _, message = words.partition(": ")
    kind = namespace.get(name, getattr(builtins, name, None))
    if isinstance(kind, type) and issubclass(kind, Exception):
        return kind(message)
    return RuntimeError(words)


def _words(error: BaseException) -> str:
    """Return the error as `type: message`, with its line in the reader's cell."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f for f in frames if f.filename.startswith(("<cell ", "<ipython", "/tmp/ipykernel"))]
    where = ""
    if lines:  # an earlier task's cell may be at fault, so a cell that has a name is named
        file = lines[-1].filename
        cell = file[1:-1][:MAX_FILE] if file.startswith("<cell ") else "cell"
        where = f" (line {lines[-1].lineno} of the {cell})"
    if isinstance(error, SyntaxError):
        return f"syntax error in line {error.lineno}: {error.msg}"[:MAX_TEXT]
    try:
        message = str(error)
    except BaseException:
        message = "an exception that cannot be printed"
    return f"{type(error).__name__}: {message}"[:MAX_TEXT] + where


def _become(user: int) -> None:
    """Give up root's rights for good, for those of a user who owns nothing."""
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)


def _limit(limits: dict[str, int]) -> None:
    """Lower this process's limits for good, before any of the reader's code runs."""
    import resource

    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))


def main() -> None:
    """Serve requests from standard input until it ends."""
    limits, packages, user = json.loads(sys.argv[1])
    sys.path.extend(packages)
    # bubblewrap hands on what it was given itself, the filter's file.
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    # The reader's prints go nowhere: the pipe belongs to the protocol.
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    _limit(limits)
    if user is not None:
        _become(user)

    def ask(request: dict[str, Any]) -> dict[str, Any]:
        replies.write(json.dumps({"ask": request}).encode() + b"\n")
        replies.flush()
        answer: dict[str, Any] = json.loads(requests.readline())
        return answer

    executor = Executor(ask=ask)
    for line in requests:
        request = json.loads(line)
        reply = executor.handle(request)
        reply["id"] = request["id"]
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()


if __name__ == "__main__":
    main()
