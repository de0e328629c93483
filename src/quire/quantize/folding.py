"""Folding: a layer's inputs divided by s, its weight's columns multiplied by s, at no cost.

The division goes into what made the inputs: the weight of a norm, or rows of the projection
before. Whatever reads these inputs must be multiplied alike, or the model is another one
(mlx-node/mlx-node#87 divided a norm that another branch reads). In a decoder of two norms a layer
all readers of one are parts of one fused layer, which is scaled, or left, as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quire.layers.linear import Linear
from quire.layers.norm import RMSNorm
from quire.models.decoder import DecoderLayer, GatedMLP


@dataclass(frozen=True)
class Rows:
    """Some rows of a linear layer, which make the next one's inputs without mixing them."""

    layer: Linear
    begin: int
    size: int
    name: str


@dataclass(frozen=True)
class Fold:
    """A place where inputs can be scaled: what makes them, and the layer that reads them."""

    before: RMSNorm | Rows
    after: Linear


# docs: folds begin
def folds(layer: DecoderLayer, quantized: set[str]) -> list[Fold]:
    """Return the places of a decoder layer, in the order in which they are applied.

    Each value head must have one reader: where several query heads share it (GQA), their
    columns of o_proj would need one scale, and o_proj is left alone, as AWQ's authors do.

    Args:
        layer: the decoder layer.
        quantized: names of the linear layers to be quantized. What is left as it was is not
            scaled, and neither is what its rows make.
    """
    attention, mlp = layer.self_attn, layer.mlp
    assert isinstance(mlp, GatedMLP)  # `Source` refuses experts
    places = [Fold(layer.input_layernorm, attention.qkv_proj)]
    if attention.num_heads == attention.num_kv_heads:
        places.append(Fold(_rows(attention.qkv_proj, "v_proj"), attention.o_proj))
    places += [
        Fold(layer.post_attention_layernorm, mlp.gate_up_proj),
        Fold(_rows(mlp.gate_up_proj, "up_proj"), mlp.down_proj),
    ]
    return [
        place
        for place in places
        if set(place.after.shard_rows) <= quantized
        and (isinstance(place.before, RMSNorm) or place.before.name in quantized)
    ]


def fold(place: Fold, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Divide what makes a layer's inputs by scales [K], and multiply the weight's columns.

    A norm's weight is stored in `dtype`, and a rounded one would change the model. So it is
    rounded first, and the columns are multiplied by what it was really divided by.

    Returns:
        The scales that were applied, float32 [K].
    """
    if isinstance(place.before, RMSNorm):
        weight = place.before.weight
        divided = (weight / scales).to(dtype).float()
        usable = (divided != 0) & divided.isfinite()
        scales = torch.where(usable, weight / divided, torch.ones_like(weight))
        weight.copy_(torch.where(usable, divided, weight))
    else:
        rows = slice(place.before.begin, place.before.begin + place.before.size)
        place.before.layer.weight[rows] /= scales[:, None]
        if place.before.layer.bias is not None:
            place.before.layer.bias[rows] /= scales
    place.after.weight *= scales
    return scales


# docs: folds end


def _rows(layer: Linear, last: str) -> Rows:
    (name,) = (name for name in layer.shard_rows if name.endswith(f".{last}"))
    begin, size = layer.shard_rows[name]
    return Rows(layer, begin, size, name)
