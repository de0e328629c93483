"""What a cell of kernels may hold: kernels, the functions that plan their launches, and constants.

The interpreter runs a kernel as Python, in the process that also measures it. So a cell that
reached for NumPy, for the interpreter's handles or for the functions around it could answer without
a kernel. The rule here is about the text, before it counts; Triton's compiler, which takes much
less, has the last word where a test asks for PTX.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

IMPORTS = {"triton", "triton.language", "math"}
TRITON = {"jit", "cdiv", "next_power_of_2", "language"}
BUILTINS = {
    "NotImplementedError", "ValueError", "abs", "all", "any", "bool", "dict", "divmod", "enumerate",
    "filter", "float", "int", "isinstance", "len", "list", "map", "max", "min", "next", "pow",
    "print", "range", "reversed", "round", "set", "sorted", "str", "sum", "tuple", "zip",
}  # fmt: skip
# Parts of triton.language that are modules or make functions of something else.
NOT_LANGUAGE = {
    "core", "standard", "semantic", "extra", "target_info", "builtin", "jit", "ir",
    "inline_asm_elementwise", "tensor", "base_value", "base_type", "must_use_result",
}  # fmt: skip
METHODS = {
    "to", "dtype", "element_ty", "shape", "T", "value", "cast", "reshape", "permute", "trans",
    "split", "expand_dims", "broadcast_to", "view", "sum", "max", "min", "exp", "sqrt", "abs",
    "add", "append", "bit_length", "copy", "count", "extend", "fromkeys", "get", "index", "insert",
    "items", "join", "keys", "pop", "remove", "setdefault", "sort", "update", "values",
}  # fmt: skip


def complaint(source: str, taken: frozenset[str]) -> str | None:
    """Say why a cell is not plain, with its line, or return None.

    Args:
        source: of the cells; it compiles.
        taken: names that the cell may not define, since the functions around it have them.
    """
    tree = ast.parse(source)
    bound = _bound(tree)
    modules = dict(_modules(tree))
    for node in ast.walk(tree):
        said = _complaint_of(node, bound, modules, taken)
        if said is not None:
            return f"line {getattr(node, 'lineno', 1)} of the cell {said}"
    return None


def _complaint_of(
    node: ast.AST, bound: set[str], modules: dict[str, str], taken: frozenset[str]
) -> str | None:
    match node:
        case ast.Import(names=names):
            strange = [alias.name for alias in names if alias.name not in IMPORTS]
            return (
                f"imports {strange[0]}: a kernel's cell imports triton and math"
                if strange
                else None
            )
        case ast.ImportFrom(module=module):
            return None if module in IMPORTS else f"imports {module}"
        case ast.Name(id=name) if name.startswith("__"):
            return f"uses {name}"
        case ast.Name(id=name, ctx=ast.Load()) if name not in bound | BUILTINS:
            return f"uses {name}, which is neither defined in it nor among the functions allowed"
        case ast.Name(id=name, ctx=ast.Store()) if name in taken | set(modules):
            return f"defines {name}, a name that is taken"
        case ast.FunctionDef(name=name) if name in taken | set(modules) | {"range"}:
            return f"defines {name}, a name that is taken"
        case ast.ClassDef() | ast.Global() | ast.Nonlocal() | ast.Delete():
            return f"holds a {type(node).__name__.lower()}: kernels and launches need none"
        case ast.Try() | ast.With() | ast.Await() | ast.Yield() | ast.YieldFrom():
            return f"holds a {type(node).__name__.lower()}: kernels and launches need none"
        case ast.Attribute(ctx=ast.Store() | ast.Del()):
            return f"sets the attribute {node.attr} of something"
        case ast.Attribute(value=value, attr=attribute):
            return _attribute(value, attribute, modules)
    return None


def _attribute(value: ast.expr, attribute: str, modules: dict[str, str]) -> str | None:
    """What is wrong with reading an attribute of an expression."""
    module = modules.get(value.id) if isinstance(value, ast.Name) else None
    if module == "triton":
        allowed = attribute in TRITON
    elif module == "triton.language":
        allowed = attribute not in NOT_LANGUAGE and not attribute.startswith("_")
    elif module == "math" or (
        isinstance(value, ast.Attribute) and value.attr in ("math", "language")
    ):
        allowed = not attribute.startswith("_") and attribute not in NOT_LANGUAGE
    else:
        allowed = attribute in METHODS
    return None if allowed else f"uses the attribute {attribute}, which a kernel has no use for"


def _modules(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Names that stand for modules, and which."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (
                    (alias.asname or alias.name.partition(".")[0]),
                    (alias.name if alias.asname else alias.name.partition(".")[0]),
                )
        elif isinstance(node, ast.ImportFrom) and node.module == "triton":
            for alias in node.names:
                if alias.name == "language":
                    yield alias.asname or alias.name, "triton.language"


def _bound(tree: ast.Module) -> set[str]:
    """Every name that the cell gives a meaning to, anywhere."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    return found
