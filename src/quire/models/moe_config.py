"""`MoEConfig`: what a checkpoint says of its mixture of experts."""

from __future__ import annotations

from dataclasses import dataclass, field

from quire.errors import UnsupportedModelError
from quire.models.architectures import ConfigKeys, ExpertNames


@dataclass(frozen=True)
class MoEConfig:
    """Experts in place of the MLP of some layers (Shazeer et al. 2017).

    Invariant (checked on construction): 1 ≤ `experts_per_token` ≤ `num_experts`.
    """

    num_experts: int  # E, in each of `layers`
    experts_per_token: int  # k, that a token is sent to
    intermediate_size: int  # of one expert
    renormalize: bool  # whether the weights of the k are scaled to a sum of 1
    layers: tuple[int, ...]  # those that have experts, rising; the others have a gated MLP
    names: ExpertNames = field(default_factory=ExpertNames)
    router_spread: float = 0.0  # of random weights alone: see `quire.layers.moe.Router.fill_random`

    def __post_init__(self) -> None:
        if not 1 <= self.experts_per_token <= self.num_experts:
            raise UnsupportedModelError(
                f"num_experts_per_tok={self.experts_per_token} of num_experts={self.num_experts}: "
                "a token is sent to 1 expert at least and to each once; fix config.json"
            )

    @classmethod
    def from_keys(
        cls, keys: ConfigKeys, names: ExpertNames | None, num_layers: int
    ) -> MoEConfig | None:
        """Translate the keys of a `config.json`; None: no layer has experts.

        Args:
            keys: of the file.
            names: how the architecture calls what it stores; None: it has no experts.
            num_layers: of the model.

        Raises:
            CheckpointError: a value that makes no sense.
            UnsupportedModelError: more experts a token than there are.
        """
        if names is None:
            return None
        # transformers has the number under two names, and the one that it does not declare
        # for an architecture overrides the other.
        present = [key for key in names.count_keys if keys.has(key)]
        least = 0 if names.chooses_layers else 1  # 0: no layer has any
        num_experts = keys.integer([*present, names.count_keys[-1]][0], least)
        if names.chooses_layers:
            step, dense = keys.integer("decoder_sparse_step"), keys.integers("mlp_only_layers")
            layers = [i for i in range(num_layers) if (i + 1) % step == 0 and i not in dense]
        else:
            layers = list(range(num_layers))
        if num_experts == 0 or not layers:
            return None
        return cls(
            num_experts=num_experts,
            experts_per_token=keys.integer("num_experts_per_tok"),
            intermediate_size=keys.integer(names.size_key),
            renormalize=names.always_renormalizes or keys.flag("norm_topk_prob"),
            layers=tuple(layers),
            names=names,
        )
