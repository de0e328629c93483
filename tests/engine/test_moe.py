"""Mixtures of experts: checkpoints against transformers, and the rules of routing one by one."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import checkpoints
import expert_checks
import kernel_checks
import pytest
import torch
import torch.nn.functional as F
from checkpoints import (
    CPU,
    TOLERANCE,
    Spec,
    assert_greedy,
    assert_logprobs,
    decoder_logits,
    load_decoder,
    oracle_greedy,
    oracle_logits,
    random_prompts,
)
from runs import Run
from torch import Tensor
from transformers import PreTrainedModel

from quire import LLM, CheckpointError, QuireError, SamplingParams, UnsupportedModelError
from quire.bench.experts import torch_grouped
from quire.config import EngineConfig
from quire.kernels import expert_tiles
from quire.kernels.expert_tiles import chooses_in_pairs, group_tiles, prefers_pairs, tile_changes
from quire.kernels.experts import FEW_PAIRS, apply_experts_torch
from quire.kernels.grouping import group_pairs_torch
from quire.kernels.router import choose_experts_torch
from quire.kernels.runtime import compilations
from quire.layers.moe import Experts, MoE
from quire.models.config import ModelConfig
from quire.models.decoder import Decoder, GatedMLP
from quire.models.loader import initialize_random
from quire.models.moe_config import MoEConfig
from quire.parallel.expert_plan import ExpertPlan
from quire.parallel.place import Place
from quire.runner.warm_up import _steps_by_experts, warm_up

QWEN: dict[str, Any] = {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 40}
MIXTRAL: dict[str, Any] = {"num_local_experts": 5, "num_experts_per_tok": 2}
MODELS = {
    "qwen3-moe": Spec("qwen3_moe", {**QWEN, "head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-moe-renormalized": Spec("qwen3_moe", {**QWEN, "norm_topk_prob": True}, "220KB"),
    "qwen3-moe-some-layers": Spec(
        "qwen3_moe",
        {**QWEN, "num_hidden_layers": 5, "decoder_sparse_step": 2, "mlp_only_layers": [3]},
    ),
    "qwen3-moe-windowed": Spec(
        "qwen3_moe", {**QWEN, "use_sliding_window": True, "sliding_window": checkpoints.WINDOW}
    ),
    "mixtral": Spec("mixtral", MIXTRAL),
    "mixtral-windowed": Spec(
        "mixtral", {**MIXTRAL, "sliding_window": checkpoints.WINDOW, "num_experts_per_tok": 1}
    ),
}
Folder = Callable[[str], Path]
Oracle = Callable[[str], PreTrainedModel]
GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)


def test_the_baseline_of_the_benchmark_computes_the_same() -> None:
    """torch's grouped products, with experts that nobody chose and some that many did."""
    generator = torch.Generator().manual_seed(0)
    x, gate_up, down = (
        torch.randn(*shape, generator=generator) for shape in ((9, 32), (6, 48, 32), (6, 32, 24))
    )
    ids = torch.rand(9, 4, generator=generator).topk(2).indices.int()  # of the first four
    weights = torch.rand(9, 2, generator=generator)
    slots = torch.arange(6, dtype=torch.int32)
    expected = apply_experts_torch(x, ids, weights, slots, gate_up, down)
    torch.testing.assert_close(torch_grouped(x, ids, weights, gate_up, down), expected)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Return the folder of a checkpoint of `MODELS`."""
    return cache(lambda name: checkpoints.write(tmp_path_factory.mktemp(name), MODELS[name]))


@pytest.fixture(scope="module")
def model(folder: Folder) -> Oracle:
    """Return transformers' model of a checkpoint."""
    return cache(lambda name: checkpoints.transformers_model(folder(name)))


# --- against transformers ----------------------------------------------------


