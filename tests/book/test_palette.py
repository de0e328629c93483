"""The data colours can be told apart and read, in both themes and by every eye."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from bookmeta import ROOT
from numpy.typing import NDArray

from quire.plotting import INK, PALETTE

CSS = (ROOT / "book" / "_static" / "css" / "tokens.css").read_text("utf8")
THEMES = {
    "light": re.search(r"^html \{(.*?)^\}", CSS, re.S | re.M),
    "dark": re.search(r'^html\[data-theme="dark"\] \{(.*?)^\}', CSS, re.S | re.M),
}

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
         [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
         [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
         [0.004733, 0.691367, 0.303900]]
    ),
}  # fmt: skip


def variables(theme: str) -> dict[str, str]:
    block = THEMES[theme]
    assert block is not None
    return dict(re.findall(r"--(q-[\w-]+): (#[0-9a-f]{6})", block[1]))


def linear(colour: str) -> NDArray[np.float64]:
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    dark, light = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (one, other))
    return (light + 0.05) / (dark + 0.05)


def lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """CIELAB of linear sRGB, white D65."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    ratio = xyz @ rgb.clip(0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("theme", THEMES)
def test_what_carries_text_reads(theme: str) -> None:
    names = variables(theme)
    inks = [f"q-{n}" for n in range(1, 7)] + ["q-ink", "q-ink-soft", "q-muted", "q-accent"]
    for ground in ("q-paper", "q-tint"):
        low = {ink: contrast(names[ink], names[ground]) for ink in inks}
        assert min(low.values()) >= 4.5, f"{theme} on {ground}: {low}"


@pytest.mark.parametrize("theme", THEMES)
def test_a_figure_outside_the_page_reads_on_both_grounds(theme: str) -> None:
    paper = variables(theme)["q-paper"]
    for colour in (*PALETTE, INK):
        assert contrast(colour, paper) >= 3, f"{colour} on {theme} {paper}"


@pytest.mark.parametrize("theme", THEMES)
def test_a_reference_line_is_seen(theme: str) -> None:
    colours = variables(theme)
    assert contrast(colours["q-reference"], colours["q-paper"]) >= 3


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
@pytest.mark.parametrize("palette", ["figures", *THEMES])
def test_neighbouring_colours_are_told_apart(palette: str, deficiency: str) -> None:
    """Lines take colours in order, so the first four must differ most."""
    if palette == "figures":
        colours = list(PALETTE)
    else:
        colours = [variables(palette)[f"q-{n}"] for n in range(1, 7)]
    seen = [lab(DEFICIENCIES[deficiency] @ linear(colour)) for colour in colours]
    for a, b in itertools.combinations(range(6), 2):
        distance = float(np.linalg.norm(seen[a] - seen[b]))
        assert distance >= (15 if b < 4 else 8), f"{colours[a]} and {colours[b]}: {distance:.1f}"
