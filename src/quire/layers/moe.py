"""`MoE`: a mixture of experts in place of a layer's MLP; a token meets k of its E experts.

Shazeer et al. 2017, in the form of Mixtral and Qwen3-MoE: softmax over the router's logits,
the k largest, a weighted sum of what those experts make of the token.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from zlib import crc32

import torch
from torch import Tensor

from quire.errors import QuireError
from quire.kernels.expert_tiles import chooses_in_pairs, tile_changes
from quire.kernels.experts import apply_experts, route_experts
from quire.kernels.linear import MAX_ROWS, linear
from quire.kernels.router import choose_experts
from quire.kernels.routes import CopyTables
from quire.kernels.tiles import EACH_ROWS, make_counters
from quire.layers.expert_exchange import ExpertExchange
from quire.layers.expert_routes import ExpertRoutes
from quire.layers.module import (
    RANDOM_STD,
    Layer,
    Taker,
    copy_checked,
    copy_part,
    empty_parameter,
    leave,
)
from quire.models.moe_config import MoEConfig
from quire.parallel.comm import PartialSum
from quire.parallel.part import Part, even_part
from quire.parallel.place import Place


class Router(Layer):
    """Chooses a token's experts and their weights; every rank has all of it."""

    def __init__(
        self,
        config: MoEConfig,
        hidden_size: int,
        prefix: str,
        dtype: torch.dtype,
        device: torch.device,
        tables: CopyTables | None = None,
    ) -> None:
        """Create the router, `prefix` in the checkpoint, with its weight [E, H] empty.

        Args:
            tables: of the experts' copies, where slots are given in place of experts.
        """
        super().__init__()
        self._tables = tables
        self.name = f"{prefix}.gate.weight"
        self.top_k, self.renormalize = config.experts_per_token, config.renormalize
        self.spread = config.router_spread
        self.weight = empty_parameter((config.num_experts, hidden_size), dtype, device)
        self._counters = make_counters(config.num_experts, device)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return experts int32 [T, k] and weights float32 [T, k] of x [T, H].

        Where there are tables of copies, experts are given as slots of the stage.
        """
        return choose_experts(self.logits(x), self.top_k, self.renormalize, self._tables)

    def logits(self, x: Tensor) -> Tensor:
        """Return a number for each expert, [T, E], of x [T, H]."""
        return linear(x, self.weight, None, self._counters)

    def takes(self) -> dict[str, Taker]:
        """One weight."""
        return {self.name: Taker(partial(copy_checked, self.weight))}

    def fill_random(self, generator: torch.Generator) -> None:
        """Draw every element from a normal distribution; experts of low numbers may get more.

        Where `router_spread` is s, the row of expert e is scaled by exp(s · (1 - (2e + 1) / E)): a
        longer row's scores are further from zero, so that more of them are among the largest. It
        is for measuring skew, which the chance of random rows gives little of.
        """
        self.weight.normal_(0.0, RANDOM_STD, generator=generator)
        number = torch.arange(len(self.weight), device=self.weight.device)
        scale = torch.exp(self.spread * (1 - (2 * number + 1) / len(number)))
        self.weight.mul_(scale[:, None].to(self.weight.dtype))


class Experts(Layer):
    """The weights of the experts that are held here, each in a slot.

    Invariants: `gate_up` is [S, 2 · I, H] and `down` [S, H, I] for S slots; `slots`, int32, maps
    what ids hold, an expert's number or that of one of its copies, to the slot in [0, S), or to S
    where another rank holds it. Such an expert adds nothing here. I is the part of an expert's
    features that this rank keeps.
    """

    slots: Tensor

    def __init__(
        self,
        config: MoEConfig,
        hidden_size: int,
        prefix: str,
        dtype: torch.dtype,
        device: torch.device,
        held: Sequence[int] | None = None,
        features: Part | None = None,
        slots: Tensor | None = None,
    ) -> None:
        """Create the experts, `prefix` in the checkpoint, with their weights empty.

        Args:
            held: experts in the order of their slots; None: all of them.
            features: of each expert's; None: all of them.
            slots: int32, the slot here of each number that ids may hold, S where it has none;
                None: ids are numbers of experts.

        Raises:
            QuireError: an expert that the model lacks, or one twice.
        """
        super().__init__()
        self.names = config.names
        self.prefix = f"{prefix}.experts"
        self.held = tuple(range(config.num_experts) if held is None else held)
        self.features = features or Part.whole(config.intermediate_size)
        self.size, self._hidden = self.features.size, Part.whole(hidden_size)
        unknown = set(self.held) - set(range(config.num_experts))
        if unknown or len(set(self.held)) < len(self.held):
            raise QuireError(
                f"held={list(self.held)}: must be different experts of 0 to "
                f"{config.num_experts - 1}"
            )
        num_slots = len(self.held)
        self.gate_up = empty_parameter((num_slots, 2 * self.size, hidden_size), dtype, device)
        self.down = empty_parameter((num_slots, hidden_size, self.size), dtype, device)
        self._num_experts = config.num_experts
        if slots is None:
            slots = torch.full((config.num_experts,), num_slots, dtype=torch.int32)
            slots[list(self.held)] = torch.arange(num_slots, dtype=torch.int32)
        self.slots = slots.to(device)

    def forward(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Return the sum of what experts `ids` [T, k] make of x, by `weights`, [T, H]."""
        return apply_experts(x, ids, weights, self.slots, self.gate_up, self.down)

    def route(self, x: Tensor, router: Router, slots: Tensor | None = None) -> Tensor:
        """Return the sum of what the experts that `router` chooses make of x [T, H], [T, H].

        The choice may be a part of the products (`quire.kernels.experts.route_experts`).

        Args:
            slots: int32 [E] and more, the slot here of each expert; None: `self.slots`.
        """
        top_k, renormalize = router.top_k, router.renormalize
        logits, slots = router.logits(x), self.slots if slots is None else slots
        return route_experts(x, logits, top_k, renormalize, slots, self.gate_up, self.down)

    def takes(self) -> dict[str, Taker]:
        """Three weights an expert; those of an expert that is not held are left in the file."""
        takers = {}
        for expert in range(self._num_experts):
            for part in (self.names.gate, self.names.up, self.names.down):
                takers[f"{self.prefix}.{expert}.{part}.weight"] = Taker(leave, required=False)
        for slot, expert in enumerate(self.held):
            gate, up = self.gate_up[slot].split(self.size)
            rows, columns = (self.features, self._hidden), (self._hidden, self.features)
            for name, place, parts in (
                (self.names.gate, gate, rows),
                (self.names.up, up, rows),
                (self.names.down, self.down[slot], columns),
            ):
                takers[f"{self.prefix}.{expert}.{name}.weight"] = Taker(
                    partial(copy_part, place, parts=parts)
                )
        return takers

    def fill_random(self, generator: torch.Generator) -> None:
        """Draw every expert whole, by its layer and number, from a normal distribution.

        So an expert has the same weights in any slot, in each of its copies and cut or not, and
        what other layers draw does not depend on who holds what: loads that were recorded with
        one placement are the loads of another.
        """
        own, takers = torch.Generator(generator.device), self.takes()
        seed = generator.initial_seed()
        inner, outer = self.features.total, self._hidden.total
        for expert in self.held:
            own.manual_seed(crc32(f"{seed} {self.prefix}.{expert}".encode()))
            for name, shape in (
                (self.names.gate, (inner, outer)),
                (self.names.up, (inner, outer)),
                (self.names.down, (outer, inner)),
            ):
                drawn = self.down.new_empty(shape).normal_(0.0, RANDOM_STD, generator=own)
                takers[f"{self.prefix}.{expert}.{name}.weight"].take(drawn)


