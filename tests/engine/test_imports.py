"""Who imports whom in quire: no circles, and what lies below knows nothing of what lies above."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import networkx as nx
import pytest

import quire

SOURCE = Path(quire.__file__).parent

# What no module of a package reaches, by however many imports.
ABOVE = {
    "quire.kernels": ["attention", "layers", "models", "quantization", "sampling", "runner"],
    "quire.attention": ["layers", "models", "quantization", "sampling", "runner"],
    "quire.layers": ["models.decoder", "models.loader", "quantization", "runner"],
    "quire.quantization": ["models.decoder", "models.loader", "runner"],
    "quire.models": ["runner", "scheduler", "engine"],
    "quire.runner": ["engine", "executor", "llm"],
    "quire.scheduler": ["models.decoder", "layers", "attention", "kernels.paged_decode", "engine"],
    "quire.engine": ["llm", "async_engine"],
}


@cache
def import_graph() -> nx.DiGraph:
    """An edge from each module to each module that it imports, at run time or for its types."""
    modules: dict[str, Path] = {}
    for path in SOURCE.rglob("*.py"):
        parts = ["quire", *path.relative_to(SOURCE).with_suffix("").parts]
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph = nx.DiGraph()
    graph.add_nodes_from(modules)
    for name, path in modules.items():
        for imported in imported_names(ast.parse(path.read_text("utf-8"))):
            known = imported if imported in modules else imported.rpartition(".")[0]
            if known in modules and known != name:
                graph.add_edge(name, known)
    return graph


def imported_names(tree: ast.Module) -> list[str]:
    """Names of modules, or of what is taken from them; quire imports nothing relatively."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def test_the_graph_is_read() -> None:
    graph = import_graph()
    assert graph.has_edge("quire.models.decoder", "quire.layers.attention")
    assert graph.has_edge("quire.kernels.qkv", "quire.kv.layer")
    assert graph.number_of_nodes() > 80


def test_no_circles() -> None:
    """Not even for type hints: two modules that need each other's types are one idea."""
    graph = import_graph()
    for circle in nx.strongly_connected_components(graph):
        edges = [f"{a} -> {b}" for a, b in graph.subgraph(circle).edges]
        assert not edges, "\n".join(edges)


@pytest.mark.parametrize("package", ABOVE)
def test_nothing_below_imports_upward(package: str) -> None:
    graph = import_graph()
    forbidden = [f"quire.{name}" for name in ABOVE[package]]
    begin = [module for module in graph if within(module, package)]
    assert begin
    assert all(any(within(module, f) for module in graph) for f in forbidden), "a name is outdated"
    for module in begin:
        for reached, path in nx.single_source_shortest_path(graph, module).items():
            assert not any(within(reached, f) for f in forbidden), " -> ".join(path)