@pytest.mark.parametrize("chunks", [None, [1] * 4 + [2, 3, 81]])
@pytest.mark.parametrize("name", MODELS)
def test_logits(name: str, chunks: list[int] | None, folder: Folder, model: Oracle) -> None:
    (token_ids,) = random_prompts([90], seed=3)
    expected = oracle_logits(model(name), token_ids)
    assert expected.std() > 0.5  # else the comparison would say little
    logits = decoder_logits(load_decoder(folder(name)), token_ids, chunks)
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens(name: str, folder: Folder, model: Oracle) -> None:
    """A ragged batch with chunked prompts, then one prompt, against transformers' generate."""
    llm = LLM(folder(name), device="cpu", dtype="float32", max_num_batched_tokens=24)
    prompts = random_prompts([1, 33, 9, 2, 70], seed=2)
    for output in llm.generate(prompts, GREEDY, use_tqdm=False):
        assert_greedy(model(name), output)
    (output,) = llm.generate(prompts[2], GREEDY, use_tqdm=False)
    assert output.outputs[0].token_ids == oracle_greedy(model(name), prompts[2], 40)


@pytest.mark.parametrize("name", ["qwen3-moe-renormalized", "mixtral-windowed"])
def test_prefix_hits_and_preemption(name: str, folder: Folder, model: Oracle) -> None:
    """11 blocks of 8 positions, where each request needs up to 10: the tokens stay."""
    run = Run.of(
        folder(name),
        block_size=8,
        num_blocks=12,
        max_model_len=80,
        max_num_seqs=4,
        max_num_batched_tokens=24,
    )
    (shared,) = random_prompts([24], seed=60)
    prompts = [shared + tail for tail in random_prompts([1, 9, 5, 12], seed=61)]
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, logprobs=1)
    first = run.generate(prompts[:1], params)
    outputs = run.generate(prompts[1:], params)
    assert max(run.hits()) >= 24
    assert len(run.preemptions()) >= 2
    for output in first + outputs:
        assert_greedy(model(name), output)
        assert_logprobs(model(name), output)


def test_which_layers_have_experts(folder: Folder) -> None:
    kinds = [type(layer.mlp) for layer in load_decoder(folder("qwen3-moe-some-layers")).layers]
    assert kinds == [GatedMLP, MoE, GatedMLP, GatedMLP, GatedMLP]
    assert {type(layer.mlp) for layer in load_decoder(folder("mixtral")).layers} == {MoE}


# --- routing -----------------------------------------------------------------


def test_renormalized_or_not() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0]])
    ids, weights = choose_experts_torch(logits, 2, False)
    assert ids.tolist() == [[1, 2]]
    assert ids.dtype == torch.int32
    share = logits.softmax(-1)[0, [1, 2]]
    torch.testing.assert_close(weights[0], share)
    assert weights.sum() < 0.9
    torch.testing.assert_close(choose_experts_torch(logits, 2, True)[1][0], share / share.sum())


def test_of_equal_logits_the_lower_expert() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0, 2.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 5.0, 0.0]])
    assert choose_experts_torch(logits, 2, True)[0].tolist() == [[1, 2], [0, 1], [2, 0]]
    half = torch.full((1, 300), 0.5, dtype=torch.bfloat16)  # long enough for an unstable sort
    assert choose_experts_torch(half, 8, True)[0].tolist() == [list(range(8))]


def test_weights_are_float32_whatever_the_logits() -> None:
    logits = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    _, weights = choose_experts_torch(logits, 4, False)
    assert weights.dtype == torch.float32
    exact = logits.double().softmax(-1).sort(-1, descending=True).values[:, :4]
    torch.testing.assert_close(weights.double(), exact, rtol=1e-6, atol=0)


def tiny(num_experts: int = 6, top_k: int = 2) -> MoEConfig:
    return MoEConfig(num_experts, top_k, 12, True, (0,))


def filled(layer: Any, seed: int = 0) -> Any:
    layer.fill_random(torch.Generator().manual_seed(seed))
    for parameter in layer.parameters():
        parameter.mul_(20)
    return layer


