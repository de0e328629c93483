"""What a notebook must have beside running: nbval runs it, and cannot see these.

nbval compares nothing for a cell that was never executed, and knows no pedagogy.
"""

from __future__ import annotations

import ast
import builtins
import json
import re
from collections.abc import Iterator

import bookmeta
import nbformat
import pytest
from nbformat import NotebookNode
from parsed_notebook import Notebook, is_strict, printed, tags

MAGIC = re.compile(r"^(\s*)%.*$", re.MULTILINE)


def parse(cells: list[NotebookNode]) -> ast.Module:
    """Parse code cells as one module, their magics left out."""
    return ast.parse(MAGIC.sub(r"\1pass", "\n".join(cell.source for cell in cells)))


def code_of(cells: list[NotebookNode]) -> list[NotebookNode]:
    return [cell for cell in cells if cell.cell_type == "code"]


def bound(tree: ast.AST) -> set[str]:
    """Return every name that a module gives a value, in whatever scope."""
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and _stores(node)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return names


def _stores(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Store)


def test_every_cell_was_run_in_order(notebook: Notebook) -> None:
    assert [cell.execution_count for cell in notebook.code] == list(
        range(1, len(notebook.code) + 1)
    )


def test_no_output_is_an_error_or_noise(notebook: Notebook) -> None:
    for cell in notebook.code:
        assert not [o for o in cell.outputs if o.output_type == "error"], cell.source
        assert printed(cell, "stderr") == "", cell.source
        text = printed(cell)
        assert "\r" not in text, "a progress bar's residue"
        assert not re.search(r"(?<!\w)/(home|root|work|tmp|Users|content|usr|opt)/", text), text
        assert not re.search(r"Warning\b|Loading weights", text), text


def test_the_kernel_is_plain_python(notebook: Notebook) -> None:
    metadata = nbformat.read(notebook.path, as_version=4).metadata
    assert metadata.kernelspec.name == "python3"
    # A version here would change with every machine that runs the notebook.
    assert dict(metadata.language_info) == {"name": "python"}


def test_the_title_links_to_colab_and_to_the_chapter(notebook: Notebook) -> None:
    intro = notebook.cells[0].source
    assert f"]({bookmeta.colab_url(f'notebooks/{notebook.slug}.ipynb')})" in intro
    assert f"]({bookmeta.site_url()}chapters/{notebook.slug}.html)" in intro


def test_the_first_cell_installs_only_what_is_missing(notebook: Notebook) -> None:
    source = notebook.code[0].source
    installs = re.findall(r"^(\s*)%pip install (.*)$", source, re.MULTILINE)
    assert installs
    for indent, what in installs:
        assert indent, "an install that no condition guards"
        # An upgrade of any of these breaks Colab's runtime; quire's own ranges leave them be.
        assert not re.search(r"torch|triton|transformers|ipykernel|--upgrade|-U\b|\[", what)
    assert f'"quire @ git+{bookmeta.repository_url()}"' in source
    assert source.count("importlib.util.find_spec(") == len(installs)


@pytest.mark.parametrize(
    ("capability", "tier"),
    [
        (None, "CPU"),
        ((7, 5), "T4-class"),
        ((8, 0), "Ampere and up"),
        ((8, 9), "Ampere and up"),
        ((9, 0), "Hopper"),
        ((10, 0), "Ampere and up"),
    ],
)
def test_the_first_cell_names_the_tier(
    notebook: Notebook, capability: tuple[int, int] | None, tier: str
) -> None:
    class Cuda:
        @staticmethod
        def is_available() -> bool:
            return capability is not None

        @staticmethod
        def get_device_capability() -> tuple[int, int]:
            assert capability is not None
            return capability

    class Torch:
        cuda = Cuda

    functions = [n for n in parse(notebook.code[:1]).body if isinstance(n, ast.FunctionDef)]
    namespace: dict[str, object] = {"torch": Torch}
    exec(compile(ast.Module(functions, []), "first cell", "exec"), namespace)
    assert namespace["find_tier"]() == tier  # type: ignore[operator]


def test_there_are_four_to_six_experiments(notebook: Notebook) -> None:
    headings = [cells[0].source.splitlines()[0] for cells in notebook.experiments]
    numbers = [int(re.findall(r"## Experiment (\d+)\. \w", heading)[0]) for heading in headings]
    assert numbers == list(range(1, len(numbers) + 1))
    assert 4 <= len(numbers) <= 6


