"""What a rank holds and multiplies, under a layout of tensor, pipeline, data and expert ranks.

A `Layout` says how many ranks do what; a `Share` is one rank's part of the model: its heads and
columns, its layers, its rows of the vocabulary. The very functions that cut the engine's weights
(`quire.parallel.part`, `quire.parallel.place`) cut here. Explained in the chapter "Parallelism".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from quire.analysis.memory import (
    dtype_bytes,
    expert_parameters,
    experts_touched,
    kv_bytes_per_token,
)
from quire.analysis.quantization import PLAIN_BITS, bits_a_weight
from quire.errors import QuireError
from quire.models.config import ModelConfig
from quire.parallel.part import local_config
from quire.parallel.place import split_layers
from quire.quantization.scheme import Scheme

KV_SCALE_BYTES = 4  # of a token and head, float32, where the cache holds codes of 8 bits


@dataclass(frozen=True)
class Layout:
    """How `num_gpus` devices share the work: tensor · pipeline · data of them.

    Args:
        tensor: ranks that share every matrix and every head of a stage.
        pipeline: stages that share the layers.
        data: copies of all that, each with requests of its own.
        expert: 1, or `tensor`: the ranks of a stage then keep whole experts, each its own,
            instead of a slice of every expert.
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert: int = 1

    @property
    def num_gpus(self) -> int:
        """Devices in all."""
        return self.tensor * self.pipeline * self.data

    def __str__(self) -> str:
        """Return the field's short name: TP2 PP2, DP4; of one device "1 GPU"."""
        sizes = (("TP", self.tensor), ("PP", self.pipeline), ("DP", self.data), ("EP", self.expert))
        return " ".join(f"{name}{size}" for name, size in sizes if size > 1) or "1 GPU"


