"""A course key chooses variants and seeds, alike everywhere, and keeps its secret."""

from __future__ import annotations

import dataclasses
import stat
from collections import Counter
from pathlib import Path

import pytest

from labkit.grading.variants import PUBLIC_SEED, Choice, CourseKey, choose, new_key, read_key
from labkit.reader.lab import Lab, LabError


def test_without_a_key_the_public_default(lab: Lab) -> None:
    assert choose(lab, None) == Choice(lab.default_variant, PUBLIC_SEED)


def test_a_key_is_read_back_and_chooses_the_same(lab: Lab, tmp_path: Path) -> None:
    made = new_key(tmp_path / "key")
    again = read_key(tmp_path / "key")
    assert choose(lab, again) == choose(lab, made)
    assert again.fingerprint == made.fingerprint
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_a_known_key_always_chooses_this(lab: Lab) -> None:
    # Were this to change, notebooks handed out last month would be graded as another variant.
    assert choose(lab, CourseKey(bytes(32))) == Choice("shared", 275064510168445)


def test_keys_reach_every_variant_and_differ_in_seeds(lab: Lab) -> None:
    choices = [choose(lab, CourseKey(number.to_bytes(32, "big"))) for number in range(300)]
    counts = Counter(choice.variant for choice in choices)
    assert set(counts) == set(lab.variants)
    assert min(counts.values()) > 60
    assert len({choice.seed for choice in choices}) == 300


def test_two_labs_of_a_course_are_chosen_apart(lab: Lab) -> None:
    other = dataclasses.replace(lab, slug="another-lab")
    keys = [CourseKey(number.to_bytes(32, "big")) for number in range(30)]
    pairs = {(choose(lab, key).variant, choose(other, key).variant) for key in keys}
    assert len(pairs) > len(lab.variants)
    assert all(choose(lab, key).seed != choose(other, key).seed for key in keys)


def test_the_order_of_the_variants_in_the_file_does_not_matter(lab: Lab) -> None:
    turned = dataclasses.replace(lab, variants=dict(reversed(lab.variants.items())))
    for number in range(20):
        key = CourseKey(number.to_bytes(32, "big"))
        assert choose(turned, key) == choose(lab, key)


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    new_key(tmp_path / "key")
    before = (tmp_path / "key").read_bytes()
    with pytest.raises(LabError, match="cannot be made again"):
        new_key(tmp_path / "key")
    assert (tmp_path / "key").read_bytes() == before


@pytest.mark.parametrize(
    "content",
    ["", "secret", "labkit course key 1\nabc\n", "labkit course key 1\n" + "zz" * 32, "é"],
)
def test_what_is_no_key_is_refused_and_not_quoted(tmp_path: Path, content: str) -> None:
    path = tmp_path / "key"
    path.write_text(content, "utf8")
    with pytest.raises(LabError, match="is no course key") as refused:
        read_key(path)
    assert "zz" not in str(refused.value)
    with pytest.raises(LabError, match="cannot be read: No such file"):
        read_key(tmp_path / "none")


def test_the_secret_shows_nowhere() -> None:
    key = CourseKey(b"s" * 32)
    assert "sss" not in repr(key) + str(key) + key.fingerprint
    assert (b"s" * 4).hex() not in repr(key) + key.fingerprint
