"""`ProcessExecutor`: an engine's ranks in processes that it starts, on a GPU each."""

from __future__ import annotations

from pathlib import Path

import torch

from quire.components import Components
from quire.config import EngineConfig
from quire.errors import QuireError
from quire.kv.spec import CacheLayout
from quire.models.config import ModelConfig
from quire.parallel.processes import RankProcesses
from quire.parallel.rank_executor import RankExecutor
from quire.speculation.factory import DraftSource


class ProcessExecutor(RankExecutor):
    """`RankExecutor` over `RankProcesses`."""

    def __init__(
        self,
        config: EngineConfig,
        model_config: ModelConfig,
        layout: CacheLayout,
        folder: Path | None,
        components: Components,
        draft: DraftSource | None = None,
    ) -> None:
        """Start the ranks and load the model.

        Raises:
            QuireError: there are fewer GPUs than ranks; what all ranks raised.
            RankError: a rank died, or failed alone.
        """
        self.ranks = RankProcesses(_devices(config))
        super().__init__(self.ranks, config, model_config, layout, folder, components, draft)


def _devices(config: EngineConfig) -> list[torch.device]:
    """Return each rank's device.

    Raises:
        QuireError: there are fewer GPUs than ranks.
    """
    size = config.parallel.num_ranks
    if config.model.device.type == "cpu":
        return [config.model.device] * size
    first, count = config.model.device.index or 0, torch.cuda.device_count()
    if first + size > count:
        raise QuireError(
            f"{size} ranks (tensor_parallel_size * pipeline_parallel_size) from device "
            f"{config.model.device} on: torch sees {count} CUDA devices, and each rank needs one "
            "of its own; use fewer ranks"
        )
    return [torch.device("cuda", first + rank) for rank in range(size)]
