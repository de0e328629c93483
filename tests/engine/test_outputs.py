"""`Prefix`: what an output that streams holds in place of copies."""

from __future__ import annotations

import copy
import json
import pickle

import pytest

from quire.messages import Logprob
from quire.outputs import Prefix
from quire.progress import RequestHandle
from quire.request import FinishReason, Request
from quire.sampling.params import SamplingParams


def test_it_stays_what_it_was() -> None:
    grown = [3, 1, 4]
    prefix = Prefix(grown)
    grown += [1, 5]
    for same in ([3, 1, 4], Prefix([3, 1, 4])):
        assert prefix == same
        assert same == prefix
    for other in (grown, (3, 1, 4), [3, 1]):
        assert prefix != other
    assert (len(prefix), list(prefix), repr(prefix)) == (3, [3, 1, 4], "[3, 1, 4]")
    assert (prefix[0], prefix[-1], prefix[1:], prefix[::-1]) == (3, 4, [1, 4], [4, 1, 3])
    assert (1 in prefix, 5 in prefix, prefix.index(4)) == (True, False, 2)
    for index in (3, -4):
        with pytest.raises(IndexError):
            prefix[index]


def test_what_is_made_of_it_is_a_list() -> None:
    prefix = Prefix([3, 1, 4])
    nine = [9]
    for made in (prefix + nine, nine + prefix, copy.deepcopy(prefix), prefix[:]):
        assert type(made) is list
    assert (prefix + nine, nine + prefix) == ([3, 1, 4, 9], [9, 3, 1, 4])
    assert pickle.loads(pickle.dumps(prefix)) == [3, 1, 4]
    assert json.dumps(list(prefix)) == "[3, 1, 4]"
    with pytest.raises(TypeError):
        hash(prefix)


def test_snapshots_copy_nothing_until_the_end() -> None:
    """A stream of n tokens has n snapshots: copies would make n² of it."""
    request = Request("a", [1, 2], SamplingParams(logprobs=0, max_tokens=8))
    handle = RequestHandle("a", None, [1, 2], [request])
    snapshots = []
    for token_id in range(3):
        request.output_token_ids.append(token_id)
        handle.take(request, [{token_id: Logprob(-1.0, 1, None)}], float(token_id))
        snapshots.append(handle.snapshot())
    for number, snapshot in enumerate(snapshots, 1):
        (completion,) = snapshot.outputs
        assert snapshot.metrics is not None
        for said in (completion.token_ids, completion.logprobs, snapshot.metrics.token_times):
            assert isinstance(said, Prefix)
            assert len(said) == number
    handle.withdraw(request, FinishReason.ABORT)
    last = handle.snapshot()
    assert last.outputs[0] is handle.snapshot().outputs[0]
    assert last.metrics is not None
    for ended in (last.outputs[0].token_ids, last.outputs[0].logprobs, last.metrics.token_times):
        assert type(ended) is list
        assert len(ended) == 3
    assert last.outputs[0].token_ids is not request.output_token_ids
