"""One visual language for every figure of the book: palette, style, direct labels.

A figure is drawn on a transparent ground in a neutral ink that is legible on white and
on near-black, so the same file serves both themes. Where the book puts an SVG into a page
(`book/_ext/inline_figures.py`) it replaces these very colours by the site's variables
`--q-ink` and `--q-1` … `--q-6`, which are tuned to each theme.

The colours are told apart under protanopia, deuteranopia and tritanopia, and each has a
contrast of at least 3:1 against both grounds (`tests/book/test_palette.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

PALETTE: tuple[str, ...] = ("#2a8be6", "#d9581c", "#3e7454", "#c46bae", "#917039", "#686b77")
"""Blue, vermilion, green, purple, ochre, slate: the order in which lines take colours."""

INK = "#767c85"
"""Axes, ticks and words."""

RULE = "#9aa1aa"
"""Grid lines and reference lines; always thin."""


def use_style(image_format: Literal["svg", "png"] = "svg") -> None:
    """Make matplotlib draw as the book does, from here on in this process.

    `svg` is for the book's pages, which take the file's text and colours into the page;
    `png` (at twice the resolution) is for notebooks, whose viewers cannot do that.

    Raises ModuleNotFoundError, naming the extra to install, if matplotlib is missing.
    """
    try:
        import matplotlib as mpl
        from cycler import cycler
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"figures need {error.name}: pip install 'quire[labs]'", name=error.name
        ) from error

    mpl.rcParams.update(
        {
            # 538 CSS pixels: inside the text column, and still legible scaled to a phone.
            "figure.figsize": (5.6, 3.3),
            "figure.facecolor": "none",
            "figure.constrained_layout.use": True,
            "savefig.facecolor": "none",
            "savefig.transparent": True,
            "savefig.bbox": None,
            "axes.facecolor": "none",
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "axes.titlecolor": INK,
            "axes.titlesize": 12,
            "axes.titlelocation": "left",
            "axes.labelsize": 11,
            "axes.linewidth": 0.8,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.grid.axis": "y",
            "axes.axisbelow": True,
            "axes.prop_cycle": cycler(color=PALETTE),
            "grid.color": RULE,
            "grid.linewidth": 0.5,
            "grid.alpha": 0.5,
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "xtick.labelsize": 10,
            "ytick.labelsize": 10,
            "lines.linewidth": 1.8,
            "lines.markersize": 4.5,
            "legend.frameon": False,
            "legend.fontsize": 10,
            "font.family": "sans-serif",
            # Words stay words in an SVG. The page sets them in its own face; matplotlib
            # measures them in DejaVu Sans, which is wider, so nothing overlaps.
            "font.sans-serif": ["DejaVu Sans", "sans-serif"],
            "font.size": 11,
            "svg.fonttype": "none",
            "svg.hashsalt": "quire",
        }
    )
    _set_inline_format(image_format)


def _set_inline_format(image_format: Literal["svg", "png"]) -> None:
    """Tell the notebook kernel which image to send; outside a kernel, do nothing."""
    try:
        from IPython.core.getipython import get_ipython
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ModuleNotFoundError:
        return
    if get_ipython() is None:
        return
    kernel_format = "retina" if image_format == "png" else "svg"
    set_matplotlib_formats(kernel_format, bbox_inches=None)  # type: ignore[no-untyped-call]


def label_lines(ax: Axes, lines: Iterable[Line2D] | None = None, *, gap: float = 0.06) -> None:
    """Write each line's label at its right end, in its colour, instead of a legend.

    Labels that would touch are moved apart; `gap` is the least distance between two of
    them, as a fraction of the axes' height. Lines without a label are left alone. Call it
    last: limits or scales set afterwards move the lines, not their labels.
    """
    if lines is None:
        lines = ax.get_lines()
    ax.get_ylim()  # limits are settled lazily; `transData` alone would still use the old ones
    to_axes = ax.transData + ax.transAxes.inverted()
    ends: list[tuple[float, Line2D]] = []
    for line in lines:
        if not str(line.get_label()).startswith("_"):
            end = np.asarray(line.get_xydata())[-1]
            ends.append((float(to_axes.transform(end)[1]), line))
    next_free = -np.inf
    for height, line in sorted(ends, key=lambda end: end[0]):
        height = max(height, next_free)
        next_free = height + gap
        ax.annotate(
            str(line.get_label()),
            xy=(1.01, height),
            xycoords="axes fraction",
            color=line.get_color(),
            va="center",
            fontsize=10.5,
        )
