"""Placements of experts: what always holds of them, what they gain, and bad input by name."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quire import QuireError
from quire.models.config import ModelConfig
from quire.parallel.expert_loads import ExpertLoads
from quire.parallel.expert_placement import ExpertPlacement, contiguous, packed, replicated
from quire.parallel.expert_plan import place_experts
from quire.parallel.options import ParallelOptions
from quire.resources import load_measurement


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[float], int, int]:
    """Loads, ranks, and slots that they can share; loads of one kind often tie."""
    num_ranks = draw(st.integers(1, 6))
    num_experts = draw(st.integers(1, 24))
    most = num_experts * num_ranks
    choices = [n for n in range(num_experts, most + 1) if n % num_ranks == 0]
    kind = draw(st.sampled_from([st.integers(0, 3), st.integers(0, 10**9), st.floats(0, 1e6)]))
    loads = draw(st.lists(kind, min_size=num_experts, max_size=num_experts))
    return [float(load) for load in loads], num_ranks, draw(st.sampled_from(choices))


@settings(max_examples=400, deadline=None)
@given(problems())
@example(([5.0, 1.0, 1.0], 2, 4))  # the copies of 0, then one slot each
@example(([9.0, 9.0, 0.0, 0.0], 3, 9))
def test_replicated(problem: tuple[list[float], int, int]) -> None:
    loads, num_ranks, num_slots = problem
    placement = replicated(loads, num_ranks, num_slots)
    assert placement == replicated(list(loads), num_ranks, num_slots)
    assert (placement.num_ranks, placement.num_slots) == (num_ranks, num_slots)
    assert placement.num_experts == len(loads)
    assert {len(held) for held in placement.slots} == {num_slots // num_ranks}
    for held in placement.slots:
        assert list(held) == sorted(set(held))  # no twins
    copies = Counter(expert for held in placement.slots for expert in held)
    assert set(copies) == set(range(len(loads)))
    assert [len(ranks) for ranks in placement.replicas] == [copies[e] for e in range(len(loads))]

    # A rank's load is what it gets if copies share; nothing is lost and nothing is added.
    each = placement.rank_loads(loads)
    assert math.isclose(sum(each), sum(loads), abs_tol=1e-9)
    # The lightest rank gets the next copy: no two ranks are further apart than one copy's load.
    a_copy = [load / copies[e] for e, load in enumerate(loads)]
    assert max(each) - min(each) <= max(a_copy) * (1 + 1e-9)
    imbalance = placement.imbalance(loads)
    assert 1 - 1e-9 <= imbalance <= num_ranks + 1e-9
    # Copies go where a copy has most to do: an expert with a copy fewer would have had more.
    for expert, number in copies.items():
        if number > 1:
            before = loads[expert] / (number - 1)
            rivals = [a_copy[e] for e in copies if copies[e] < num_ranks]
            assert before >= max(rivals, default=0.0)


@settings(max_examples=100, deadline=None)
@given(problems())
def test_more_slots_never_give_a_copy_more_to_do(problem: tuple[list[float], int, int]) -> None:
    loads, num_ranks, num_slots = problem

    def most(slots: int) -> float:
        replicas = replicated(loads, num_ranks, slots).replicas
        return max(load / len(ranks) for load, ranks in zip(loads, replicas, strict=True))

    fewer = num_slots - num_ranks
    if fewer >= len(loads):
        assert most(num_slots) <= most(fewer)
    # With every expert everywhere all ranks do the same.
    assert replicated(loads, num_ranks, len(loads) * num_ranks).imbalance(loads) < 1 + 1e-9


def test_packed_is_what_one_packs_by_hand() -> None:
    """7 | 6, 5 | 4: eleven each; of a tie the first rank takes 2, and then has no room for 1."""
    placement = packed([7, 1, 6, 5, 4, 2], 2)
    assert placement.slots == ((0, 4, 5), (1, 2, 3))
    assert placement.rank_loads([7, 1, 6, 5, 4, 2]) == [13, 12]
    assert placement.imbalance([7, 1, 6, 5, 4, 2]) == pytest.approx(13 / 12.5)
    assert contiguous(6, 3).slots == ((0, 1), (2, 3), (4, 5))
    assert packed([0, 0, 0, 0], 2) == contiguous(4, 2)  # by number, where nothing is known


def test_the_busiest_get_the_copies() -> None:
    """8, 4, 1, 1 on two ranks with six slots: 0 and 1 are on both, so that each rank has 7."""
    placement = replicated([8, 4, 1, 1], 2, 6)
    assert placement.slots == ((0, 1, 2), (0, 1, 3))
    assert placement.replicas == ((0, 1), (0, 1), (0,), (1,))
    assert placement.rank_loads([8, 4, 1, 1]) == [7, 7]


@pytest.mark.parametrize(
    ("loads", "num_ranks", "num_slots"),
    [([0.0, 0.0, 0.0], 4, 8), ([0.0, 10.0, 3.0, 0.0, 20.0, 0.0], 3, 15)],
)
def test_ranks_with_room_for_copies_are_kept(
    loads: list[float], num_ranks: int, num_slots: int
) -> None:
    """By load alone the copies of the last expert would find too few ranks with room."""
    placement = replicated(loads, num_ranks, num_slots)
    assert placement.num_slots == num_slots


def test_packing_is_near_the_best_there_is() -> None:
    """Of all placements of eight experts on two ranks none is a tenth better, on these loads."""
    loads = [31, 3, 17, 29, 5, 11, 2, 23]
    best = min(max(sum(order[:4]), sum(order[4:])) for order in permutations(loads))
    assert best <= max(packed(loads, 2).rank_loads(loads)) <= best * 1.1


@pytest.mark.parametrize("num_ranks", [2, 4, 8])
def test_recorded_loads_are_evened_out(num_ranks: int) -> None:
    """What quire-mini-moe's experts receive: packing helps, copies help further."""
    rows = [
        r for r in load_measurement("expert-loads-cpu")["rows"] if "expert_0" in r["parameters"]
    ]
    means = []
    for place in (
        lambda loads: contiguous(len(loads), num_ranks),
        lambda loads: packed(loads, num_ranks),
        lambda loads: replicated(loads, num_ranks, len(loads) + 8),
    ):
        found = []
        for row in rows:
            loads = [row["parameters"][f"expert_{expert}"] for expert in range(16)]
            found.append(place(loads).imbalance(loads))
        means.append(sum(found) / len(found))
    assert means[0] > means[1] > means[2]
    assert means[0] > 1.2
    assert means[2] < 1.2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: contiguous(6, 4), "6 slots for 6 experts on 4 ranks: .*a multiple of 4"),
        (lambda: packed([1, 2, 3], 2), "3 slots for 3 experts on 2 ranks"),
        (lambda: packed([], 2), "0 experts on 2 ranks"),
        (lambda: contiguous(4, 0), "4 experts on 0 ranks"),
        (lambda: replicated([1, 2, 3], 2, 2), "2 slots for 3 experts on 2 ranks: .*3 at least"),
        (lambda: replicated([1, 2, 3], 2, 8), "8 slots for 3 experts on 2 ranks: .*at most 6"),
        (lambda: replicated([1, 2, 3], 2, 5), "5 slots .*a multiple of 2"),
        (lambda: packed([1, -2], 2), "load -2 of expert 1"),
        (lambda: packed([1, math.nan], 2), "load nan of expert 1"),
        (lambda: packed([1, math.inf], 1), "load inf of expert 1"),
        (lambda: contiguous(4, 2).imbalance([1, 2, 3]), "3 loads for 4 experts"),
        (lambda: ExpertPlacement(((0, 1), (2,))), r"\[2, 1\] slots on its ranks"),
        (lambda: ExpertPlacement(()), r"\[\] slots on its ranks"),
        (lambda: ExpertPlacement(((0, 2),)), r"experts \[0, 2\]: they must be 0 to E - 1"),
        (lambda: ExpertPlacement(((0, 1), (2, 2))), r"rank 1 holds \[2, 2\]: expert 2 twice"),
    ],
)
def test_what_cannot_be_placed(make: Any, message: str) -> None:
    with pytest.raises(QuireError, match=message):
        make()