def dense(experts: Experts, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """The definition, expert by expert over all tokens, in float64."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    for expert in experts.held:
        slot = int(experts.slots[expert])
        gate, up = (x.double() @ experts.gate_up[slot].double().T).chunk(2, dim=-1)
        y = (F.silu(gate) * up) @ experts.down[slot].double().T
        out += ((ids == expert) * weights).sum(-1).double()[:, None] * y
    return out


def routes(num_tokens: int, num_experts: int, top_k: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    logits = torch.randn(num_tokens, num_experts, generator=generator)
    logits[:, -1] = -9  # nobody is sent to the last expert
    return choose_experts_torch(logits, top_k, False)


@pytest.mark.parametrize("num_tokens", [0, 1, 3, 4, 5, 17, 100])
def test_experts_are_their_definition(num_tokens: int) -> None:
    """Pair by pair and sorted: both sides of `FEW_PAIRS`."""
    assert {n * 2 <= FEW_PAIRS for n in (4, 5)} == {True, False}
    experts = filled(Experts(tiny(), 16, "mlp", torch.float32, CPU))
    x = torch.randn(num_tokens, 16, generator=torch.Generator().manual_seed(1))
    ids, weights = routes(num_tokens, 6, 2)
    out = experts(x, ids, weights)
    assert out.dtype == x.dtype
    torch.testing.assert_close(out.double(), dense(experts, x, ids, weights), rtol=1e-5, atol=1e-6)


def test_all_tokens_to_the_same_experts() -> None:
    experts = filled(Experts(tiny(), 16, "mlp", torch.float32, CPU))
    x = torch.randn(9, 16, generator=torch.Generator().manual_seed(1))
    ids, weights = torch.tensor([[4, 1]] * 9, dtype=torch.int32), routes(9, 6, 2)[1]
    torch.testing.assert_close(
        experts(x, ids, weights).double(), dense(experts, x, ids, weights), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("num_tokens", [2, 30])
def test_a_token_does_not_depend_on_who_is_beside_it(num_tokens: int) -> None:
    moe = filled(MoE(tiny(), 16, "mlp", torch.float32, CPU, Place()))
    x = torch.randn(num_tokens, 16, generator=torch.Generator().manual_seed(1))
    backward = moe(x.flip(0)).flip(0)
    torch.testing.assert_close(moe(x), backward, rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_tokens", [3, 40])
def test_parts_of_the_experts_add_up_to_all_of_them(num_tokens: int) -> None:
    """As ranks will hold them: an expert without a slot adds nothing."""
    whole = filled(Experts(tiny(), 16, "mlp", torch.float32, CPU))
    x = torch.randn(num_tokens, 16, generator=torch.Generator().manual_seed(1))
    ids, weights = routes(num_tokens, 6, 2)
    total = torch.zeros_like(x)
    for held in ([5, 0], [3], [1, 2, 4], []):
        part = Experts(tiny(), 16, "mlp", torch.float32, CPU, held=held)
        assert part.slots.tolist() == [held.index(e) if e in held else len(held) for e in range(6)]
        for slot, expert in enumerate(held):
            for name, full in (
                ("gate_proj", whole.gate_up[expert, :12]),
                ("up_proj", whole.gate_up[expert, 12:]),
                ("down_proj", whole.down[expert]),
            ):
                part.takes()[f"mlp.experts.{expert}.{name}.weight"].take(full)
            assert torch.equal(part.gate_up[slot], whole.gate_up[expert])
        total += part(x, ids, weights)
    torch.testing.assert_close(total, whole(x, ids, weights), rtol=0, atol=1e-6)


def test_experts_of_other_ranks_stay_in_the_file() -> None:
    experts = filled(Experts(tiny(), 16, "mlp", torch.float32, CPU, held=[2]))
    before = experts.gate_up.clone()
    takers = experts.takes()
    assert len(takers) == 6 * 3
    assert {name for name, taker in takers.items() if taker.required} == {
        f"mlp.experts.2.{part}_proj.weight" for part in ("gate", "up", "down")
    }
    takers["mlp.experts.0.gate_proj.weight"].take(torch.zeros(12, 16))
    assert torch.equal(experts.gate_up, before)


@pytest.mark.parametrize("held", [[0, 0], [6], [-1]])
def test_experts_that_cannot_be_held(held: list[int]) -> None:
    with pytest.raises(QuireError, match=re.escape(f"held={held}")):
        Experts(tiny(), 16, "mlp", torch.float32, CPU, held=held)


def test_groups_are_stable_and_end_before_the_pairs_without_a_slot() -> None:
    ids = torch.tensor([[3, 0], [1, 3], [0, 2], [2, 3]], dtype=torch.int32)
    slots = torch.tensor([1, 3, 0, 2], dtype=torch.int32)  # expert 1 has none of 3
    order, starts = group_pairs_torch(ids, slots, 3)
    assert starts.tolist() == [0, 2, 4, 7]
    assert order[:7].tolist() == [5, 6, 1, 4, 0, 3, 7]
    assert (order.dtype, starts.dtype) == (torch.int32, torch.int32)


def test_one_token_copies_no_expert() -> None:
    """Of 512 experts a token reads 2: a product over all of them would show in its time."""
    experts = Experts(tiny(512), 16, "mlp", torch.float32, CPU)
    x, (ids, weights) = torch.randn(1, 16), routes(1, 512, 2)
    arguments = (x, ids, weights, experts.slots, experts.gate_up, experts.down)
    with torch.profiler.profile(profile_memory=True) as profile:
        apply_experts_torch(*arguments)
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
    assert allocated < experts.gate_up[0].nbytes * 4


# --- the kernels -------------------------------------------------------------


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str | None]:
    """The outcome of each check, from one process with Triton's interpreter in it."""
    return kernel_checks.outcomes(expert_checks.__file__, expert_checks.CHECKS)


@pytest.mark.parametrize("name", expert_checks.CHECKS)
def test_kernel_under_the_interpreter(name: str, interpreted: dict[str, str | None]) -> None:
    assert interpreted[name] is None, interpreted[name]


@pytest.mark.gpu
@pytest.mark.parametrize("name", expert_checks.CHECKS)
def test_kernel_on_a_gpu(name: str) -> None:
    kernel_checks.run(name, "cuda", expert_checks.CHECKS)


@pytest.mark.parametrize("num_tokens", [1, 5, 6])
def test_choice_and_products_together_are_both_in_turn(
    num_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twins, whether or not a GPU's kernels would choose: 5 tokens have 10 pairs."""
    moe = filled(MoE(tiny(24), 16, "mlp", torch.float32, CPU, Place()))
    x = torch.randn(num_tokens, 16, generator=torch.Generator().manual_seed(1))
    ids, weights = moe.router(x)
    expected = dense(moe.experts, x, ids, weights)
    for most_pairs in (0, 10):
        monkeypatch.setattr(expert_tiles, "CHOICE_PAIRS", most_pairs)
        assert chooses_in_pairs(num_tokens, 2, 24) is (num_tokens * 2 <= most_pairs)
        torch.testing.assert_close(moe(x).double(), expected, rtol=1e-5, atol=1e-6)


def test_who_counts_or_limits_pairs_is_still_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The products may choose only where nobody else looks at the choice."""
    monkeypatch.setattr(expert_tiles, "CHOICE_PAIRS", 16)
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    place = Place(experts=ExpertPlan(records_loads=True))
    moe = filled(MoE(tiny(), 16, "mlp", torch.float32, CPU, place))
    moe(x)
    assert moe.routes.loads is not None
    assert int(moe.routes.loads.sum()) == 6
    limited = MoE(
        tiny(), 16, "mlp", torch.float32, CPU, Place(experts=ExpertPlan(capacity_factor=0.1))
    )
    limited.load_state_dict(moe.state_dict())
    assert not torch.allclose(limited(x), moe(x))
    plain = filled(MoE(tiny(), 16, "mlp", torch.float32, CPU, Place()))
    asked: list[Tensor] = []

    def watched(ids: Tensor) -> Tensor:
        asked.append(ids)
        return ids

    plain.routes = watched
    assert torch.equal(plain(x), moe(x))
    assert len(asked) == 1


# --- checkpoints that are wrong ----------------------------------------------


def rewritten(folder: Path, target: Path, **values: Any) -> Path:
    raw = json.loads((folder / "config.json").read_text())
    for file in folder.iterdir():
        (target / file.name).symlink_to(file)
    (target / "config.json").unlink()
    (target / "config.json").write_text(json.dumps({**raw, **values}))
    return target


@pytest.mark.parametrize(
    ("values", "kind", "words"),
    [
        ({"num_experts_per_tok": 8}, UnsupportedModelError, "num_experts_per_tok=8 of num_ex"),
        ({"num_experts_per_tok": 0}, CheckpointError, "num_experts_per_tok=0"),
        ({"moe_intermediate_size": "wide"}, CheckpointError, "moe_intermediate_size='wide'"),
        ({"mlp_only_layers": [0.5]}, CheckpointError, r"mlp_only_layers=\[0.5\]"),
        ({"mlp_only_layers": 1}, CheckpointError, "mlp_only_layers=1: must be a list of integers"),
        ({"decoder_sparse_step": 0}, CheckpointError, "decoder_sparse_step=0"),
        ({"norm_topk_prob": "yes"}, CheckpointError, "norm_topk_prob='yes'"),
        ({"num_local_experts": -1}, CheckpointError, "num_local_experts=-1"),
        ({"num_local_experts": 8}, CheckpointError, r"mlp\.gate\.weight: shape \[7, 96\]"),
        ({"num_local_experts": 6}, CheckpointError, "mlp.gate.weight: shape|unexpected tensor"),
        ({"moe_intermediate_size": 48}, CheckpointError, r"experts\.\d\.\w+\.weight: shape"),
        ({"mlp_only_layers": [1]}, CheckpointError, r"unexpected tensor 'model\.layers\.1\.mlp"),
    ],
)
def test_a_config_that_makes_no_sense(
    values: dict[str, Any], kind: type[Exception], words: str, folder: Folder, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=words):
        load_decoder(rewritten(folder("qwen3-moe"), tmp_path, **values))


def test_an_expert_is_missing(folder: Folder, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    target = rewritten(folder("mixtral"), tmp_path)
    tensors = load_file(target / "model.safetensors")
    del tensors["model.layers.1.block_sparse_moe.experts.4.w3.weight"]
    (target / "model.safetensors").unlink()
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors.*layers\.1.*experts\.4\.w3"):
        load_decoder(target)


@pytest.mark.parametrize("name", ["qwen3-moe", "mixtral"])
def test_quantized_experts_are_refused_by_name(name: str, folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="quantization='int8': quantized experts"):
        LLM(folder(name), device="cpu", quantization="int8")
    table = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    stored = rewritten(folder(name), tmp_path, quantization_config=table)
    with pytest.raises(UnsupportedModelError, match="quantization_config: quantized experts"):
        LLM(stored, device="cpu")


def test_random_weights(folder: Folder) -> None:
    """A model of a config alone, as measurements use it: every weight is drawn."""
    config = ModelConfig.from_folder(folder("qwen3-moe"))
    from quire.attention.torch_backend import TorchAttention

    decoder = Decoder(config, TorchAttention(), 50, torch.float32, CPU)
    drawn = [p for layer in decoder.layers for p in layer.mlp.parameters()]
    assert len(drawn) == 3 * 3
    for parameter in drawn:
        parameter.fill_(torch.nan)
    initialize_random(decoder)
    assert all(0.01 < parameter.std() < 0.03 for parameter in drawn)


@pytest.mark.parametrize(
    ("top_k", "num_experts", "most"), [(8, 128, 3), (2, 8, 2), (2, 16, 4), (1, 1, 1), (8, 8, 1)]
)
def test_pairs_read_few_experts_twice(top_k: int, num_experts: int, most: int) -> None:
    """Up to a number of tokens, whose pairs are at most half of the experts, or one token's."""
    assert [n for n in range(1, 40) if prefers_pairs(n, top_k, num_experts)] == list(
        range(1, most + 1)
    )


# --- kernels that must be there before the first request ----------------------


@pytest.mark.parametrize(
    ("top_k", "num_slots", "num_experts"), [(8, 128, 128), (8, 16, 128), (2, 8, 8), (1, 1, 1)]
)
def test_where_tiles_change(top_k: int, num_slots: int, num_experts: int) -> None:
    """Just there, and nowhere between: by the pairs, which choose at first, then by every tile."""

    def served(num_tokens: int) -> Any:
        if chooses_in_pairs(num_tokens, top_k, num_experts):
            return "pairs that choose"
        if prefers_pairs(num_tokens, top_k, num_experts):
            return "pairs"
        tiles = group_tiles(num_tokens, top_k, num_slots, 2)
        return [replace(tile, programs=0) for tile in tiles]  # of which a grid is made

    changes = tile_changes(top_k, num_slots, num_experts)
    last = 2 * changes[-1]
    found = [n for n in range(2, last) if served(n) != served(n - 1)]
    assert set(found) <= set(changes)
    assert changes == sorted(set(changes))
    assert len(found) >= 2


@pytest.mark.parametrize("options", [{}, {"max_model_len": 40, "max_num_batched_tokens": 64}])
def test_warm_up_meets_every_tile(options: dict[str, Any], folder: Folder) -> None:
    llm = LLM(folder("mixtral"), device="cpu", max_num_seqs=6, **options)
    worker = llm.engine.executor.worker  # type: ignore[attr-defined]
    config, moe = llm.config, llm.model_config.moe
    experts = moe.experts_per_token, moe.num_experts, moe.num_experts
    steps = _steps_by_experts(config, *experts)
    sums = [sum(p.num_tokens for p in step) for step in steps]
    budget = config.scheduling.max_num_batched_tokens
    most = 6 * min(config.model.max_model_len - 1, budget)
    changes = tile_changes(*experts)
    assert sums == [n for n in changes if n <= min(budget, most)]
    assert len(sums) >= 2
    groups = worker._layout.num_groups
    warm_up(worker.runner, config, groups, gives_logprobs=True, moe=moe)
    checkpoints.assert_empty(llm)


def test_warm_up_knows_how_many_experts_a_rank_has() -> None:
    """With a quarter of them a rank's tiles change at a quarter of the tokens."""
    config = EngineConfig.of(max_model_len=4096, device="cpu")
    whole, part = (
        [sum(p.num_tokens for p in step) for step in _steps_by_experts(config, 8, slots, 128)]
        for slots in (128, 32)
    )
    assert part == tile_changes(8, 32, 128)
    assert part != whole


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"cuda_graphs": False}])
def test_serving_compiles_nothing(options: dict[str, Any], folder: Folder) -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("no Triton kernels serve here")
    llm = LLM(folder("mixtral"), dtype="bfloat16", max_num_seqs=24, num_blocks=2000, **options)
    lengths = random.Random(0)
    with compilations() as names:
        for count in (*range(1, 26), 60, 200):
            prompts = random_prompts([lengths.randint(1, 90) for _ in range(count)])
            llm.generate(prompts, replace(GREEDY, max_tokens=12), use_tqdm=False)
    assert names == []


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [True, False])
def test_products_that_choose_say_what_the_router_says(
    graphs: bool, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole answers in float32, in steps of 1 to 6 tokens of 2 experts, and nothing compiled."""
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("no Triton kernels serve here")
    prompts = random_prompts([1, 33, 9, 2, 70, 5])
    params = [replace(GREEDY, max_tokens=20 + 3 * n) for n in range(len(prompts))]
    found = []
    for most_pairs in (0, 16):
        monkeypatch.setattr(expert_tiles, "CHOICE_PAIRS", most_pairs)
        llm = LLM(folder("mixtral"), dtype="float32", num_blocks=400, cuda_graphs=graphs)
        with compilations() as names:
            outputs = llm.generate(prompts, params, use_tqdm=False)
        assert names == []
        found.append([output.outputs[0].token_ids for output in outputs])
    assert found[0] == found[1]


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_on_a_gpu(name: str, folder: Folder, model: Oracle) -> None:
    """float32 on the device: prompts in chunks, captured steps, the oracle's tokens."""
    llm = LLM(folder(name), dtype="float32", max_num_batched_tokens=24, num_blocks=400)
    for output in llm.generate(random_prompts([1, 33, 9, 2, 70, 5]), GREEDY, use_tqdm=False):
        assert_greedy(model(name), output)
