"""Ranks that share every matrix: what one rank gives, token for token, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
from checkpoints import CPU, MAX_POSITION, SPECS, TOLERANCE, decoder_logits, oracle_logits
from parallel_checkpoints import MIXTURES, wide
from quantized_checkpoints import KINDS, write_quantized
from torch import Tensor

from quire import LLM, QuireError
from quire.attention.torch_backend import TorchAttention
from quire.models.config import ModelConfig
from quire.models.decoder import Decoder
from quire.models.loader import load_weights
from quire.parallel.comm import PartialSum
from quire.parallel.lockstep import Lockstep
from quire.parallel.part import Part, kv_heads, local_config, padded_part, query_heads
from quire.parallel.place import Place
from quire.quantization.factory import methods

Written = Callable[[str], Path]
(TOKENS,) = checkpoints.random_prompts([60], seed=3)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Return the folder of a wide checkpoint, written once."""
    root = tmp_path_factory.mktemp("wide")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            checkpoints.write(root / name, wide(name))
        return root / name

    return folder


# --- parts -------------------------------------------------------------------


def test_parts_cover_everything_once() -> None:
    for total, size in [(8, 2), (97, 4), (5, 4), (3, 8)]:
        parts = [padded_part(total, rank, size) for rank in range(size)]
        whole = torch.arange(total)
        assert torch.cat([part.of(whole) for part in parts]).equal(whole)
        assert len({part.size for part in parts}) == 1
    assert Part(12, 4, 2).times(3) == Part(36, 12, 6)


