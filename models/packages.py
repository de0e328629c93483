"""The packages that the corpus is read from, with their licences and installed files."""

from __future__ import annotations

import importlib.metadata
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

# Distribution name → licence as its metadata or licence file states it. Permissive ones only:
# hypothesis, tqdm, pathspec and certifi (MPL), codespell (GPL) and debugpy (EPL parts) stay out,
# and so do docutils (parts under GPL) and playwright, snowballstemmer, wcwidth (generated).
PACKAGES: dict[str, str] = {
    "python": "PSF-2.0",
    "anyio": "MIT", "asttokens": "Apache-2.0", "attrs": "MIT", "babel": "BSD-3-Clause",
    "beautifulsoup4": "MIT", "build": "MIT", "charset-normalizer": "MIT",
    "click": "BSD-3-Clause", "contourpy": "BSD-3-Clause", "coverage": "Apache-2.0",
    "executing": "MIT", "execnet": "MIT", "fastjsonschema": "BSD-3-Clause", "filelock": "MIT",
    "fonttools": "MIT", "fsspec": "BSD-3-Clause", "greenlet": "MIT AND PSF-2.0", "h11": "MIT",
    "hatchling": "MIT", "httpcore2": "BSD-3-Clause", "httpx2": "BSD-3-Clause",
    "huggingface_hub": "Apache-2.0", "importlib_metadata": "Apache-2.0",
    "ipykernel": "BSD-3-Clause", "ipython": "BSD-3-Clause", "jedi": "MIT",
    "jinja2": "BSD-3-Clause", "jsonschema": "MIT", "jupyter-cache": "MIT",
    "jupyter_client": "BSD-3-Clause", "jupyter_core": "BSD-3-Clause", "jupytext": "MIT",
    "linkify-it-py": "MIT", "markdown-it-py": "MIT", "matplotlib": "PSF-2.0-style (matplotlib)",
    "mdit-py-plugins": "MIT", "mpmath": "BSD-3-Clause", "mypy": "MIT",
    "myst-nb": "BSD-3-Clause", "myst-parser": "MIT", "nbclient": "BSD-3-Clause",
    "nbformat": "BSD-3-Clause", "nbval": "BSD-3-Clause", "networkx": "BSD-3-Clause",
    "numpy": "BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0",
    "packaging": "Apache-2.0 OR BSD-2-Clause",
    "parso": "MIT", "pexpect": "ISC", "pillow": "MIT-CMU", "pip": "MIT", "platformdirs": "MIT",
    "pluggy": "MIT", "prompt_toolkit": "BSD-3-Clause", "psutil": "BSD-3-Clause",
    "ptyprocess": "ISC", "pybtex": "MIT", "pydantic": "MIT", "pydata-sphinx-theme": "BSD-3-Clause",
    "pygments": "BSD-2-Clause", "pyparsing": "MIT", "pypdf": "BSD-3-Clause", "pytest": "MIT",
    "pytest-xdist": "MIT", "python-dateutil": "BSD-3-Clause", "pyyaml": "MIT",
    "pyzmq": "BSD-3-Clause", "referencing": "MIT", "requests": "Apache-2.0", "rich": "MIT",
    "safetensors": "Apache-2.0", "scipy": "BSD-3-Clause", "setuptools": "MIT",
    "sortedcontainers": "Apache-2.0", "soupsieve": "MIT", "sphinx": "BSD-2-Clause",
    "sphinx-book-theme": "BSD-3-Clause", "sphinx_design": "MIT",
    "sphinxcontrib-bibtex": "BSD-2-Clause", "sqlalchemy": "MIT", "stack-data": "MIT",
    "sympy": "BSD-3-Clause", "tabulate": "MIT", "tokenizers": "Apache-2.0", "tomlkit": "MIT",
    "torch": "Apache-2.0 AND Apache-2.0 WITH LLVM-exception AND BSD-2-Clause AND BSD-3-Clause"
    " AND BSL-1.0 AND MIT",
    "tornado": "Apache-2.0", "traitlets": "BSD-3-Clause",
    "transformers": "Apache-2.0", "typer": "MIT", "typing_extensions": "PSF-2.0",
    "urllib3": "MIT", "wheel": "MIT",
}  # fmt: skip

# Folders that hold other people's packages, tables or machine output.
_SKIPPED_PARTS = {
    "_vendor", "vendor", "vendored", "third_party", "site-packages", "__pycache__", "lib2to3",
    "idlelib", "turtledemo", "pydoc_data", "encodings", "_vendored", "extern",
}  # fmt: skip


def installed_version(package: str) -> str:
    """Returns the version in the running interpreter; "python" is the standard library's."""
    if package == "python":
        return platform.python_version()
    return importlib.metadata.version(package)


def source_paths(package: str) -> Iterator[tuple[str, Path]]:
    """Yields (corpus path, file on disk) of every Python file that `package` installed.

    Raises:
        importlib.metadata.PackageNotFoundError: the package is not installed.
    """
    if package == "python":
        root = Path(sysconfig.get_paths()["stdlib"])
        names = [path.relative_to(root).as_posix() for path in root.rglob("*.py")]
        found = [(name, root / name) for name in names]
    else:
        files = importlib.metadata.distribution(package).files or []
        found = [(file.as_posix(), Path(str(file.locate()))) for file in files]
    for name, path in sorted(found):
        if name.endswith(".py") and not _SKIPPED_PARTS.intersection(name.split("/")):
            yield f"{package}/{name}", path


def licence_texts(package: str) -> str:
    """Returns the licence and notice files that `package` installed, headed by its name.

    Raises:
        FileNotFoundError: it installed none, so its files may not be passed on.
    """
    if package == "python":
        paths = [Path(sysconfig.get_paths()["stdlib"]) / "LICENSE.txt"]
    else:
        files = importlib.metadata.distribution(package).files or []
        paths = [
            Path(str(file.locate()))
            for file in sorted(files)
            if ".dist-info" in file.parts[0]
            and file.name.upper().startswith(("LICEN", "COPYING", "NOTICE"))
            and len(file.parts) <= 3
        ]
    if not paths:
        raise FileNotFoundError(f"{package} installed no licence file: keep its files out")
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in paths)
    return f"{'=' * 20} {package} {'=' * 20}\n\n" + "\n\n".join(texts)
