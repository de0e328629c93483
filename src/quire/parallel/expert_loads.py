"""`ExpertLoads`: how many tokens each expert of each layer was sent, and the file that keeps it.

An engine with `record_expert_loads` counts; one with `expert_loads` places experts by what was
counted. The file is JSON: `{"num_experts": 4, "tokens": {"0": [9, 0, 4, 3]}}`, by the layer's
number.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quire.errors import QuireError
from quire.models.moe_config import MoEConfig
from quire.sampling.values import is_number


@dataclass(frozen=True)
class ExpertLoads:
    """Tokens by layer and expert; a token that an expert's limit turned away counts as well.

    Invariant: all layers have equally many experts.
    """

    tokens: Mapping[int, tuple[int, ...]]

    @classmethod
    def sum(cls, counted: Iterable[Mapping[int, Sequence[int]]]) -> ExpertLoads:
        """Add up what several ranks, or replicas, have counted, layer by layer."""
        total: dict[int, tuple[int, ...]] = {}
        for one in counted:
            for layer, counts in one.items():
                so_far = total.get(layer, (0,) * len(counts))
                total[layer] = tuple(a + b for a, b in zip(so_far, counts, strict=True))
        return cls(dict(sorted(total.items())))

    def __sub__(self, earlier: ExpertLoads) -> ExpertLoads:
        """Return what has been counted since an earlier reading of the same engine."""
        if self.tokens.keys() != earlier.tokens.keys():
            raise QuireError(
                f"loads of the layers {list(self.tokens)} less those of {list(earlier.tokens)}: "
                "both must be readings of one engine"
            )
        return ExpertLoads(
            {
                layer: tuple(a - b for a, b in zip(counts, earlier.tokens[layer], strict=True))
                for layer, counts in self.tokens.items()
            }
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file that the option `expert_loads` names."""
        num_experts = len(next(iter(self.tokens.values()), ()))
        table = {str(layer): list(counts) for layer, counts in self.tokens.items()}
        content = json.dumps({"num_experts": num_experts, "tokens": table}, indent=1)
        Path(path).write_text(content + "\n", "utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ExpertLoads:
        """Read a file that `save` has written.

        Raises:
            QuireError: it cannot be read, or holds something else.
        """
        form = '{"num_experts": E, "tokens": {"LAYER": [E numbers of tokens], …}}'
        try:
            content = json.loads(Path(path).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise QuireError(
                f"expert_loads={os.fspath(path)!r} cannot be read ({error}): give a file that "
                "LLM.expert_loads().save(path) has written"
            ) from None
        try:
            number = content["num_experts"]
            tokens = {int(layer): tuple(counts) for layer, counts in content["tokens"].items()}
            sound = all(
                len(counts) == number and all(is_number(n) and n >= 0 for n in counts)
                for counts in tokens.values()
            )
        except (AttributeError, KeyError, TypeError, ValueError):
            sound = False
        if not sound:
            raise QuireError(f"expert_loads={os.fspath(path)!r}: must hold {form}")
        return cls(tokens)

    def require(self, moe: MoEConfig, path: str | os.PathLike[str]) -> None:
        """Raise QuireError unless these are loads of a model's layers and experts."""
        name = f"expert_loads={os.fspath(path)!r}"
        missing = [layer for layer in moe.layers if layer not in self.tokens]
        if missing:
            raise QuireError(
                f"{name}: has no loads of layer {missing[0]}, where the model has experts; record "
                "them with this model"
            )
        found = len(self.tokens[moe.layers[0]])
        if found != moe.num_experts:
            raise QuireError(
                f"{name}: has loads of {found} experts, and the model has "
                f"num_experts={moe.num_experts}; record them with this model"
            )
