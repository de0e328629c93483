"""What the build does to a page's text so that lines break where a reader would break them."""

from __future__ import annotations

import pytest
from inline_figures import inline_svg
from typography import hold_units, mend_names

from quire.plotting import RULE

CODE = '<code class="docutils literal notranslate"><span class="pre">{}</span></code>'


@pytest.mark.parametrize(
    ("html", "held"),
    [
        ("<p>50 % of it</p>", "<p>50&nbsp;% of it</p>"),
        ('<span class="pasted-text">3.5</span> ms', '<span class="pasted-text">3.5</span>&nbsp;ms'),
        ("4 GB/s, 8 bits", "4&nbsp;GB/s, 8&nbsp;bits"),
        ("two ms, 5 msec, 7 shards", "two ms, 5 msec, 7 shards"),
        ("<pre>1 ms</pre><code>2 %</code> 3 %", "<pre>1 ms</pre><code>2 %</code> 3&nbsp;%"),
        ('<a title="9 ms">8 s</a>', '<a title="9 ms">8&nbsp;s</a>'),
    ],
)
def test_a_number_stays_with_its_unit(html: str, held: str) -> None:
    assert hold_units(html) == held


def test_a_long_name_breaks_between_its_words_in_a_table_alone() -> None:
    name = CODE.format("kv/CacheManager._free_all")
    broken = CODE.format("kv/<wbr>Cache<wbr>Manager.<wbr>_free_<wbr>all")
    assert mend_names(name) == name
    assert mend_names(f"<table>{name}</table>") == f"<table>{broken}</table>"
    assert mend_names(f"<table>{CODE.format('num_heads')}</table>").count("<wbr>") == 0


def test_the_dashes_of_an_option_stay_with_its_first_word() -> None:
    held = CODE.format('<span class="q-whole">--no</span>-async-scheduling')
    assert mend_names(CODE.format("--no-async-scheduling")) == held


def test_the_grid_of_a_figure_is_fainter_than_a_line_that_says_something() -> None:
    def line(style: str) -> str:
        return f'<path style="fill: none; stroke: {RULE}; {style}"/>'

    svg = '<svg width="9pt" viewBox="0 0 9 9">{}</svg>'
    grid = inline_svg(svg.format(line("stroke-opacity: 0.5; stroke-width: 0.5")), "a", "f")
    reference = inline_svg(svg.format(line("stroke-width: 1")), "a", "f")
    assert ("--q-rule" in grid, "--q-reference" in grid) == (True, False)
    assert ("--q-rule" in reference, "--q-reference" in reference) == (False, True)
