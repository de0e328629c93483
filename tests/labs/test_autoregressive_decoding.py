"""The lab on autoregressive decoding, and the traces of its text."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from lab_suite import LabSuite

from labkit.author.build import build_notebook
from labkit.grading.cells import reference_cells
from labkit.reader.lab import load_lab

FILES = pytest.mark.parametrize("file", ["master.py", "second.py"])


class TestAutoregressiveDecoding(LabSuite):
    slug = "autoregressive-decoding"


def _task(name: str, file: str) -> tuple[str, dict[str, Any]]:
    """The text of a task, and what its solution defines."""
    lab = load_lab("autoregressive-decoding")
    texts = [cell["source"] for cell in build_notebook(lab)["cells"]]
    number = [task.name for task in lab.tasks].index(name) + 1
    (text,) = (text for text in texts if text.startswith(f"## Task {number}:"))
    names: dict[str, Any] = {}
    exec(lab.given, names)
    exec(reference_cells(lab, None, file)[name], names)
    return text, names


@FILES
def test_the_table_of_slots_is_what_the_solutions_do(file: str) -> None:
    """Which slot changes, and the values in which slots matter to the logits."""
    text, names = _task("decode-step", file)
    rows = re.findall(r"^\| (\d) \| (\d) \| ([\d, ]+) \| ([\d, ]+) \|$", text, re.M)
    assert len(rows) == 6
    rng = np.random.default_rng(0)
    config = {"num_heads": 1, "num_kv_heads": 1, "head_size": 2, "sinks": 1, "window": 2}
    matrices = {
        name: rng.normal(size=(2, 2)) for name in ("q", "k", "v", "o", "gate", "up", "down")
    }
    layer = matrices | {"attn_norm": np.ones(2), "mlp_norm": np.ones(2)}
    weights = {"embed": rng.normal(size=(5, 2)), "norm": np.ones(2), "layers": [layer]}
    cache = {name: np.full((1, 3, 1, 2), 9.0) for name in ("k", "v")}
    lives: dict[int, int] = {}  # position by slot
    for position, (shown, slot, kept, slots) in enumerate(rows):
        before = {name: values.copy() for name, values in cache.items()}
        logits = names["decode_step"](weights, config, cache, position % 5, position)
        changed = np.flatnonzero((cache["v"] != before["v"]).any(axis=(0, 2, 3)))
        assert changed.tolist() == [int(slot)]
        assert int(shown) == position
        lives[int(slot)] = position
        read = {int(slot)}
        for other in range(3):
            again = {name: values.copy() for name, values in before.items()}
            again["v"][0, other] += 1.0
            if not np.allclose(
                names["decode_step"](weights, config, again, position % 5, position), logits
            ):
                read.add(other)
        listed = [int(number) for number in slots.split(",")]
        assert set(listed) == read
        assert [lives[one] for one in listed] == [int(number) for number in kept.split(",")]


@FILES
def test_the_trace_of_the_stream_is_what_the_solutions_return(file: str) -> None:
    """What each call returns; what is held is what has come and has not been shown."""
    text, names = _task("stream", file)
    rows = re.findall(r"^\| `(.+?)` \| (.*?) \|? ?`(b\".*?\")` \|", text, re.M)
    assert len(rows) == 8
    (made, _, _), *calls = rows
    stream = eval(made, names)
    come, shown = b"", ""
    for call, returned, held in calls:
        got = eval(f"stream.{call}", {"stream": stream})
        assert got == eval(returned.strip(" `|")), call
        if stream.stopped_by is None:
            come += eval(call[5:-1])
            shown += got
            rest = eval(held)
            assert (come[: len(come) - len(rest)]).decode("utf-8", "replace") == shown, call
        else:
            assert eval(held) == b""
    assert stream.stopped_by == b"()"
