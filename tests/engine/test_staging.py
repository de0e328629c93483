"""The one upload a step: numbers keep their places, buffers take turns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quire.runner.decode_graphs import batch_sizes
from quire.runner.staging import Staging

CPU = torch.device("cpu")


def test_numbers_arrive_with_their_type_and_shape() -> None:
    staging = Staging(256, 2, CPU)
    staging.begin()
    a = staging.put([1, 2, 3], np.int32)
    b = staging.put([[2**40, -1]], np.int64)
    c = staging.put(np.empty((3, 0)), np.int64)
    staging.upload()
    assert a.tolist() == [1, 2, 3]
    assert a.dtype == torch.int32
    assert b.tolist() == [[2**40, -1]]
    assert c.shape == (3, 0)
    assert b.data_ptr() % 16 == 0


def test_the_same_sizes_give_the_same_places() -> None:
    staging = Staging(256, 2, CPU)
    places = []
    for values in ([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]):
        staging.begin()
        first, second = staging.put(values, np.int32), staging.put(values, np.int64)
        staging.upload()
        assert second.tolist() == values
        places.append((first.data_ptr(), second.data_ptr()))
    assert places[0] == places[1]


def test_a_transposed_array_is_written_in_its_own_order() -> None:
    staging = Staging(256, 1, CPU)
    staging.begin()
    columns = staging.put(np.array([(1, 2, 3), (4, 5, 6)]).T, np.int64)
    assert columns.tolist() == [[1, 4], [2, 5], [3, 6]]


def test_a_step_that_is_too_large_fails_at_once() -> None:
    staging = Staging(16, 1, CPU)
    staging.begin()
    with pytest.raises(ValueError, match="broadcast"):
        staging.put(range(5), np.int64)


@pytest.mark.parametrize("largest", [1, 3, 16, 63, 64, 100, 256, 300])
def test_every_batch_has_a_captured_size(largest: int) -> None:
    sizes = batch_sizes(largest)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == largest
    for batch in range(1, largest + 1):
        size = min(s for s in sizes if s >= batch)
        assert size - batch <= max(7, batch // 4)
