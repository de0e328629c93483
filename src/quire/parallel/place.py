"""`Place`: where a rank stands among all, and which layers of the model are its.

Pipeline parallelism (Huang et al. 2019, GPipe; Narayanan et al. 2019, PipeDream) cuts a model
between layers: a stage computes some of them for all heads and hands the residual stream on. A
stage may itself be several ranks that share its matrices. See the page "Stages, rings, machines".
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from quire.analysis.memory import count_parameters
from quire.errors import QuireError
from quire.models.config import ModelConfig
from quire.parallel.comm import Comm, Solo
from quire.parallel.expert_plan import ExpertPlan, Placements
from quire.parallel.options import ParallelOptions


@dataclass(frozen=True)
class Place:
    """A rank's ends of its two groups: who shares its matrices, and who has the other layers.

    Rank r of the world is rank r % T of its stage, T being the stage's size, and its stage is
    number r // T.
    """

    tensor: Comm = field(default_factory=Solo)
    pipeline: Comm = field(default_factory=Solo)
    expert_parallel: bool = False  # a rank has some experts whole, instead of a part of each
    experts: ExpertPlan = field(default_factory=ExpertPlan)

    @classmethod
    def of(
        cls,
        options: ParallelOptions,
        placements: Placements,
        tensor: Comm,
        pipeline: Comm,
        device: torch.device,
    ) -> Place:
        """Return the place, on this device, of the rank of an engine whose ends are these."""
        plan = ExpertPlan.of(options, placements, device)
        return cls(tensor, pipeline, options.enable_expert_parallel, plan)

    @property
    def is_first(self) -> bool:
        """Whether tokens enter the model here."""
        return self.pipeline.rank == 0

    @property
    def is_last(self) -> bool:
        """Whether logits leave it here."""
        return self.pipeline.rank == self.pipeline.size - 1

    @property
    def graph_safe(self) -> bool:
        """Whether a step of this rank can be captured, with what it tells those of its stage.

        What stages tell one another stays outside; see `queue`.
        """
        return self.tensor.graph_safe and not self.exchanges_tokens

    @property
    def exchanges_tokens(self) -> bool:
        """Whether tokens are sent to the ranks of their experts, by sizes that the host reads."""
        shared = self.expert_parallel and self.tensor.size > 1
        return shared and self.experts.dispatch == "all_to_all"

    def receive(self, stream: Tensor) -> None:
        """Fill `stream`, [num_tokens, hidden_size], with what the stage before sends; see `queue`.

        The first stage gets nothing.
        """
        if not self.is_first:
            received = self.pipeline.receive(stream, self.pipeline.rank - 1)
            if received is not stream:  # NCCL and gloo fill it in place; ranks in lockstep do not
                stream.copy_(received)

    def hand_on(self, stream: Tensor) -> None:
        """Send `stream`, [num_tokens, hidden_size], to the next stage; the last one has none."""
        if not self.is_last:
            self.pipeline.send(stream, self.pipeline.rank + 1)

    def queue(
        self, work: Callable[[], None], num_live_rows: int, received: Tensor, handed_on: Tensor
    ) -> None:
        """Let `work` queue a padded step of which so many rows, from the first, are requests'.

        The messages of stages stand around a captured step, not in it, though NCCL's could be
        captured. A stage then captures without the others, and no two graphs must be replayed as
        a pair. The price is a launch a message, which the host makes while devices compute. One
        stream keeps the order: the next step's message overwrites `received` after this step has
        read it, and the next step overwrites `handed_on` after it was sent.

        Padded rows travel as well: each stage finds in them what the one before computed there,
        as on a single GPU, and never what an earlier step left.

        Args:
            received: what `work` reads, [num_tokens, hidden_size]; no rows on the first stage.
            handed_on: what `work` writes, [num_tokens, hidden_size]; on the last stage anything.
        """
        live = self.experts.live_rows
        self.receive(received)
        with nullcontext() if live is None else live.limited(num_live_rows):
            work()
        self.hand_on(handed_on)

    def layers(self, config: ModelConfig) -> range:
        """Return which layers of a model are this stage's."""
        return split_layers(config, self.pipeline.size)[self.pipeline.rank]


# docs: split begin
def split_layers(config: ModelConfig, num_stages: int) -> list[range]:
    """Return each stage's layers, so that no stage reads more weights than it must.

    The slowest stage sets the pace. The last one multiplies by the head as well, which may weigh
    as much as several layers; the embedding is looked up, not read.

    Raises:
        QuireError: there are fewer layers than stages.
    """
    num_layers = config.num_layers
    if num_stages > num_layers:
        raise QuireError(
            f"pipeline_parallel_size={num_stages}: the model has num_hidden_layers={num_layers}, "
            "and each stage needs one; use fewer stages"
        )
    if num_stages == 1:
        return [range(num_layers)]
    counted = count_parameters(config)
    a_layer = (counted.attention + counted.mlp) / num_layers
    head = config.vocab_size * config.hidden_size / a_layer

    def most(num_last: int) -> float:
        """Weights of the heaviest stage, in layers, if the last one has so many."""
        return max(-(-(num_layers - num_last) // (num_stages - 1)), num_last + head)

    num_last = min(range(1, num_layers - num_stages + 2), key=most)
    each, rest = divmod(num_layers - num_last, num_stages - 1)
    sizes = [each + (stage < rest) for stage in range(num_stages - 1)] + [num_last]
    ends = [sum(sizes[: stage + 1]) for stage in range(num_stages)]
    return [range(end - size, end) for end, size in zip(ends, sizes, strict=True)]


# docs: split end
