"""`labkit new`: what it writes builds, verifies and can be told from a lab that is there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from labkit.author.build import drift, frontier_digests
from labkit.author.verify import load_mutants, verify
from labkit.cli import main
from labkit.reader.lab import Lab, load_lab


def test_a_new_lab_verifies(small_lab: Lab) -> None:
    assert drift(small_lab) is None
    assert len(small_lab.variants) >= 3
    assert small_lab.automatic_points + small_lab.written_points == 100
    scores, problems = verify(small_lab)
    assert problems == []
    assert scores.count("\n") == 2 * len(small_lab.variants) + 1 + len(load_mutants(small_lab))


def test_a_frontier_digest_that_is_out_of_date_is_said_with_the_right_one() -> None:
    lab = load_lab("batching")
    (right,) = {frontier_digests(lab, variant)["policy"] for variant in lab.variants}
    said = drift(replace(lab, frontier={"policy": ""}))
    assert said == (
        "[frontier] of lab.toml has policy = '', and the starter of the variant shortest gives "
        f"'{right}': write that"
    )
    said = drift(replace(lab, frontier={"policies": right}))
    assert said is not None
    assert "gives no frontier cell of that name" in said


def test_its_name_is_in_it_and_no_trace_of_the_sample(small_lab: Lab) -> None:
    texts = [path.read_text("utf8") for path in small_lab.folder.rglob("*") if path.is_file()]
    assert any("step filling" in text for text in texts)
    assert not [text for text in texts if "{{ " in text or ".tmpl" in text]
    assert '"lab": "step-filling"' in (small_lab.folder / "step-filling.ipynb").read_text("utf8")


@pytest.mark.parametrize("slug", ["My Lab", "lab_1", "-lab", "lab-", "../lab", ""])
def test_a_name_that_is_no_slug(
    slug: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", "--in", str(tmp_path), "--", slug]) == 2
    assert f"{slug!r} is no slug" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_lab_that_is_there_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "mine", "--in", str(tmp_path)]) == 0
    (tmp_path / "mine" / "lab.toml").write_text("precious")
    assert main(["new", "mine", "--in", str(tmp_path)]) == 2
    assert "exists already: choose another slug" in capsys.readouterr().err
    assert (tmp_path / "mine" / "lab.toml").read_text() == "precious"
