"""`InputBatch`: the sampling parameters of a step's rows, several rows a request included."""

from __future__ import annotations

import pytest
import torch
from sampling_rows import VOCAB, batch_of, gather, put

from quire import SamplingParams
from quire.messages import ScheduledEntry
from quire.sampling import SamplingTensors

PLAIN = SamplingParams()


def bias_of(tensors: SamplingTensors) -> list[list[float]]:
    assert tensors.bias is not None
    return tensors.bias.tolist()


def forbidden(row: list[float]) -> list[int]:
    """Tokens that a row of bias forbids."""
    return [token for token, bias in enumerate(row) if bias == -torch.inf]


def test_a_request_may_choose_several_tokens() -> None:
    """Each row has its request's seed and parameters, its own position and what lies before it."""
    draft = ([1, 2], [3, 3, 5], SamplingParams(temperature=0.5, presence_penalty=1.0))
    batch = batch_of(draft, ([4], [], SamplingParams(top_k=3)))
    tensors = gather(batch, [(0, 2), (0, 3), (1, 1), (0, 4), (0, 5)])
    assert tensors.seeds.tolist() == [90, 90, 91, 90, 90]
    assert tensors.positions.tolist() == [2, 3, 1, 4, 5]
    assert tensors.temperature.tolist() == [0.5, 0.5, 1.0, 0.5, 0.5]
    assert tensors.top_k is not None
    assert tensors.top_k.tolist() == [0, 0, 3, 0, 0]
    assert tensors.penalties is not None
    assert [counts[3] for counts in tensors.penalties.output_counts.tolist()] == [0, 1, 0, 2, 2]
    assert [counts[5] for counts in tensors.penalties.output_counts.tolist()] == [0, 0, 0, 0, 1]
    assert tensors.penalties.prompt_counts.sum(1).tolist() == [2, 2, 1, 2, 2]


def test_outputs_are_told_at_the_last_positions_of_entries() -> None:
    """One, several and none: what stood elsewhere stays."""
    batch = batch_of(([1, 2], [0, 0, 0], PLAIN), ([4], [0], PLAIN), ([5, 6], [7], PLAIN))
    entries = [
        ScheduledEntry("1", 1, 1, 1, True, token_ids=(3,)),
        ScheduledEntry("0", 0, 1, 4, True, token_ids=(8, 9, 2)),
        ScheduledEntry("2", 2, 1, 1, False),
    ]
    batch.tell(entries)
    assert [batch.token_ids[row, :6].tolist() for row in range(3)] == [
        [1, 2, 8, 9, 2, 0],
        [4, 3, 0, 0, 0, 0],
        [5, 6, 7, 0, 0, 0],
    ]
    before = batch.token_ids.clone()
    batch.tell(entries[2:])
    assert torch.equal(batch.token_ids, before)


def test_drafts_count_for_min_tokens_and_bad_words() -> None:
    params = SamplingParams(min_tokens=2, stop_token_ids=[6], bad_words_ids=[[3, 3, 5], [2, 4]])
    tensors = gather(batch_of(([1, 2], [3, 3, 5], params)), [(0, 2), (0, 3), (0, 4), (0, 5)])
    # The prompt's 2 is no beginning of a word: none but the ends are forbidden at first.
    assert [forbidden(row) for row in bias_of(tensors)] == [[6, 7], [6, 7], [5], []]


def test_rows_that_ask_for_nothing_cost_nothing() -> None:
    """Without a use of them the tensors are none, whatever other requests have."""
    busy = SamplingParams(
        min_tokens=1,
        logit_bias={2: 1.0},
        bad_words_ids=[[1, 2]],
        logits_processors=[lambda output, logits: logits],
        presence_penalty=1.0,
        logprobs=3,
    )
    batch = batch_of(
        ([1], [2, 3], PLAIN), ([1], [2, 3], busy), ([1], [], SamplingParams(min_tokens=1))
    )
    plain = gather(batch, [(0, 3)])
    assert plain.bias is plain.penalties is plain.num_logprobs is None
    assert not plain.functions
    assert gather(batch, [(2, 2)]).bias is None  # it has its token
    mixed = gather(batch, [(0, 3), (1, 3)])
    assert bias_of(mixed)[0] == [0.0] * VOCAB
    assert [row for row, _, _ in mixed.functions] == [1]


@pytest.mark.parametrize(
    ("options", "uncaptured"),
    [
        ({"temperature": 0.7, "top_k": 4, "top_p": 0.9, "min_p": 0.1, "stop_token_ids": [3]}, []),
        ({"min_tokens": 2}, [3, 4]),
        ({"logit_bias": {1: 1.0}}, [3, 4, 5, 6]),
        ({"allowed_token_ids": [1]}, [3, 4, 5, 6]),
        ({"bad_words_ids": [[1]]}, [3, 4, 5, 6]),
        ({"logits_processors": [lambda output, logits: logits]}, [3, 4, 5, 6]),
        ({"repetition_penalty": 1.1}, [3, 4, 5, 6]),
        ({"frequency_penalty": 1.1}, [3, 4, 5, 6]),
        ({"logprobs": 0}, [3, 4, 5, 6]),
    ],
)  # fmt: skip
def test_which_tokens_a_captured_step_cannot_choose(
    options: dict[str, object], uncaptured: list[int]
) -> None:
    """`min_tokens` is at an end once the output is that long; the others hold throughout."""
    params = SamplingParams(**options)  # type: ignore[arg-type]
    state = batch_of(([1, 2, 3], [], params)).state(0)
    assert [at for at in range(3, 7) if state.needs_uncaptured_sampling(at)] == uncaptured


def test_a_row_forgets_the_request_before() -> None:
    """Words of any number and length, in tables that grow, and rows that are used again."""
    words = [[[1]], [[2, 1]], [[3, 3, 1], [4], [5]], [], [[6, 1]], [[1], [2]]]
    batch = batch_of(*[([0], [3, 3], SamplingParams(bad_words_ids=own)) for own in words])
    chosen = [(row, 3) for row in range(len(words))]
    expected = [[1], [], [1, 4, 5], [], [], [1, 2]]
    assert [forbidden(row) for row in bias_of(gather(batch, chosen))] == expected
    put(batch, 2, ([0], [3, 3], SamplingParams(bad_words_ids=[[3, 6]], logit_bias={0: 2.0})))
    put(batch, 5, ([0], [3, 3], PLAIN))
    put(batch, 0, ([0], [3, 3], SamplingParams(allowed_token_ids=[1, 2])))
    bias = bias_of(gather(batch, chosen))
    assert [forbidden(row) for row in bias] == [[0, 3, 4, 5, 6, 7], [], [6], [], [], []]
    assert bias[2][0] == 2.0
