"""Asking an engine's ranks, wherever they are, what its experts were sent."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from quire.errors import QuireError
from quire.executor import Executor, InlineExecutor


@runtime_checkable
class CountingExecutor(Protocol):
    """An executor of several ranks that can tell what each has counted."""

    def expert_loads(self) -> list[dict[int, list[int]]]:
        """Return the tokens that each expert was sent, by layer: of each rank its own count."""
        ...


def counted_loads(executor: Executor) -> list[dict[int, list[int]]]:
    """Return what each rank has counted, as `Worker.expert_loads` tells it.

    Raises:
        QuireError: the executor cannot tell; the engine was shut down.
    """
    if isinstance(executor, InlineExecutor):
        return [executor.worker.expert_loads()]
    if isinstance(executor, CountingExecutor):
        return executor.expert_loads()
    raise QuireError(
        f"{type(executor).__name__} cannot tell what experts were sent: it has no expert_loads()"
    )
