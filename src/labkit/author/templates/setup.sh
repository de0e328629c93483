#!/usr/bin/env bash
# Set up Gradescope's machine: bubblewrap, Python 3.11 or later, the libraries that grading needs.
set -euo pipefail
root=${AUTOGRADER_ROOT:-/autograder}
export DEBIAN_FRONTEND=noninteractive

apt-get update
apt-get install -y --no-install-recommends bubblewrap ca-certificates
python=
for version in 3.13 3.12 3.11; do
    if apt-get install -y --no-install-recommends "python$version" "python$version-venv"; then
        python=python$version
        break
    fi
done
if [ -z "$python" ]; then
    echo "no Python 3.11 or later here: choose a newer image in the autograder's settings" >&2
    exit 1
fi

"$python" -m venv "$root/venv"
pip=("$root/venv/bin/python" -m pip install --no-cache-dir --disable-pip-version-check)
if grep -q '^torch' "$root/source/requirements.txt"; then
    # The CPU build: the usual one brings 3 GB of CUDA libraries.
    "${pip[@]}" torch --index-url "${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}"
fi
"${pip[@]}" -r "$root/source/requirements.txt"

chmod -R go-rwx "$root/source" # --unsafe-local runs a submission as nobody, see labkit/sandbox/jail.py
if ! bwrap --unshare-all --ro-bind / / true; then
    echo "bubblewrap cannot make namespaces on this machine; grading refuses to run unless the" >&2
    echo "bundle was made with --unsafe-local, which leans on the container of each submission" >&2
fi
