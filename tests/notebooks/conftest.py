"""The notebooks of the book, parsed once for all their tests."""

from __future__ import annotations

import bookmeta
import nbformat
import pytest
from parsed_notebook import Notebook


@pytest.fixture(scope="session", params=bookmeta.slugs())
def notebook(request: pytest.FixtureRequest) -> Notebook:
    """Each chapter's notebook."""
    path = bookmeta.ROOT / "notebooks" / f"{request.param}.ipynb"
    return Notebook(request.param, path, nbformat.read(path, as_version=4).cells)
