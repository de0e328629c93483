#!/bin/bash
# Run inside Colab's runtime image (the workflow `colab`): install the wheel of this commit
# beside the image's own torch and transformers, then run every notebook away from the clone.
set -euo pipefail
cd "$(mktemp -d)"
before=$(python3 -c 'import torch, transformers; print(torch.__version__, transformers.__version__)')
cp -r /repository source    # the mount is read-only and a build writes
python3 -m pip install --quiet ./source nbclient nbformat ipykernel
after=$(python3 -c 'import torch, transformers; print(torch.__version__, transformers.__version__)')
if [ "$before" != "$after" ]; then
    echo "installing quire changed the image's torch or transformers: $before became $after" >&2
    exit 1
fi
echo "torch and transformers of the image: $after"
mkdir run
cp source/notebooks/*.ipynb run/
rm -rf source
cd run
for notebook in *.ipynb; do
    echo "== $notebook"
    python3 - "$notebook" <<'PYTHON'
import sys

import nbformat
from nbclient import NotebookClient

NotebookClient(nbformat.read(sys.argv[1], as_version=4), timeout=300).execute()
PYTHON
done