# docs: moe begin
class MoE(Layer):
    """A router and its experts.

    Ranks that share a model's matrices have the same tokens, and the same router. Each computes
    what its experts, or its part of every expert, make of them, and the ranks' sums are added up.
    Or each routes a part of the tokens (`quire.layers.expert_exchange`).
    """

    def __init__(
        self,
        config: MoEConfig,
        hidden_size: int,
        prefix: str,
        dtype: torch.dtype,
        device: torch.device,
        place: Place,
    ) -> None:
        """Create the layer, `prefix` in the checkpoint, with its weights empty."""
        super().__init__()
        self._comm = comm = place.tensor
        self.routes = routes = ExpertRoutes(config, prefix, device, place)
        held, features = None, None
        if place.expert_parallel:
            held = routes.held
        else:
            features = even_part(config.intermediate_size, comm.rank, comm.size)
        self.router = Router(config, hidden_size, prefix, dtype, device, routes.router_tables)
        self.experts = Experts(
            config, hidden_size, prefix, dtype, device, held, features, routes.slots
        )
        self._exchange: ExpertExchange | None = None
        if place.exchanges_tokens:
            self._exchange = ExpertExchange(self.router, self.experts, routes, comm)

    def forward(self, x: Tensor) -> Tensor | PartialSum:
        """Apply to x, [num_tokens, hidden_size]."""
        if self._exchange is not None:
            return self._exchange(x)
        summed: Tensor
        if self._chooses_in_products(len(x)):
            summed = self.experts.route(x, self.router, self.routes.first_slots)
        else:
            ids, weights = self.router(x)
            summed = self.experts(x, self.routes(ids), weights)
        return summed if self._comm.size == 1 else PartialSum(summed, self._comm)

    # docs: moe end

    def _chooses_in_products(self, num_tokens: int) -> bool:
        """Whether the experts' kernels choose as well: nobody else asks what was chosen."""
        few = chooses_in_pairs(num_tokens, self.router.top_k, len(self.experts.slots))
        return (
            few and isinstance(self.routes, ExpertRoutes) and self.routes.asks_nothing(num_tokens)
        )

    def warm_up(self) -> None:
        """Compile the kernels of any number of rows, which steps on the same tokens do not bring.

        An exchange gives the router a rank's part of the rows, and the experts a row a pair, as
        many as happen to come.
        """
        if self._exchange is None:
            return
        num_slots, _, hidden = self.experts.gate_up.shape
        for number in (*range(1, MAX_ROWS + 1), *EACH_ROWS):
            self.router(self.experts.gate_up.new_zeros(number, hidden))
        for number in (1, *tile_changes(1, num_slots, len(self.experts.slots))):
            rows = self.experts.gate_up.new_zeros(number, hidden)
            ids = torch.zeros(number, 1, dtype=torch.int32, device=rows.device)
            self.experts(rows, ids, torch.ones(number, 1, device=rows.device))