def test_no_load_is_no_imbalance() -> None:
    assert contiguous(4, 2).imbalance([0, 0, 0, 0]) == 1.0
    assert contiguous(4, 2).imbalance([0, 0, 5, 0]) == 2.0


# --- recorded loads ----------------------------------------------------------


def test_loads_add_up_and_travel_through_a_file(tmp_path: Path) -> None:
    loads = ExpertLoads.sum([{2: [1, 2], 0: [0, 3]}, {2: [5, 0]}])
    assert loads.tokens == {0: (0, 3), 2: (6, 2)}
    loads.save(tmp_path / "loads.json")
    assert json.loads((tmp_path / "loads.json").read_text()) == {
        "num_experts": 2,
        "tokens": {"0": [0, 3], "2": [6, 2]},
    }
    assert ExpertLoads.load(tmp_path / "loads.json") == loads
    earlier = ExpertLoads({0: (0, 1), 2: (6, 0)})
    assert (loads - earlier).tokens == {0: (0, 2), 2: (0, 2)}
    with pytest.raises(QuireError, match=r"layers \[0, 2\] less those of \[0\]"):
        loads - ExpertLoads({0: (0, 1)})


MIXTURE = ModelConfig.from_dict(
    {
        "architectures": ["MixtralForCausalLM"],
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_local_experts": 4,
    }
)
SHARED = {"tensor_parallel_size": 2, "enable_expert_parallel": True}


