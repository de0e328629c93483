"""`Quantized`: a linear layer whose weight is read as codes, whatever stores and multiplies it.

A `WeightFormat` knows how a checkpoint stores a shard, a subclass knows how its device
multiplies; in between the weight is `Codes`. See the chapter "Quantization".
"""

from __future__ import annotations

import torch
from torch import Tensor

from quire.errors import CheckpointError, QuireError
from quire.layers.linear import Linear
from quire.layers.module import RANDOM_STD, copy_part, empty_parameter
from quire.quantization.codes import Codes
from quire.quantization.formats.interface import WeightFormat
from quire.quantization.rounding import round_to_nearest


class Quantized:
    """Reads shards into `Codes`; `pack`, `multiply` and `unpack` are a device's business.

    What it keeps belongs to one layer: a layer has a method of its own.
    """

    def __init__(self, stored_as: WeightFormat) -> None:
        """Read shards that are stored in this format."""
        self.format = stored_as
        self.scheme = stored_as.scheme
        self.input_scale: Tensor | None = None  # float32 [1], where a checkpoint fixes it
        self._stored: dict[str, dict[str, Tensor]] = {}  # by shard, until they are all there

    def tensors(self, layer: Linear) -> dict[str, bool]:
        """What the format stores of a shard, and its bias."""
        return self.format.tensors() | ({"bias": True} if layer.has_bias else {})

    def create_weights(self, layer: Linear, dtype: torch.dtype, device: torch.device) -> None:
        """Register the bias; the weight's form is known once it has been read."""
        self._dtype, self._device = dtype, device
        layer.bias = None
        if layer.has_bias:
            layer.bias = empty_parameter((layer.out_features,), dtype, device)

    def load_shard(self, layer: Linear, name: str, shard: str, tensor: Tensor) -> None:
        """Keep a tensor until its shard is complete; copy a bias."""
        if name == "bias":
            assert layer.bias is not None
            begin, size = layer.shard_rows[shard]
            copy_part(layer.bias[begin : begin + size], tensor, [layer.shard_parts[shard]])
        else:
            self._stored.setdefault(shard, {})[name] = tensor

    # docs: finish begin
    def finish_load(self, layer: Linear) -> None:
        """Read the shards, stack them into one matrix, and pack it.

        Raises:
            CheckpointError: a shard that the format does not allow, or shards that do not fit
                together.
        """
        if not self._stored:  # filled at random
            return
        parts, scales = [], []
        for shard, rows in layer.shard_parts.items():
            stored = {name: t.to(self._device) for name, t in self._stored.pop(shard, {}).items()}
            try:
                codes = self.format.read(stored, rows.total, layer.columns.total)
                parts.append(codes.part(rows, layer.columns))
                scales.append(self.format.input_scale(stored))
            except (CheckpointError, QuireError) as error:
                raise type(error)(f"has {shard} of a kind it should not have: {error}") from None
        try:
            codes = Codes.stack(parts)
        except ValueError as error:
            raise CheckpointError(
                f"has {' and '.join(layer.shard_rows)}, which quire multiplies by as one matrix, "
                f"and {error}: quantize the model again with all of them alike"
            ) from None
        given = [scale for scale in scales if scale is not None]
        # Shards have the same inputs: the largest scale cuts nothing off.
        self.input_scale = torch.stack(given).amax(0) if given else None
        self.pack(layer, codes)

    # docs: finish end

    def apply(self, layer: Linear, x: Tensor) -> Tensor:
        """One matrix product of x, [num_tokens, in_features]."""
        return self.multiply(layer, x)

    def fill_random(self, layer: Linear, generator: torch.Generator) -> None:
        """Draw a weight shard by shard from a normal distribution, and round it."""
        shape = (layer.out_features, layer.in_features)
        drawn = torch.empty(shape, dtype=self._dtype, device=self._device)
        drawn.normal_(0.0, RANDOM_STD, generator=generator)
        if self.scheme.inputs == "tensor":
            self.input_scale = torch.full((1,), 1 / 64, device=self._device)
        self.pack(layer, round_to_nearest(drawn, self.scheme))
        if layer.bias is not None:
            layer.bias.normal_(0.0, RANDOM_STD, generator=generator)

    def pack(self, layer: Linear, codes: Codes) -> None:
        """Keep the codes as the device reads them fastest."""
        raise NotImplementedError

    def multiply(self, layer: Linear, x: Tensor) -> Tensor:
        """Return x @ weight.T + bias, [num_tokens, out_features]."""
        raise NotImplementedError

    def dequantize(self, layer: Linear) -> Tensor:
        """Return the weight that `multiply` multiplies by, float32 [out_features, in_features]."""
        raise NotImplementedError
