"""Each attack earns what its plain code earns, reads nothing, harms nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from attack_suite import HEADER, SECRET, SLUG, Attack, Host, line, load_attacks, run, secrets_of

from labkit.reader.lab import load_lab

ATTACKS = load_attacks()
TABLE = Path(__file__).resolve().parents[3] / "book" / "instructors" / "output" / "attacks.txt"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host(load_lab(SLUG)) as made:
        yield made


def test_there_are_attacks_enough_and_each_is_described() -> None:
    assert len(ATTACKS) >= 25
    for attack in ATTACKS:
        assert {"tries", "outcome", "earns", "says", "task"} <= set(attack.head), attack.name


def test_the_page_shows_every_attack_and_what_it_earns() -> None:
    """With the test below, which runs them, this holds the page's table to the suite."""
    rows = [HEADER]
    for attack in ATTACKS:
        earned = f"{attack.earns:g} of {attack.earns:g}"
        head = attack.head
        rows.append(line([attack.title, head["tries"], earned, "none", head["outcome"]]))
    assert TABLE.read_text("utf8") == "\n".join(rows) + "\n"


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_wins_nothing_and_harms_nothing(attack: Attack, host: Host) -> None:
    result = run(attack, host)
    assert result.report.score == attack.earns
    assert result.report.broken == []
    assert result.leaks == []
    assert result.damage == []
    assert re.search(attack.head["says"], result.words), result.words
    # Whatever an attack put into its words can be written to a page.
    result.words.encode("utf8")
    assert "\x1b" not in result.words


def test_the_suite_would_see_a_leak_and_damage(host: Host) -> None:
    secrets = secrets_of(host.lab)
    assert SECRET in secrets
    assert len(secrets) > 500
    (host.folder / "new").write_text("x", "utf8")
    assert [path.partition(" ")[0] for path in host.damage()] == [str(host.folder / "new")]
    (host.folder / "new").unlink()
    assert host.damage() == []