def written(path: Path, content: Any) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_every_layer_is_placed_by_its_own_loads(tmp_path: Path) -> None:
    tokens = {"0": [9, 8, 1, 2], "1": [0, 1, 8, 9]}
    path = written(tmp_path / "loads.json", {"num_experts": 4, "tokens": tokens})
    options = ParallelOptions(expert_loads=path, **SHARED)
    assert {n: p.slots for n, p in place_experts(options, MIXTURE).items()} == {
        0: ((0, 2), (1, 3)),
        1: ((0, 3), (1, 2)),
    }
    options = ParallelOptions(expert_loads=path, num_redundant_experts=2, **SHARED)
    assert {n: p.slots for n, p in place_experts(options, MIXTURE).items()} == {
        0: ((0, 1, 3), (0, 1, 2)),
        1: ((1, 2, 3), (0, 2, 3)),
    }
    assert place_experts(ParallelOptions(**SHARED), MIXTURE) == {}  # contiguous
    assert place_experts(ParallelOptions(tensor_parallel_size=2), MIXTURE) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot be read .*LLM.expert_loads\(\).save"),
        ("{", "cannot be read"),
        ("[]", 'must hold {"num_experts"'),
        ({"num_experts": 4}, "must hold"),
        ({"num_experts": 4, "tokens": {"first": [1, 2, 3, 4]}}, "must hold"),
        ({"num_experts": 4, "tokens": {"0": [1, 2, 3]}}, "must hold"),
        ({"num_experts": 4, "tokens": {"0": [1, 2, 3, -4]}}, "must hold"),
        ({"num_experts": 4, "tokens": {"0": [1, 2, 3, "4"]}}, "must hold"),
        ({"num_experts": 4, "tokens": {"0": [1, 2, 3, 4]}}, "has no loads of layer 1"),
        (
            {"num_experts": 2, "tokens": {"0": [1, 2], "1": [1, 2]}},
            "loads of 2 experts, and the model has num_experts=4",
        ),
    ],
)
def test_files_that_are_no_loads_of_the_model(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "loads.json"
    if content is not None:
        written(path, content)
    options = ParallelOptions(expert_loads=str(path), **SHARED)
    with pytest.raises(QuireError, match=rf"expert_loads='.*loads\.json'.*{message}"):
        place_experts(options, MIXTURE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_redundant_experts": -1}, "num_redundant_experts=-1: must be an integer"),
        ({"num_redundant_experts": 2}, "num_redundant_experts=2 without enable_expert_parallel"),
        ({"expert_loads": "x"}, "expert_loads='x' without enable_expert_parallel"),
        ({"expert_dispatch": "all_to_all"}, "expert_dispatch='all_to_all' without enable_expert"),
        (
            {"expert_dispatch": "deepep", **SHARED},
            "'deepep': must be one of all_reduce, all_to_all",
        ),
        ({"expert_loads": 3, **SHARED}, "expert_loads=3: must be the path"),
        ({"num_redundant_experts": 2, **SHARED}, "num_redundant_experts=2 without expert_loads"),
        ({"record_expert_loads": "yes"}, "record_expert_loads='yes'"),
        *(
            ({"expert_capacity_factor": v}, f"expert_capacity_factor={v!r}: must be a number above")
            for v in (0, -1.0, math.nan, math.inf, "1", True)
        ),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(QuireError, match=message):
        ParallelOptions(**options)


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"num_redundant_experts": 3}, 2),
        ({"num_redundant_experts": 6}, 4),
        ({"num_redundant_experts": 1, "tensor_parallel_size": 4}, 0),
        ({"num_redundant_experts": 0, "tensor_parallel_size": 3}, 2),
        ({"num_redundant_experts": 2, "tensor_parallel_size": 1}, 0),
    ],
)
def test_slots_that_ranks_cannot_share(
    options: dict[str, Any], remedy: int, tmp_path: Path
) -> None:
    tokens = {"0": [9, 8, 1, 2], "1": [0, 1, 8, 9]}
    path = written(tmp_path / "loads.json", {"num_experts": 4, "tokens": tokens})
    given = {**SHARED, "expert_loads": path, **options}
    spare = given["num_redundant_experts"]
    message = (
        f"tensor_parallel_size={given['tensor_parallel_size']} with num_redundant_experts={spare}: "
        f".*num_experts=4, .*choose num_redundant_experts={remedy}$"
    )
    with pytest.raises(QuireError, match=message):
        place_experts(ParallelOptions(**given), MIXTURE)
    given["num_redundant_experts"] = remedy
    assert len(place_experts(ParallelOptions(**given), MIXTURE)) == 2  # the remedy is one


@pytest.mark.parametrize(
    "options",
    [
        {"record_expert_loads": True},
        {"expert_capacity_factor": 1.0},
        {"expert_loads": "x", **SHARED},
    ],
)
def test_a_model_without_experts(options: dict[str, Any]) -> None:
    dense = ModelConfig("LlamaForCausalLM", 50, 32, 64, 2, 4, 2, 8, 64)
    with pytest.raises(QuireError, match=rf"{next(iter(options))}=.*LlamaForCausalLM has no exp"):
        place_experts(ParallelOptions(**options), dense)
