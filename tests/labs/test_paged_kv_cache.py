"""The lab on the paged KV cache, and the judge of its frontier task."""

from __future__ import annotations

from types import ModuleType

import pytest
from lab_suite import LabSuite

from labkit.lab import import_folder, load_lab
from labkit.subject import Wrong

BY_REUSE = '''
class Policy(LeastRecent):
    """Evict what is due latest, if it is asked for as often as so far."""

    def __init__(self):
        super().__init__()
        self.now, self.last, self.gaps = 0, {}, {}

    def served(self, client, blocks, found):
        super().served(client, blocks, found)
        self.now += 1
        for block in blocks:
            gap = self.now - self.last.get(block, self.now - 60)
            self.gaps[block] = (self.gaps.get(block, gap) + gap) / 2
            self.last[block] = self.now

    def victim(self, blocks):
        def due(block):
            return max(self.gaps[block], self.now - self.last[block]), -self.order[block]

        return max(blocks, key=due)
'''


class TestPagedKVCache(LabSuite):
    slug = "paged-kv-cache"


@pytest.fixture(scope="module")
def frontier() -> ModuleType:
    return import_folder(
        load_lab("paged-kv-cache").folder, "frontier_of_paged_kv_cache", "frontier"
    )


def test_a_policy_is_judged_by_the_gap_it_closes(frontier: ModuleType) -> None:
    assert frontier.judge("class Policy(LeastRecent):\n    pass\n", seed=4) == 0
    assert 0 < frontier.judge(BY_REUSE, seed=4) <= 10


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return -1", "expected one of them"),
        ("return [blocks[0]]", "expected one of them"),
        ("raise SystemExit", "SystemExit"),
        ("return open('/etc/passwd')", "Error"),
    ],
)
def test_a_policy_that_names_no_candidate_is_told_so(
    frontier: ModuleType, body: str, words: str
) -> None:
    source = f"class Policy(LeastRecent):\n    def victim(self, blocks):\n        {body}\n"
    with pytest.raises(Wrong, match=words):
        frontier.judge(source, seed=0)


def test_the_starter_has_the_frontier_cell(frontier: ModuleType) -> None:
    lab = load_lab("paged-kv-cache")
    assert "class Policy" in frontier.policy_cell(lab.folder / f"{lab.slug}.ipynb")
