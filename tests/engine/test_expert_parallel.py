"""Ranks that share experts: by placement, with copies, over an all-to-all, with a capacity."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
import torch.nn.functional as F
from checkpoints import CPU
from hypothesis import given, settings
from hypothesis import strategies as st
from parallel_checkpoints import wide
from runs import Run
from test_parallel_engines import outputs
from torch import Tensor

from quire import LLM, QuireError, SamplingParams
from quire.kernels.router import choose_experts_torch
from quire.layers.expert_routes import ExpertRoutes, copies_of
from quire.layers.moe import MoE, Router
from quire.models.moe_config import MoEConfig
from quire.parallel.comm import total
from quire.parallel.expert_placement import ExpertPlacement, contiguous, replicated
from quire.parallel.expert_plan import ExpertPlan, LiveRows
from quire.parallel.lockstep import Lockstep, LockstepComm
from quire.parallel.place import Place

HIDDEN, EXPERTS, TOP_K, SIZE = 16, 8, 3, 12
CONFIG = MoEConfig(EXPERTS, TOP_K, SIZE, True, (0,))
PREFIX = "model.layers.0.mlp"
LOADS = [40, 3, 3, 25, 2, 3, 11, 1]
DISPATCHES = ["all_reduce", "all_to_all"]
LOCKSTEP: dict[str, Any] = {"distributed_executor_backend": "lockstep"}
Written = Callable[[str], Path]


def placements(num_ranks: int) -> dict[str, ExpertPlacement]:
    """Of each kind one; the last has every expert on every rank."""
    return {
        "contiguous": contiguous(EXPERTS, num_ranks),
        "packed": replicated(LOADS, num_ranks, EXPERTS),
        "copies": replicated(LOADS, num_ranks, EXPERTS + num_ranks),
        "everywhere": replicated(LOADS, num_ranks, EXPERTS * num_ranks),
    }


# --- a layer -----------------------------------------------------------------


class Weights:
    """A layer's weights as a checkpoint has them, and what they make of x in float64."""

    def __init__(self) -> None:
        """Draw them so that outputs are of the order of 1 and experts differ."""
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

        self.tensors = {f"{PREFIX}.gate.weight": 3 * draw(EXPERTS, HIDDEN)}
        self.tensors[f"{PREFIX}.gate.weight"][0] *= 2  # which many tokens go to
        for expert in range(EXPERTS):
            name = f"{PREFIX}.experts.{expert}"
            self.tensors[f"{name}.gate_proj.weight"] = 3 * draw(SIZE, HIDDEN)
            self.tensors[f"{name}.up_proj.weight"] = 3 * draw(SIZE, HIDDEN)
            self.tensors[f"{name}.down_proj.weight"] = 3 * draw(HIDDEN, SIZE)

    def expert(self, number: int, x: Tensor) -> Tensor:
        """Return what an expert makes of x, in float64."""
        name = f"{PREFIX}.experts.{number}"
        gate, up, down = (
            self.tensors[f"{name}.{part}_proj.weight"].double() for part in ("gate", "up", "down")
        )
        x = x.double()
        return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return experts and weights of each token."""
        return choose_experts_torch(x @ self.tensors[f"{PREFIX}.gate.weight"].T, TOP_K, True)

    def fill(self, moe: MoE) -> MoE:
        """Let a rank's layer take its part."""
        for name, taker in moe.takes().items():
            taker.take(self.tensors[name])
        return moe


WEIGHTS = Weights()


def tokens(number: int) -> Tensor:
    return torch.randn(number, HIDDEN, generator=torch.Generator().manual_seed(number))


def kept_pairs(ids: Tensor, factor: float | None) -> list[tuple[int, int]]:
    """The pairs (token, place) that an expert has room for, one by one."""
    limit = math.inf if factor is None else math.ceil(factor * len(ids) * TOP_K / EXPERTS)
    room = [limit] * EXPERTS
    kept = []
    for token, chosen in enumerate(ids.tolist()):
        for place, expert in enumerate(chosen):
            room[expert] -= 1
            if room[expert] >= 0:
                kept.append((token, place))
    return kept