def test_query_heads_lie_where_their_kv_heads_are() -> None:
    """Head h of the model reads KV head h // (H / K), on every rank and for every size."""
    for heads, kv, size in [(8, 2, 2), (8, 2, 4), (8, 1, 8), (12, 4, 4), (32, 8, 16), (6, 6, 3)]:
        config = ModelConfig.from_dict(
            {
                "architectures": ["LlamaForCausalLM"],
                "hidden_size": heads * 16,
                "num_attention_heads": heads,
                "num_key_value_heads": kv,
                "intermediate_size": 48,
            }
        )
        local = local_config(config, size)
        for rank in range(size):
            mine, theirs = query_heads(config, rank, size), kv_heads(config, rank, size)
            assert (mine.size, theirs.size) == (local.num_heads, local.num_kv_heads)
            for own in range(mine.size):
                wanted = (mine.begin + own) // config.num_groups
                assert theirs.begin + own // local.num_groups == wanted


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        (
            {
                "architectures": ["MixtralForCausalLM"],
                "num_local_experts": 6,
                "num_key_value_heads": 8,
            },
            4,
            r"num_experts=6",
        ),
        ({}, 3, r"tensor_parallel_size=3: .*num_attention_heads=8.*a divisor of 8"),
        ({"intermediate_size": 81}, 2, r"intermediate_size=81"),
        (
            {"num_attention_heads": 12, "num_key_value_heads": 4, "intermediate_size": 96},
            6,
            r"num_key_value_heads=4; 6 must divide 4, or be a multiple",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused_before_loading(
    options: dict[str, Any], size: int, message: str
) -> None:
    config = ModelConfig.from_dict(
        {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 192,
            "num_attention_heads": 8,
            "intermediate_size": 80,
            "num_hidden_layers": 1,
            "max_position_embeddings": 64,
            **options,
        }
    )
    with pytest.raises(QuireError, match=message):
        LLM(
            config,
            device="cpu",
            tensor_parallel_size=size,
            enable_expert_parallel=True,  # of a mixture
        )


# --- layers ------------------------------------------------------------------


def ranks(
    folder: Path, size: int, scheme: str | None = None, *, expert_parallel: bool = False
) -> tuple[Lockstep, list[Decoder]]:
    """Load every rank's part of a checkpoint."""
    config = ModelConfig.from_folder(folder)
    world = Lockstep(size)

    def load(rank: int) -> Decoder:
        method_for = methods(config, scheme, torch.float32, CPU)
        backend = TorchAttention()
        place = Place(tensor=world.comm(rank), expert_parallel=expert_parallel)
        model = Decoder(config, backend, MAX_POSITION, torch.float32, CPU, method_for, place)
        load_weights(model, folder)
        return model

    return world, world.run([partial(load, rank) for rank in range(size)])


def streams(model: Decoder) -> list[Tensor]:
    """Return a list that a forward pass fills: the embedding, then what each half layer adds."""
    seen: list[Tensor] = []

    def watch(add: Callable[..., tuple[Any, Tensor]]) -> Callable[..., tuple[Any, Tensor]]:
        def watched(x: Tensor | PartialSum, residual: Tensor) -> tuple[Any, Tensor]:
            before = residual.clone()
            normed, after = add(x, residual)
            seen.append(after - before)
            return normed, after

        return watched

    for layer in model.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.add = watch(norm.add)
    model.norm.add = watch(model.norm.add)
    return seen


@torch.inference_mode()
def compare(
    folder: Path, size: int, scheme: str | None = None, *, expert_parallel: bool = False
) -> Tensor:
    """Assert that every half layer's sum is what one rank computes; return the logits."""
    _, (single,) = ranks(folder, 1, scheme)
    world, models = ranks(folder, size, scheme, expert_parallel=expert_parallel)
    expected, seen = streams(single), [streams(model) for model in models]
    logits = decoder_logits(single, TOKENS, [37, 23])

    def compute(model: Decoder) -> Tensor:
        with torch.inference_mode():  # which a thread has of its own
            return decoder_logits(model, TOKENS, [37, 23], size)

    each = world.run([partial(compute, model) for model in models])
    for rank in range(size):
        assert torch.equal(each[rank], each[0])
        for own, its in zip(seen[rank], expected, strict=True):
            torch.testing.assert_close(own, its, atol=TOLERANCE, rtol=1e-4)
    torch.testing.assert_close(each[0], logits, atol=TOLERANCE, rtol=0)
    return each[0]


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", SPECS)
def test_half_layers_add_up(name: str, size: int, written: Written) -> None:
    logits = compare(written(name), size)
    oracle = oracle_logits(checkpoints.transformers_model(written(name)), TOKENS)
    torch.testing.assert_close(logits, oracle, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("expert_parallel", [False, True], ids=["parts", "experts"])
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_add_up(name: str, size: int, expert_parallel: bool, written: Written) -> None:
    logits = compare(written(name), size, expert_parallel=expert_parallel)
    oracle = oracle_logits(checkpoints.transformers_model(written(name)), TOKENS)
    torch.testing.assert_close(logits, oracle, atol=TOLERANCE, rtol=0)


def test_a_rank_has_some_experts_whole_or_a_part_of_each(written: Written) -> None:
    shapes = {}
    for expert_parallel in (False, True):
        _, models = ranks(written("qwen3-moe"), 2, expert_parallel=expert_parallel)
        experts = models[1].layers[0].mlp.experts
        shapes[expert_parallel] = (list(experts.gate_up.shape), list(experts.slots))
    assert shapes == {
        False: ([8, 40, 128], list(range(8))),
        True: ([4, 80, 128], [4, 4, 4, 4, 0, 1, 2, 3]),
    }


def test_a_rank_keeps_a_part_of_the_weights(written: Written) -> None:
    """Half of every matrix; of norms, and of copied KV heads, all."""
    _, (single,) = ranks(written("llama3-scaled"), 1)
    _, models = ranks(written("llama3-scaled"), 2)
    one, two = (
        sum(p.numel() for p in model.vocabulary.parameters()) for model in (single, models[0])
    )
    assert two == one * 49 // 97  # padded from 97 rows to 98
    layer, part = single.layers[0], models[1].layers[0]
    for whole, own in [
        (layer.self_attn.o_proj, part.self_attn.o_proj),
        (layer.mlp.down_proj, part.mlp.down_proj),
    ]:
        assert own.in_features * 2 == whole.in_features
        half = whole.method.dequantize(whole)[:, own.in_features :]
        assert torch.equal(own.method.dequantize(own), half)


QUANTIZED = [
    "ct-int4-g16-asym",
    "ct-int4-channel-asym",
    "ct-int8-g16-asym",
    "awq-g16",
    "gptq-g32-asym",
    "gptq-v2-g32",
]


@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantized_weights_are_cut_with_their_scales(kind: str, tmp_path: Path) -> None:
    spec = wide("qwen2", intermediate_size=128)
    folder, _ = write_quantized(tmp_path, spec, KINDS[kind])
    compare(folder, 2)


@pytest.mark.parametrize("scheme", ["int4-g32", "int4-channel"])
def test_weights_rounded_while_they_are_loaded(scheme: str, tmp_path: Path) -> None:
    """A row's scale is that of the whole row, of which a rank may have a part."""
    spec = wide("qwen2", intermediate_size=128)
    checkpoints.write(tmp_path / "plain", spec)
    compare(tmp_path / "plain", 2, scheme)


@pytest.mark.parametrize("kind", ["ct-int4-g16", "gptq-act-order"])
def test_groups_that_lie_across_ranks_are_refused(kind: str, tmp_path: Path) -> None:
    """FFN 96 in groups of 16: 24 columns a rank at 4. Act-order: groups lie anywhere."""
    spec = wide("qwen2", intermediate_size=96)
    folder, _ = write_quantized(tmp_path, spec, KINDS[kind])
    with pytest.raises(QuireError, match=r"columns, and the groups of \d+ .*fewer ranks"):
        ranks(folder, 4)
