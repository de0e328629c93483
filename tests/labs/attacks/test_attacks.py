"""Each attack earns what its plain code earns, reads nothing, harms nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from attack_suite import SECRET, SLUG, Attack, Host, load_attacks, run, secrets_of

from labkit.lab import load_lab

ATTACKS = load_attacks()


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host(load_lab(SLUG)) as made:
        yield made


def test_there_are_attacks_enough_and_each_is_described() -> None:
    assert len(ATTACKS) >= 25
    for attack in ATTACKS:
        assert {"tries", "outcome", "earns", "says", "task"} <= set(attack.head), attack.name


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