def layouts(num_gpus: int, *, experts: bool = False) -> list[Layout]:
    """Return every layout of so many devices, possible for a model or not.

    Args:
        num_gpus: devices, all of which are used.
        experts: whether those that keep whole experts are wanted, too.

    Raises:
        QuireError: less than one device.
    """
    if num_gpus < 1:
        raise QuireError(f"gpus={num_gpus}: must be at least 1")
    found = []
    for tensor in _divisors(num_gpus):
        for pipeline in _divisors(num_gpus // tensor):
            data = num_gpus // tensor // pipeline
            found.append(Layout(tensor, pipeline, data))
            if experts and tensor > 1:
                found.append(Layout(tensor, pipeline, data, tensor))
    return found


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


@dataclass(frozen=True)
class Read:
    """Matrices that a step reads, in one launch: how many weights, and how many products a token.

    `rows` is what one matrix is multiplied by: every token of the step, or of experts those
    that are sent to one.
    """

    weights: float
    rows: float


@dataclass(frozen=True)
class Share:
    """One rank's part of a model: what the first rank of a stage has.

    The stage's other ranks have as much, without the bias of what is summed over the ranks.
    """

    model: ModelConfig  # whole
    local: ModelConfig  # with this rank's heads and columns
    layout: Layout
    layers: range
    scheme: Scheme | None = None  # of the linear layers; None: 16 bits

    @property
    def is_first(self) -> bool:
        """Whether tokens enter here."""
        return self.layers.start == 0

    @property
    def is_last(self) -> bool:
        """Whether logits leave here."""
        return self.layers.stop == self.model.num_layers

    @property
    def num_layers(self) -> int:
        """Layers of the stage."""
        return len(self.layers)

    @property
    def vocab_rows(self) -> int:
        """Rows of the embedding and of the head, those that pad the last rank's included."""
        return -(-self.model.vocab_size // self.layout.tensor)

    @property
    def head_weights(self) -> int:
        """Weights that the last stage's rank multiplies for a row of its logits."""
        return self.vocab_rows * self.model.hidden_size

    @cached_property
    def num_expert_layers(self) -> int:
        """Layers of this stage that have experts, instead of one MLP for every token."""
        moe = self.model.moe
        return 0 if moe is None else len(set(moe.layers) & set(self.layers))

    @property
    def num_dense_layers(self) -> int:
        """Layers of this stage that have one MLP for every token."""
        return self.num_layers - self.num_expert_layers

    # ---- what a step reads

    # docs: weights-read begin
    def weights_read(self, num_tokens: float, *, experts: bool = False) -> tuple[Read, ...]:
        """Return the products of one layer in a step over so many tokens, one launch each.

        Args:
            num_tokens: of the step, on this rank.
            experts: whether the layer has experts in place of its MLP.
        """
        local, hidden = self.local, self.model.hidden_size
        query, key_value = (n * local.head_size for n in (local.num_heads, local.num_kv_heads))
        attention = (hidden * (query + 2 * key_value), query * hidden)
        mlp = [2 * hidden * local.intermediate_size, local.intermediate_size * hidden]
        reads = [Read(weights, num_tokens) for weights in attention]
        if not experts:
            return (*reads, *(Read(weights, num_tokens) for weights in mlp))
        moe = self.model.moe
        assert moe is not None
        # A rank has a part of each expert, or as many times fewer experts: as much either way.
        touched = experts_touched(self.model, num_tokens) / self.layout.tensor
        rows = num_tokens * moe.experts_per_token / self.layout.tensor / touched
        an_expert = hidden * moe.intermediate_size
        return (
            *reads,
            Read(moe.num_experts * hidden, num_tokens),  # the router, whole on every rank
            Read(touched * 2 * an_expert, rows),
            Read(touched * an_expert, rows),
        )

    # docs: weights-read end

    @property
    def expert_width(self) -> float:
        """Numbers between a token's products in a layer of experts, those of the rank's pairs.

        Of each of k experts: what enters the second product, as wide as the expert, and what
        leaves it, as wide as the token; both are written and read.
        """
        moe = self.local.moe
        if moe is None:
            return 0.0
        share = 1 / self.layout.expert  # of a token's experts
        return share * moe.experts_per_token * 2 * (moe.intermediate_size + self.model.hidden_size)

    # ---- what is kept

    @property
    def weight_bytes(self) -> float:
        """Bytes of the parameters that this rank stores."""
        return (self._linear * bits_a_weight(self.scheme) + self._plain * PLAIN_BITS) / 8

    def kv_bytes_per_token(self, kv_dtype: str) -> float:
        """Return the bytes of a token's keys and values in this rank's layers."""
        a_layer = kv_bytes_per_token(self.local, kv_dtype) / self.model.num_layers
        if dtype_bytes(kv_dtype) == 1:
            a_layer += 2 * self.local.num_kv_heads * KV_SCALE_BYTES
        return self.num_layers * a_layer

    @property
    def _linear(self) -> float:
        """Weights that a scheme covers: attention's two products, and the MLP's two where it is."""
        products = [read.weights for read in self.weights_read(1)]
        return self.num_layers * sum(products[:2]) + self.num_dense_layers * sum(products[2:])

    @property
    def _plain(self) -> float:
        """Parameters that stay in 16 bits: biases, norms, vocabulary, experts with their router."""
        local, model, hidden = self.local, self.model, self.model.hidden_size
        query, key_value = (n * local.head_size for n in (local.num_heads, local.num_kv_heads))
        attention = (query + 2 * key_value) * model.qkv_bias + hidden * model.output_bias
        mlp = (2 * local.intermediate_size + hidden) * model.mlp_bias
        norms = 2 * hidden  # and that of queries and keys, which the engine keeps a head each
        norms += (local.num_heads + local.num_kv_heads) * local.head_size * model.qk_norm
        parameters: float = self.num_layers * (attention + norms) + self.num_dense_layers * mlp
        parameters += hidden
        tied = model.tie_word_embeddings
        tables = (self.is_first or (tied and self.is_last)) + (self.is_last and not tied)
        parameters += tables * self.head_weights
        if model.moe is not None:
            an_expert = expert_parameters(model) / self.layout.tensor  # or as many times fewer
            a_layer = model.moe.num_experts * (an_expert + hidden)
            parameters += self.num_expert_layers * a_layer
        return parameters


def shares(model: ModelConfig, layout: Layout, scheme: Scheme | None = None) -> list[Share]:
    """Return the share of a rank of each stage, first stage first.

    Raises:
        QuireError: the model cannot be laid out like this; the message names the number.
    """
    local = local_config(model, layout.tensor, expert_parallel=layout.expert > 1)
    stages = split_layers(model, layout.pipeline)
    if layout.expert > 1:
        if model.moe is None:
            raise QuireError(f"expert_parallel_size={layout.expert}: the model has no experts")
        if layout.expert != layout.tensor:
            raise QuireError(
                f"expert_parallel_size={layout.expert}: the ranks that share matrices, "
                f"tensor_parallel_size={layout.tensor}, are those that share experts; make them "
                "equal"
            )
    if scheme is not None:
        _require_whole_groups(local, layout, scheme)
        if model.moe is not None:
            raise QuireError(f"quantization={scheme} of a model with experts is not supported")
    return [Share(model, local, layout, layers, scheme) for layers in stages]


def _require_whole_groups(local: ModelConfig, layout: Layout, scheme: Scheme) -> None:
    """Refuse where the columns that share a scale would lie across ranks."""
    size = scheme.group_size
    if size is None or layout.tensor == 1:
        return
    for name, columns in (
        ("o_proj", local.num_heads * local.head_size),
        ("down_proj", local.intermediate_size),
    ):
        if columns % size:
            raise QuireError(
                f"tensor_parallel_size={layout.tensor}: a rank gets {columns} columns of {name}, "
                f"and groups of {size} share a scale in {scheme}; use fewer ranks"
            )