def rank_of_pair(placement: ExpertPlacement, token: int, expert: int) -> int:
    """Of an expert's copies the t mod c-th, counted from one rank further for each such expert."""
    ranks = placement.replicas[expert]
    turn = sum(len(others) > 1 for others in placement.replicas[:expert])
    return ranks[(turn + token) % len(ranks)]


class Watched(LockstepComm):
    """Keeps what this rank puts into each sum, and which rows it was sent."""

    def __init__(self, world: Lockstep, rank: int) -> None:
        super().__init__(world, rank, tuple(range(world.size)))
        self.parts: list[Tensor] = []
        self.arrived: list[list[int]] = []

    def all_reduce(self, x: Tensor) -> Tensor:
        self.parts.append(x.clone())
        return super().all_reduce(x)

    def all_to_all(self, parts: list[Tensor], sizes: list[int]) -> list[Tensor]:
        self.arrived.append(sizes)
        return super().all_to_all(parts, sizes)


def run_layer(
    x: Tensor, num_ranks: int, plan: ExpertPlan
) -> tuple[list[Tensor], list[Watched], list[MoE]]:
    """Return every rank's output, its end of the group, and its layer."""
    world = Lockstep(num_ranks)
    ends = [Watched(world, rank) for rank in range(num_ranks)]

    def layer(rank: int) -> MoE:
        place = Place(tensor=ends[rank], expert_parallel=True, experts=plan)
        return WEIGHTS.fill(MoE(CONFIG, HIDDEN, PREFIX, torch.float32, CPU, place))

    layers = [layer(rank) for rank in range(num_ranks)]
    outputs = world.run([lambda moe=moe: total(moe(x.clone())) for moe in layers])
    return outputs, ends, layers


@pytest.mark.parametrize("factor", [None, 1.0, 0.4])
@pytest.mark.parametrize("kind", placements(2))
@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 33])
def test_what_each_rank_adds(
    num_tokens: int, num_ranks: int, kind: str, factor: float | None
) -> None:
    """Against the definition, pair by pair: each is served once, by the rank that the row says."""
    placement = placements(num_ranks)[kind]
    x = tokens(num_tokens)
    ids, weights = WEIGHTS.choose(x)
    parts = [torch.zeros(x.shape, dtype=torch.float64) for _ in range(num_ranks)]
    rows = [0] * num_ranks
    for token, place in kept_pairs(ids, factor):
        expert = int(ids[token, place])
        rank = rank_of_pair(placement, token, expert)
        parts[rank][token] += weights[token, place] * WEIGHTS.expert(expert, x[token])
        rows[rank] += 1
    expected = torch.stack(parts).sum(0)
    assert num_tokens == 1 or expected.abs().max() > 0.5
    assert num_tokens < 33 or all(row > 0 for row in rows)

    close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
    plan = ExpertPlan({0: placement}, "all_reduce", factor)
    found, ends, _ = run_layer(x, num_ranks, plan)
    for rank in range(num_ranks):
        (part,) = ends[rank].parts
        close(part.double(), parts[rank])
        close(found[rank].double(), expected)

    plan = ExpertPlan({0: placement}, "all_to_all", factor)
    found, ends, _ = run_layer(x, num_ranks, plan)
    for rank in range(num_ranks):
        assert torch.equal(found[rank], found[0])
        close(found[rank].double(), expected)
        there, _ = ends[rank].arrived
        assert sum(there) == rows[rank]  # a row a pair, and only to its rank
        assert not ends[rank].parts


def test_a_rank_without_tokens_takes_part() -> None:
    """One token, four ranks: three have none to route, and all their calls are made."""
    placement = placements(4)["copies"]
    found, ends, _ = run_layer(tokens(1), 4, ExpertPlan({0: placement}, "all_to_all", 1.0))
    assert [len(end.arrived) for end in ends] == [2] * 4
    assert sum(sum(end.arrived[0]) for end in ends) == TOP_K
    assert [len(out) for out in found] == [1] * 4


