#!/bin/sh
# Make .venv and install the book, the engine and the tools, at the versions of the lock.
# Environment: PYTHON (an interpreter to use), TORCH_INDEX (a wheel index to ask for torch).
set -eu
cd "$(dirname "$0")/.."
venv=.venv
stamp=$venv/installed

say() { printf '%s\n' "$*"; }
stop() { printf 'stopped: %s\n' "$*" >&2; exit 1; }

# Nothing to do while the files that decide what is installed are what they were.
wanted=$(cat pyproject.toml requirements.lock scripts/setup.sh | cksum)
if [ -x $venv/bin/python ] && [ -f $stamp ] && [ "$(cat $stamp)" = "$wanted" ]; then
    touch $stamp
    exit 0
fi

accepted=$(sed -n 's/^requires-python = "\(.*\)"/\1/p' pyproject.toml)
suits() {
    "$1" -c '
import re, sys
for relation, major, minor in re.findall(r"(>=|<)\s*(\d+)\.(\d+)", sys.argv[1]):
    bound = int(major), int(minor)
    if (sys.version_info < bound) is (relation == ">="):
        sys.exit(1)' "$accepted" 2>/dev/null
}
has_torch() { $venv/bin/python -c 'import torch' 2>/dev/null; }

python=
if [ ! -x $venv/bin/python ]; then
    # The versions that the tests run on come before whatever the machine calls python3.
    for candidate in ${PYTHON:-python3.12 python3.11 python3 python3.13}; do
        if suits "$candidate"; then python=$candidate; break; fi
    done
    [ -n "$python" ] || stop "no Python $accepted found (${PYTHON:-python3}); install one or name it: make PYTHON=/path/to/python3.12"
fi

if ! has_torch; then
    need=4
    if [ "$(uname -s)" = Linux ] && [ -z "${TORCH_INDEX:-}" ]; then
        need=12  # the registry's build of torch brings CUDA libraries, packed and unpacked
    fi
    free=$(df -Pk . | awk 'NR == 2 { print $4 }')
    [ "$free" -ge $((need * 1000000)) ] || stop "$((free / 1000)) MB free here; the environment and the build need $need GB$([ $need = 4 ] || echo ' with the CUDA libraries of torch, 4 GB without: make TORCH_INDEX=<address of a CPU wheel index>')"
fi

if [ ! -x $venv/bin/python ]; then
    if ! "$python" -m venv $venv >/dev/null 2>&1; then
        rm -rf $venv
        # Debian splits venv off; as root we can fetch it, otherwise say what to fetch.
        version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            say "installing $version-venv"
            { apt-get update && apt-get install -y --no-install-recommends "$version-venv"; } >/dev/null 2>&1 || true
        fi
        "$python" -m venv $venv >/dev/null 2>&1 || {
            rm -rf $venv
            stop "$python cannot make a virtual environment; install its venv module (Debian: apt install $version-venv)"
        }
    fi
fi

if [ "$(uname -s)" = Linux ] && [ -z "${TORCH_INDEX:-}" ] && ! command -v nvidia-smi >/dev/null \
    && ! has_torch; then
    say "no NVIDIA GPU here: where pip finds no CPU build of torch it downloads 3 GB of CUDA libraries; make TORCH_INDEX=<address of a CPU wheel index> avoids that"
fi

say "installing into $venv (a few minutes the first time)"
# The lock constrains versions and names nothing to install, so a CPU build of torch brings
# none of the CUDA packages that the lock lists for the registry's own build.
$venv/bin/python -m pip install --quiet --disable-pip-version-check \
    ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
    -c requirements.lock -e '.[book,labs,dev]' \
    || stop "pip could not install the environment; its message is above"
# A notebook kernel warns that its loopback port is not encrypted, once a page.
mkdir -p $venv/etc/ipython
echo 'c.IPKernelApp.log_level = "ERROR"' > $venv/etc/ipython/ipython_kernel_config.py
printf '%s\n' "$wanted" > $stamp