def test_an_experiment_predicts_runs_and_explains(notebook: Notebook) -> None:
    for cells in notebook.experiments:
        title = cells[0].source.splitlines()[0]
        predictions = [i for i, cell in enumerate(cells) if cell.source.startswith("prediction =")]
        assert predictions, f"{title}: nothing to predict"
        for i in predictions:
            assert re.fullmatch(r"prediction = None  # .+", cells[i].source), title
            asked = cells[i - 1]
            assert asked.cell_type == "markdown"
            assert re.search(r"\*\*Predict\.\*\* .+\?", asked.source, re.DOTALL), title
            assert "judge(prediction, " in cells[i + 1].source, f"{title}: the answer comes next"
        explained = [cell.source for cell in cells if "**Explain.**" in cell.source]
        assert len(explained) >= len(predictions), title
        assert "**Now change this.**" in cells[-1].source, title


def test_an_experiment_names_a_section_of_the_chapter(notebook: Notebook) -> None:
    """On the chapter's page or on one beneath it."""
    chapters = bookmeta.ROOT / "chapters"
    page = rf"{re.escape(bookmeta.site_url())}chapters/({notebook.slug}(?:/[\w-]+)?)\.html"
    for cells in notebook.experiments:
        links = re.findall(rf"\[([^]]+)\]\({page}#([\w-]+)\)", cells[0].source)
        assert links, cells[0].source
        for title, name, anchor in links:
            text = (chapters / f"{name}.md").read_text("utf8")
            assert f"({anchor})=\n## {title}\n" in text, f"no section {title!r} at #{anchor}"


def test_an_experiment_needs_only_the_setup(notebook: Notebook) -> None:
    given = bound(parse(notebook.setup)) | set(dir(builtins))
    for cells in notebook.experiments:
        tree = parse(code_of(cells))
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        missing = used - bound(tree) - given
        assert not missing, f"{cells[0].source.splitlines()[0]} borrows {sorted(missing)}"


def test_whoever_judges_a_prediction_asserts_something(notebook: Notebook) -> None:
    for cell in code_of([cell for cells in notebook.experiments for cell in cells]):
        if "judge(prediction, " in cell.source:
            asserts = [n for n in ast.walk(parse([cell])) if isinstance(n, ast.Assert)]
            assert asserts, cell.source


def test_strict_cells_depend_on_no_tier_no_clock_and_no_fine_digit(notebook: Notebook) -> None:
    for cell in filter(is_strict, notebook.code):
        assert not re.search(
            r"cuda|TIER|device_name|bfloat16\"|float16\"|perf_counter|interleaved_seconds|"
            r"__version__|load_measurement\(",
            cell.source,
        ), f"tag this cell nbval-ignore-output:\n{cell.source}"
        for number in re.findall(r"\d*\.\d+", printed(cell)):
            digits = number.replace(".", "").lstrip("0")
            assert len(digits) <= 4, f"{number} in the output of\n{cell.source}"


def test_a_gpu_cell_shows_recorded_rows_and_their_hardware(notebook: Notebook) -> None:
    gpu_cells = [cell for cell in notebook.code if "gpu" in tags(cell)]
    assert gpu_cells
    for cell in gpu_cells:
        assert not is_strict(cell)
        assert "load_measurement(" in cell.source
        assert "recorded on NVIDIA" in printed(cell), "run the notebook on a CPU to commit it"
        assert "T4: not measured" in printed(cell)


def test_a_recorded_date_is_that_of_its_measurement(notebook: Notebook) -> None:
    """A measurement taken again makes the printed rows stale: `make notebooks`."""
    for cell in notebook.code:
        named = re.findall(r"""load_measurement\(["']([\w.-]+)["']\)""", cell.source)
        files = [bookmeta.ROOT / "measurements" / f"{name}.json" for name in named]
        dates = {json.loads(path.read_text("utf8"))["date"] for path in files}
        shown = set(re.findall(r"recorded on [^\n]*?(\d{4}-\d\d-\d\d)", printed(cell)))
        if "gpu" in tags(cell):
            assert shown, f"no date beside the recorded rows of\n{cell.source}"
        assert shown <= dates, f"printed {shown}, measured {dates}: run the notebook again"


def test_a_figure_is_described_in_words(notebook: Notebook) -> None:
    for cell, following in zip(notebook.cells, notebook.cells[1:], strict=False):
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", ())):
            assert following.source.startswith("*Figure: "), cell.source


def chapter_lines(slug: str) -> Iterator[str]:
    chapter = (bookmeta.ROOT / "chapters" / f"{slug}.md").read_text("utf8")
    for block in re.findall(r"^```\{code-cell\}.*?^```", chapter, re.MULTILINE | re.DOTALL):
        yield from (line.strip() for line in block.splitlines())


def test_no_cell_repeats_the_chapter(notebook: Notebook) -> None:
    known = {line for line in chapter_lines(notebook.slug) if len(line) > 20}
    for cell in notebook.code:
        lines = [line.strip() for line in cell.source.splitlines()]
        lines = [s for s in lines if len(s) > 20 and not s.startswith(("import ", "from "))]
        repeated = [line for line in lines if line in known]
        assert len(repeated) <= 1 + len(lines) // 10, f"from the chapter: {repeated}"