def test_a_full_expert_takes_the_earlier_tokens() -> None:
    """All tokens to the same experts, on one rank: the last two of four go without."""
    x = tokens(1).repeat(4, 1)
    plan = ExpertPlan(capacity_factor=2 * EXPERTS / TOP_K / 4)  # two pairs an expert
    moe = WEIGHTS.fill(MoE(CONFIG, HIDDEN, PREFIX, torch.float32, CPU, Place(experts=plan)))
    out = moe(x)
    unlimited = WEIGHTS.fill(MoE(CONFIG, HIDDEN, PREFIX, torch.float32, CPU, Place()))(x)
    # A product of two rows may add in another order than one of four, as the processor has it: sums
    # of H, I and k numbers, each addition off by half an eps of its sum at most, in either run.
    additions, eps = HIDDEN + SIZE + TOP_K, torch.finfo(torch.float32).eps
    rounding = additions * eps * float(unlimited.abs().max())
    torch.testing.assert_close(out[:2], unlimited[:2], rtol=0, atol=rounding)
    assert torch.equal(out[2:], torch.zeros_like(out[2:]))


def test_the_weights_of_other_experts_stay() -> None:
    """A token that one expert has turned away: the others' share of it does not grow."""
    x = tokens(33)
    ids, weights = WEIGHTS.choose(x)
    kept = set(kept_pairs(ids, 0.4))
    partly = [t for t in range(33) if 0 < sum((t, j) in kept for j in range(TOP_K)) < TOP_K]
    assert partly
    place = Place(experts=ExpertPlan(capacity_factor=0.4))
    out = WEIGHTS.fill(MoE(CONFIG, HIDDEN, PREFIX, torch.float32, CPU, place))(x)
    for token in partly:
        expected = sum(
            weights[token, j].double() * WEIGHTS.expert(int(ids[token, j]), x[token])
            for j in range(TOP_K)
            if (token, j) in kept
        )
        torch.testing.assert_close(out[token].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_pairs_are_counted_once(dispatch: str) -> None:
    """Over all ranks; before a full expert turns them away."""
    x = tokens(33)
    plan = ExpertPlan({0: placements(4)["copies"]}, dispatch, 0.4, records_loads=True)
    _, _, layers = run_layer(x, 4, plan)
    counted = [moe.routes.loads for moe in layers if moe.routes.loads is not None]
    assert len(counted) == (1 if dispatch == "all_reduce" else 4)
    ids, _ = WEIGHTS.choose(x)
    assert torch.equal(sum(counted), torch.bincount(ids.flatten(), minlength=EXPERTS))
    layers[0].routes.forget()
    assert layers[0].routes.loads.sum() == 0  # type: ignore[union-attr]


# --- routes ------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 12),
    st.sampled_from([None, 0.1, 0.5, 1.0, 1.25, 3.0]),
    st.integers(0, 3),
    st.integers(0, 1000),
)
def test_padding_changes_nothing(
    num_tokens: int, factor: float | None, padding: int, seed: int
) -> None:
    """A captured step has rows of nobody behind those of requests."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_tokens + padding, EXPERTS, generator=generator)
    ids = choose_experts_torch(logits, TOP_K, True)[0]

    def routes() -> ExpertRoutes:
        live = LiveRows(CPU)
        plan = ExpertPlan(capacity_factor=factor, records_loads=True, live_rows=live)
        made = ExpertRoutes(CONFIG, PREFIX, CPU, Place(experts=plan))
        made.live = live  # type: ignore[attr-defined]
        return made

    alone, padded = routes(), routes()
    expected = alone(ids[:num_tokens])
    with padded.live.limited(num_tokens):  # type: ignore[attr-defined]
        found = padded(ids)
    assert torch.equal(found[:num_tokens], expected)
    assert torch.equal(alone.loads, padded.loads)
    if factor is not None:
        assert (found[num_tokens:] == EXPERTS).all()
        kept = {(t, j) for t in range(num_tokens) for j in range(TOP_K) if expected[t, j] < EXPERTS}
        assert kept == set(kept_pairs(ids[:num_tokens], factor))
    else:
        assert torch.equal(found, ids)
    assert torch.equal(padded(ids), routes()(ids))  # outside, all rows are somebody's


@pytest.mark.parametrize("rank", [0, 1])
def test_the_router_spreads_what_nobody_counts(rank: int) -> None:
    """At once or behind the count: the same slots, and the same answer."""
    placement, x = placements(2)["copies"], tokens(9)

    def layer(**counts: bool) -> MoE:
        plan = ExpertPlan({0: placement}, **counts)
        place = Place(tensor=Lockstep(2).comm(rank), expert_parallel=True, experts=plan)
        return WEIGHTS.fill(MoE(CONFIG, HIDDEN, PREFIX, torch.float32, CPU, place))

    at_once, counting = layer(), layer(records_loads=True)
    # Rank 0 counts for both; the other one has nothing to ask the router for.
    assert (counting.routes.loads is not None) is (rank == 0)
    experts, weights = WEIGHTS.choose(x)
    slots, shares = at_once.router(x)
    assert at_once.routes(slots) is slots
    size = len(placement.slots[0])
    assert slots.tolist() == [
        [
            (r := rank_of_pair(placement, token, expert)) * size + placement.slots[r].index(expert)
            for expert in row
        ]
        for token, row in enumerate(experts.tolist())
    ]
    assert torch.equal(shares, weights)
    given, _ = counting.router(x)
    assert torch.equal(given, experts if rank == 0 else slots)
    assert torch.equal(counting.routes(given), slots)
    assert torch.equal(at_once(x).part, counting(x).part)


def test_one_token_is_served_by_first_copies_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its products may choose, as without copies; two tokens, of 6 pairs, may go to two copies."""
    placement, x = placements(2)["everywhere"], tokens(2)
    plan = ExpertPlan({0: placement})
    place = Place(tensor=Lockstep(2).comm(1), expert_parallel=True, experts=plan)
    moe = WEIGHTS.fill(MoE(CONFIG, HIDDEN, PREFIX, torch.float32, CPU, place))
    ids, weights = WEIGHTS.choose(x)
    expected = torch.zeros(x.shape, dtype=torch.float64)
    for token, place_of_pair in kept_pairs(ids, None):
        expert = int(ids[token, place_of_pair])
        if rank_of_pair(placement, token, expert) == 1:
            share = weights[token, place_of_pair]
            expected[token] += share * WEIGHTS.expert(expert, x[token])
    assert expected.abs().amax(1).min() > 0.1  # rank 1 serves both
    close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
    close(moe(x).part.double(), expected)

    def refuse(*_: Any) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(Router, "forward", refuse)
    close(moe(x[:1]).part.double(), expected[:1])
    with pytest.raises(AssertionError, match="asked"):
        moe(x)


