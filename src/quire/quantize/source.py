"""`Source`: a checkpoint whose decoder layers are run one at a time, in float32.

A model of 8 billion weights takes 32 GB in float32 and one of its layers 0.8 GB. Calibration
needs one layer after another, so that is all that is ever in memory beside the hidden states
of the calibration text.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.attention.torch_backend import TorchAttention
from quire.errors import CheckpointError, UnsupportedModelError
from quire.kernels.norm import rms_norm
from quire.kv.batch import AttentionBatch
from quire.kv.spec import layer_specs
from quire.kv.storage import KVStorage
from quire.layers.attention import StepMetadata
from quire.layers.embedding import EMBEDDING, HEAD
from quire.layers.linear import Linear, QuantMethod
from quire.layers.rope import RotaryTable
from quire.models.config import ModelConfig
from quire.models.decoder import DecoderLayer, GatedMLP
from quire.models.weight_files import WeightFile, open_weights
from quire.parallel.place import Place
from quire.quantization.unquantized import Unquantized

BLOCK_SIZE = 16
NORM = "model.norm.weight"
ROWS_AT_ONCE = 16_384  # of a vocabulary that is multiplied by: 256 MB in float32 at width 4,096


class Source:
    """An unquantized checkpoint.

    Args:
        folder: with `config.json` and safetensors files.
        device: on which layers are run.
        longest: tokens of the longest sequence that will be run; the model may allow fewer.

    Raises:
        CheckpointError: a file is missing or does not match the config.
        UnsupportedModelError: an architecture that quire lacks, experts, or weights quantized
            already.
    """

    def __init__(self, folder: Path, device: torch.device, longest: int) -> None:
        self.folder = folder
        self.device = device
        self.config = ModelConfig.from_folder(folder)
        if self.config.quantization is not None:
            method = self.config.quantization.get("quant_method")
            raise UnsupportedModelError(
                f"{folder} is quantized already (quant_method={method!r}): give its original"
            )
        if self.config.moe is not None:
            raise UnsupportedModelError(
                f"{folder} has {self.config.moe.num_experts} experts a layer: quire does not "
                "quantize a mixture of experts; give a dense model"
            )
        self.files: dict[str, WeightFile] = {
            name: file for file in open_weights(folder) for name in file.names
        }
        self.dtype: torch.dtype = getattr(torch, self.config.dtype)
        self.longest = longest = min(longest, self.config.max_position)
        self._backend = TorchAttention()
        self._rotary = RotaryTable(
            self.config.rope, self.config.head_size, longest, torch.float32, device
        )
        specs = layer_specs(self.config, torch.float32)[:1]  # one layer's, used by each in turn
        self._num_blocks = -(-longest // BLOCK_SIZE)
        self._storage = KVStorage(specs, [0], self._num_blocks + 1, BLOCK_SIZE, device)
        self._batches: dict[int, AttentionBatch] = {}

    def tensor(self, name: str) -> Tensor:
        """Return a tensor as the files have it, a view that nobody may write to.

        Raises:
            CheckpointError: there is none.
        """
        if name not in self.files:
            raise CheckpointError(f"{self.folder} lacks {name!r}; is a weight file missing?")
        return self.files[name].tensor(name)

    def linear_names(self) -> list[tuple[str, ...]]:
        """Return the names of all linear layers, those that are multiplied as one together."""
        meta = torch.device("meta")
        layers = (self._empty_layer(i, meta) for i in range(self.config.num_layers))
        return [tuple(x.shard_rows) for layer in layers for x in linears(layer)]

    def layer(self, index: int) -> DecoderLayer:
        """Return a decoder layer with its weights in float32.

        Raises:
            CheckpointError: a tensor is missing or of another shape.
        """
        layer = self._empty_layer(index, self.device)
        for name, taker in layer.takes().items():
            if taker.required or name in self.files:
                try:
                    taker.take(self.tensor(name))
                except CheckpointError as error:
                    raise CheckpointError(f"{name}: {error}") from None
        return layer

    def _empty_layer(self, index: int, device: torch.device) -> DecoderLayer:
        def plain(names: object) -> QuantMethod:
            return Unquantized()

        return DecoderLayer(
            self.config, self._backend, plain, index, torch.float32, device, Place()
        )

    def embed(self, token_ids: list[int]) -> Tensor:
        """Return the hidden states that a sequence enters the first layer with, [T, hidden]."""
        name = EMBEDDING if EMBEDDING in self.files else HEAD
        ids = torch.tensor(token_ids)
        return F.embedding(ids, self.tensor(name)).to(self.device, torch.float32)

    def run(self, layer: DecoderLayer, index: int, hidden: Tensor) -> Tensor:
        """Return what a layer makes of a whole sequence's hidden states [T, hidden_size].

        `layer` is the decoder layer of that index, quantized or not.
        """
        batch = self._batch(len(hidden))
        window = self.config.sliding_windows[index]
        step = StepMetadata(batch.positions, [self._backend.build(batch, window)], [batch.slots])
        step.rotation = self._rotary.at(batch.positions)
        # Kernels on a GPU write the sum to where the residual was.
        x, residual = layer(
            hidden.clone(), torch.zeros_like(hidden), self._storage.layers[0], step, 0
        )
        total: Tensor = x + residual
        return total

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of hidden states behind the last layer [R, hidden_size], float32."""
        weight = self.tensor(NORM).to(self.device, torch.float32)
        normed = rms_norm(hidden, weight, self.config.rms_norm_eps)
        tied = self.config.tie_word_embeddings and EMBEDDING in self.files
        head = self.tensor(EMBEDDING if tied and HEAD not in self.files else HEAD)
        parts = head.split(ROWS_AT_ONCE)
        return torch.cat([normed @ part.to(self.device, torch.float32).T for part in parts], 1)

    def _batch(self, length: int) -> AttentionBatch:
        if length not in self._batches:
            blocks = [list(range(1, self._num_blocks + 1))]
            self._batches[length] = AttentionBatch.of(
                [0, length], [length], blocks, BLOCK_SIZE, self.device
            )
        return self._batches[length]


def linears(layer: DecoderLayer) -> Iterator[Linear]:
    """Yield the linear layers of a decoder layer, in the order in which they are applied."""
    assert isinstance(layer.mlp, GatedMLP)  # `Source` refuses experts
    yield layer.self_attn.qkv_proj
    yield layer.self_attn.o_proj
    yield layer.mlp.gate_up_proj
    yield layer.mlp.down_proj
