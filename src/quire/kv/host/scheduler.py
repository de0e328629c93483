"""`OffloadingScheduler`: quire's scheduler, whose steps begin with transfers."""

from __future__ import annotations

from dataclasses import replace

from quire.config import EngineConfig
from quire.kv.host.manager import OffloadingKVCacheManager
from quire.messages import SchedulerOutput
from quire.scheduler import TokenBudgetScheduler


class OffloadingScheduler(TokenBudgetScheduler):
    """Decides as its parent does, and hands on what the cache decided on the way."""

    def __init__(self, config: EngineConfig, kv: OffloadingKVCacheManager) -> None:
        super().__init__(config, kv)
        self._offloading = kv

    def schedule(self) -> SchedulerOutput:
        """Return the next step's work, its transfers first."""
        output = super().schedule()
        return replace(output, transfers=self._offloading.take_transfers())

    def retract(self, output: SchedulerOutput) -> None:
        """Take back a step that was never carried out, its saves among it."""
        super().retract(output)
        self._offloading.forget_host()