def test_first_copies_are_on_the_ranks_in_turn() -> None:
    """They serve whatever a step of one token chooses; each copy is still in the tables once."""
    placement = replicated([10.0] * 8, 2, 16)  # every expert on both ranks
    tables = copies_of(placement)
    size = len(placement.slots[0])
    assert tables.copies.tolist() == [2] * 8 + [1]
    assert (tables.places[:8, 0] // size).tolist() == [0, 1] * 4
    for expert, ranks in enumerate(placement.replicas):
        held = sorted(rank * size + placement.slots[rank].index(expert) for rank in ranks)
        assert sorted(tables.places[expert].tolist()) == held


def test_a_route_that_asks_for_nothing_is_what_the_router_chose() -> None:
    ids = choose_experts_torch(torch.randn(5, EXPERTS), TOP_K, True)[0]
    routes = ExpertRoutes(CONFIG, PREFIX, CPU, Place())
    assert routes(ids) is ids
    assert (routes.slots, routes.loads) == (None, None)
    assert routes.held == tuple(range(EXPERTS))


# --- engines -----------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Return the folder of a mixture, or a file of the loads that it has in `prompts`."""
    root = tmp_path_factory.mktemp("mixtures")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            checkpoints.write(root / name, wide(name))
        return root / name

    return folder


FEW_BLOCKS: dict[str, Any] = {"num_blocks": 9, "max_model_len": 96, "watermark": 0.0}


@pytest.fixture(scope="module")
def loads(written: Written, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return a file of the loads that a model's experts have under `outputs`."""
    root = tmp_path_factory.mktemp("loads")

    def file(name: str) -> str:
        path = root / f"{name}.json"
        if not path.exists():
            _, run = outputs(written(name), record_expert_loads=True, **FEW_BLOCKS)
            run.llm.expert_loads().save(path)
        return str(path)

    return file


@pytest.mark.parametrize("dispatch", DISPATCHES)
@pytest.mark.parametrize("name", ["qwen3-moe", "mixtral"])
@pytest.mark.parametrize("cache", [FEW_BLOCKS, {}], ids=["few blocks", "hits"])
def test_engines_with_copies_say_what_one_rank_says(
    cache: dict[str, Any],
    name: str,
    dispatch: str,
    written: Written,
    loads: Callable[[str], str],
) -> None:
    """Under preemption, and with prefix hits; and they count what one rank counts."""
    expected, alone = outputs(written(name), record_expert_loads=True, **cache)
    assert alone.preemptions() if cache else max(alone.hits()) > 0
    counted = alone.llm.expert_loads()
    for tensor, pipeline, spare in [(2, 1, 4), (4, 1, 8), (2, 2, 2)]:
        found, run = outputs(
            written(name),
            tensor_parallel_size=tensor,
            pipeline_parallel_size=pipeline,
            enable_expert_parallel=True,
            expert_dispatch=dispatch,
            num_redundant_experts=spare,
            expert_loads=loads(name),
            record_expert_loads=True,
            **cache,
            **LOCKSTEP,
        )
        assert found == expected, (tensor, pipeline)
        if pipeline == 1:  # whose steps are one rank's
            assert (run.preemptions(), run.hits()) == (alone.preemptions(), alone.hits())
            assert run.llm.expert_loads() == counted


def test_a_rank_holds_what_its_placement_says(
    written: Written, loads: Callable[[str], str]
) -> None:
    llm = LLM(
        written("qwen3-moe"),
        device="cpu",
        tensor_parallel_size=2,
        enable_expert_parallel=True,
        num_redundant_experts=4,
        expert_loads=loads("qwen3-moe"),
        **LOCKSTEP,
    )
    workers = llm.engine.executor.workers  # type: ignore[attr-defined]
    for layer in llm.model_config.moe.layers:  # type: ignore[union-attr]
        placement = llm.config.expert_placements[layer]
        assert placement.num_slots == 12
        assert sum(len(ranks) == 2 for ranks in placement.replicas) == 4
        for rank, worker in enumerate(workers):
            experts = worker._model.layers[layer].mlp.experts
            assert experts.held == placement.slots[rank]
            assert len(experts.gate_up) == 6


@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_every_rank_turns_the_same_tokens_away(dispatch: str, written: Written) -> None:
    """Ranks that differed would be found out: by the sums, or by the tokens that they choose."""
    folder = written("mixtral")
    unlimited, _ = outputs(folder, **FEW_BLOCKS)
    expected, _ = outputs(folder, expert_capacity_factor=0.8, **FEW_BLOCKS)
    assert expected != unlimited
    for tensor in (2, 4):
        found, _ = outputs(
            folder,
            tensor_parallel_size=tensor,
            enable_expert_parallel=True,
            expert_dispatch=dispatch,
            expert_capacity_factor=0.8,
            **FEW_BLOCKS,
            **LOCKSTEP,
        )
        assert found == expected, tensor
    if dispatch == "all_reduce":  # and where each rank has a part of every expert
        sizes = {"tensor_parallel_size": 2, "expert_capacity_factor": 0.8}
        assert outputs(folder, **sizes, **FEW_BLOCKS, **LOCKSTEP)[0] == expected


def test_a_capacity_for_all_is_none(written: Written) -> None:
    """E / k and more: even if all tokens go to one expert, it takes them."""
    folder = written("mixtral")
    assert outputs(folder, expert_capacity_factor=8 / 3)[0] == outputs(folder)[0]


def test_with_a_capacity_it_matters_who_else_is_there(written: Written) -> None:
    """The reason why there is none by default."""
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    prompts = checkpoints.random_prompts([30, 30, 30], seed=4)

    def last(run: Run, *given: list[int]) -> list[int]:
        return run.generate(given, params)[-1].outputs[0].token_ids

    options: dict[str, Any] = {"max_num_seqs": 4, "enable_prefix_caching": False}
    run = Run.of(written("mixtral"), **options)
    assert last(run, prompts[2]) == last(run, *prompts)
    run = Run.of(written("mixtral"), expert_capacity_factor=0.6, **options)
    assert last(run, prompts[2]) != last(run, *prompts)


def test_processes_exchange_tokens(written: Written, loads: Callable[[str], str]) -> None:
    """Two processes over gloo: the tokens of one rank, and its counts."""
    options: dict[str, Any] = {"max_model_len": 96, "max_num_seqs": 4, "record_expert_loads": True}
    params = SamplingParams(temperature=0.9, seed=3, top_p=0.9, max_tokens=12, ignore_eos=True)
    prompts = checkpoints.random_prompts([30, 1, 17], seed=1)
    alone = Run.of(written("qwen3-moe"), **options)
    expected = [o.outputs[0].token_ids for o in alone.generate(prompts, params)]
    run = Run.of(
        written("qwen3-moe"),
        tensor_parallel_size=2,
        enable_expert_parallel=True,
        expert_dispatch="all_to_all",
        num_redundant_experts=2,
        expert_loads=loads("qwen3-moe"),
        **options,
    )
    assert [o.outputs[0].token_ids for o in run.generate(prompts, params)] == expected
    assert run.llm.expert_loads() == alone.llm.expert_loads()
    run.llm.engine.shutdown()


def test_loads_are_those_of_tokens_that_were_computed(written: Written) -> None:
    """k a token and layer; not of an answer's last token, nor of what the prefix cache has."""
    run = Run.of(written("qwen3-moe"), record_expert_loads=True, max_num_seqs=4)
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    prompts = checkpoints.random_prompts([40, 7], seed=2)
    assert {layer: sum(c) for layer, c in run.llm.expert_loads().tokens.items()} == {0: 0, 2: 0}
    run.generate(prompts, params)
    first = run.llm.expert_loads()
    computed = 40 + 7 + 2 * 4
    assert {layer: sum(c) for layer, c in first.tokens.items()} == {
        0: 3 * computed,
        2: 3 * computed,
    }
    run.generate(prompts[:1], params)
    hit = run.hits()[-1]
    assert hit > 0
    later = run.llm.expert_loads() - first
    assert [sum(c) for c in later.tokens.values()] == [3 * (40 - hit + 4)] * 2


def test_what_an_engine_tries_before_its_first_request_is_not_counted(written: Written) -> None:
    """It measures what steps with guesses take."""
    options = {"speculative_config": {"method": "ngram"}, "max_model_len": 64, "max_num_seqs": 2}
    llm = LLM(written("mixtral"), device="cpu", record_expert_loads=True, **options)
    assert llm.engine.executor.round_costs
    assert {sum(counts) for counts in llm.expert_loads().tokens.values()} == {0}


def test_loads_of_replicas_add_up(written: Written) -> None:
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    options: dict[str, Any] = {"device": "cpu", "record_expert_loads": True, **LOCKSTEP}
    prompts = checkpoints.random_prompts([9, 12], seed=6)
    counted = []
    for number in (1, 2):
        llm = LLM(written("mixtral"), data_parallel_size=number, **options)
        llm.generate(prompts, params, use_tqdm=False)
        counted.append({n: sum(c) for n, c in llm.expert_loads().tokens.items()})
    assert counted[0] == counted[1]
    assert set(counted[0].values()) == {3 * (9 + 12 + 2 * 3)}


def test_an_engine_that_does_not_count_says_so(written: Written) -> None:
    llm = LLM(written("mixtral"), device="cpu")
    with pytest.raises(QuireError, match=r"record_expert_loads=False: .*record_expert_loads=True"):
        llm.expert_loads()


def test_graphs_and_an_exchange_are_refused_together(written: Written) -> None:
    options: dict[str, Any] = {"tensor_parallel_size": 2, "enable_expert_parallel": True}
    with pytest.raises(QuireError, match="expert_dispatch='all_to_all' with cuda_graphs=True"):
        LLM(written("mixtral"), cuda_graphs=True, expert_dispatch="all_to_all", **options)


def test_whether_graphs_may_capture_a_rank() -> None:
    class End:
        rank, size, graph_safe = 0, 2, True

    for plan, safe in ((ExpertPlan(), True), (ExpertPlan(dispatch="all_to_all"), False)):
        place = Place(tensor=End(), expert_parallel=True, experts=plan)  # type: ignore[arg-type]
        assert place.graph_safe is safe
        assert place.exchanges_tokens is not safe
    assert Place(experts=ExpertPlan(dispatch="all_to_all")).graph_safe  # nobody to send to
