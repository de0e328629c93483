"""`Decoder`: token ids in, hidden states out; logits on request.

One class covers Llama, Qwen2, Qwen3, Mistral, Mixtral and Qwen3-MoE (Vaswani et al. 2017 in
the pre-norm, rotary, gated form they share); `ModelConfig` holds their differences.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from quire.attention.interface import AttentionBackend
from quire.kernels.activation import silu_mul
from quire.kernels.round_inputs import Rounded, Rounding
from quire.kernels.rounded import silu_mul_rounded
from quire.kv.layer import LayerKV
from quire.kv.storage import KVStorage
from quire.layers.attention import Attention, StepMetadata
from quire.layers.embedding import Vocabulary
from quire.layers.linear import Linear, MethodFactory
from quire.layers.module import Layer, LayerList
from quire.layers.moe import MoE
from quire.layers.norm import RMSNorm
from quire.layers.rope import RotaryTable
from quire.models.config import ModelConfig
from quire.parallel.comm import Comm, PartialSum, total
from quire.parallel.part import Part, even_part
from quire.parallel.place import Place
from quire.quantization.factory import unquantized
from quire.sampling.sampler import GraphSafeSampler

_LAYER = re.compile(r"model\.layers\.(\d+)\.")  # its number, in a checkpoint's names


class GatedMLP(Layer):
    """down(silu(gate(x)) · up(x)), with gate and up in one product."""

    def __init__(
        self,
        config: ModelConfig,
        method_for: MethodFactory,
        prefix: str,
        dtype: torch.dtype,
        device: torch.device,
        comm: Comm,
    ) -> None:
        """Create the layer, `prefix` in the checkpoint, with its weights empty."""
        super().__init__()
        hidden, bias = config.hidden_size, config.mlp_bias
        size = even_part(config.intermediate_size, comm.rank, comm.size)
        shards = {f"{prefix}.gate_proj": size, f"{prefix}.up_proj": size}
        self.gate_up_proj = Linear(
            hidden, shards, method_for, bias=bias, dtype=dtype, device=device
        )
        shards = {f"{prefix}.down_proj": Part.whole(hidden)}
        self.down_proj = Linear(
            size, shards, method_for, bias=bias, dtype=dtype, device=device, reduce=comm
        )
        self._rounding: Rounding | None = None  # what `down_proj` asks for

    @property
    def input_rounding(self) -> Rounding | None:
        """How the norm in front may round x; see `Linear`."""
        return self.gate_up_proj.input_rounding

    def finish_load(self) -> None:
        """Finish the products; the gate rounds as the one behind it asks."""
        super().finish_load()
        self._rounding = self.down_proj.input_rounding

    def forward(self, x: Tensor | Rounded) -> Tensor | PartialSum:
        """Apply to x, [num_tokens, hidden_size]."""
        gate_up = self.gate_up_proj(x)
        if self._rounding is not None:
            return self.down_proj(silu_mul_rounded(gate_up, self._rounding))
        return self.down_proj(silu_mul(gate_up))


class DecoderLayer(Layer):
    """Attention, then an MLP or experts, each added to the residual stream."""

    mlp: GatedMLP | MoE

    def __init__(
        self,
        config: ModelConfig,
        backend: AttentionBackend,
        method_for: MethodFactory,
        index: int,
        dtype: torch.dtype,
        device: torch.device,
        place: Place,
    ) -> None:
        """Create the layer, `model.layers.{index}` in the checkpoint, with its weights empty."""
        super().__init__()
        prefix, moe = f"model.layers.{index}", config.moe
        size, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(f"{prefix}.input_layernorm", size, eps, dtype, device)
        self.self_attn = Attention(
            config, backend, method_for, f"{prefix}.self_attn", dtype, device, place.tensor
        )
        self.post_attention_layernorm = RMSNorm(
            f"{prefix}.post_attention_layernorm", size, eps, dtype, device
        )
        if moe is not None and index in moe.layers:
            block = f"{prefix}.{moe.names.block}"
            self.mlp = MoE(moe, size, block, dtype, device, place)
        else:
            self.mlp = GatedMLP(config, method_for, f"{prefix}.mlp", dtype, device, place.tensor)

    def finish_load(self) -> None:
        """Finish the parts; each norm rounds as the product behind it asks."""
        super().finish_load()
        self.input_layernorm.rounding = self.self_attn.qkv_proj.input_rounding
        if isinstance(self.mlp, GatedMLP):
            self.post_attention_layernorm.rounding = self.mlp.input_rounding

    def forward(
        self,
        x: Tensor | PartialSum,
        residual: Tensor,
        kv: LayerKV,
        step: StepMetadata,
        layer: int,
    ) -> tuple[Tensor | PartialSum, Tensor]:
        """Take what the last part computed and the residual stream it is to be added to.

        Returns the same two, each [num_tokens, hidden_size]: an addition is always followed
        by a norm, and done together they read and write the stream once.
        """
        x, residual = self.input_layernorm.add(x, residual)
        x = self.self_attn(x, kv, step, layer)
        x, residual = self.post_attention_layernorm.add(x, residual)
        return self.mlp(x), residual


class Decoder(Layer):
    """Embedding, layers, final norm; the head is a separate call."""

    def __init__(
        self,
        config: ModelConfig,
        backend: AttentionBackend,
        max_model_len: int,
        dtype: torch.dtype,
        device: torch.device,
        method_for: MethodFactory | None = None,
        place: Place | None = None,
    ) -> None:
        """Create the model with its weights empty; `quire.models.loader` fills them.

        `method_for` chooses how each linear layer multiplies, by its name; None: by weights
        as they are. The head stays in `dtype`. `place` says what of the model this rank has;
        None: all of it.
        """
        super().__init__()
        self.place = place = place or Place()
        self.config = config
        self.layer_numbers = place.layers(config)
        plain = unquantized(dtype, device)
        self.layers = LayerList(
            DecoderLayer(config, backend, method_for or plain, i, dtype, device, place)
            for i in self.layer_numbers
        )
        self.norm = RMSNorm("model.norm", config.hidden_size, config.rms_norm_eps, dtype, device)
        self.vocabulary = Vocabulary(
            config.vocab_size,
            config.hidden_size,
            plain,
            tied=config.tie_word_embeddings,
            dtype=dtype,
            device=device,
            place=place,
        )
        self.rotary = RotaryTable(config.rope, config.head_size, max_model_len, dtype, device)

    def forward(self, token_ids: Tensor, storage: KVStorage, step: StepMetadata) -> Tensor:
        """Return the hidden states of a step's tokens, [num_tokens, hidden_size].

        A stage of a pipeline starts with what the one before it sends, the residual stream, and
        sends it on; the last one's hidden states are the model's.
        """
        received = self.room_for_stream(len(token_ids))
        self.place.receive(received)
        hidden = self.compute(token_ids, storage, step, received)
        self.place.hand_on(hidden)
        return hidden

    def room_for_stream(self, num_tokens: int) -> Tensor:
        """Return room for what the stage before sends, [num_tokens, hidden_size].

        The first stage gets nothing, and has no rows.
        """
        num_rows = 0 if self.place.is_first else num_tokens
        return self.norm.weight.new_zeros(num_rows, self.config.hidden_size)

    def compute(
        self, token_ids: Tensor, storage: KVStorage, step: StepMetadata, received: Tensor
    ) -> Tensor:
        """Compute this stage's layers; nothing is said to other stages, so a graph may capture it.

        Args:
            received: `room_for_stream` with what the stage before sent; may be overwritten.

        Returns:
            what `forward` does, [num_tokens, hidden_size].
        """
        step.rotation = self.rotary.at(step.positions)
        x = self.vocabulary.embed(token_ids) if self.place.is_first else received
        residual = self.norm.weight.new_zeros(len(token_ids), self.config.hidden_size)
        for layer, module in enumerate(self.layers):
            x, residual = module(x, residual, storage.layers[layer], step, layer)
        if not self.place.is_last:
            return total(x) + residual
        return self.norm.add(x, residual)[0]

    def lies_elsewhere(self, name: str) -> bool:
        """Whether a checkpoint's tensor is of a layer that another stage has."""
        found = _LAYER.match(name)
        if found is None or int(found[1]) >= self.config.num_layers:
            return False
        return int(found[1]) not in self.layer_numbers

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of hidden states [R, hidden_size], [R, vocab_size]."""
        return self.vocabulary.logits(hidden)

    def greedy(self, hidden: Tensor, sampler: GraphSafeSampler) -> Tensor:
        """Return the token of each hidden state's largest logit, int64 [R]; hidden [R, H]."""
        return self.vocabulary.greedy(hidden, sampler)
