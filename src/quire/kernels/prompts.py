"""Which kernel attends for a step's prompts: Hopper's own where it serves, or every GPU's."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from quire.kernels.hopper import prefill_on_hopper, serves_hopper, tokens_per_piece
from quire.kernels.prefill import prefill, tokens_per_tile
from quire.kernels.tuning import Tuning, tuning
from quire.kv.batch import AttentionBatch
from quire.kv.layer import LayerKV


@dataclass(frozen=True)
class Prefill:
    """The kernel of a step's prompts, and the launch settings of the step."""

    tuning: Tuning
    on_hopper: bool

    @classmethod
    def of(cls, query: Tensor, kv: LayerKV, window: int | None, given: Tuning | None) -> Prefill:
        """Choose for queries [num_tokens, num_heads, head_size] over a layer's cache.

        Args:
            given: launch settings of the kernels for every GPU, which then serve; None: those of
                the tuned table, and Hopper's own kernel where there is one.
        """
        if given is not None:
            return cls(given, on_hopper=False)
        settings = tuning(query.device, query.shape[2], query.dtype.itemsize)
        return cls(settings, serves_hopper(query, kv, window))

    def tokens_per_tile(self, group: int) -> int:
        """Return how many tokens of a chunk a tile has, with `group` query heads a KV head."""
        if self.on_hopper:
            return tokens_per_piece(group)
        return tokens_per_tile(group, self.tuning.prefill)

    def launch(
        self,
        output: Tensor,
        query: Tensor,
        source: LayerKV | tuple[Tensor, Tensor],
        batch: AttentionBatch,
        tiles: Tensor,
        scale: float,
        window: int | None,
    ) -> None:
        """Attend for tiles of chunks; the arguments are those of `prefill`."""
        if self.on_hopper:
            prefill_on_hopper(output, query, source, batch, tiles, scale)
        else:
            prefill(output, query, source, batch, tiles, scale, window, self.tuning.prefill)
