"""Run every notebook from a fresh kernel and keep its outputs: `make notebooks`.

Cells stay as they are; outputs, execution counts and nothing else change. A cell that
raises, or that writes to stderr, stops the run and leaves that notebook as it was.
"""

from __future__ import annotations

import sys
import time

import nbformat
from nbclient import NotebookClient

sys.path.insert(0, "book/_ext")
from bookmeta import ROOT


def main() -> None:
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        began = time.perf_counter()
        notebook = nbformat.read(path, as_version=4)
        client = NotebookClient(
            notebook,
            timeout=300,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
        )
        client.execute(cwd=str(path.parent))
        for number, cell in enumerate(notebook.cells):
            for output in cell.get("outputs", []):
                if output.get("name") == "stderr":
                    text = output["text"].strip()
                    raise SystemExit(f"{path.name}, cell {number} writes to stderr: {text}")
        notebook.metadata.pop("widgets", None)
        notebook.metadata["kernelspec"] = {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        }
        # The versions that ran it are in the notebook's first output, not in its metadata.
        notebook.metadata["language_info"] = {"name": "python"}
        nbformat.write(notebook, path)
        print(f"{path.relative_to(ROOT)}: {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
