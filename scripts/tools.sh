#!/bin/sh
# The two programs that `make test` needs beside Python: Chromium (the site's tests) and
# bubblewrap (the labs' sandbox). Each is installed where that is possible.
set -eu
cd "$(dirname "$0")/.."
.venv/bin/python scripts/chromium.py --install >/dev/null
if ! command -v bwrap >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing bubblewrap"
        { apt-get update && apt-get install -y --no-install-recommends bubblewrap; } >/dev/null 2>&1 || true
    fi
    command -v bwrap >/dev/null || {
        [ -z "${CI:-}" ] || { echo "stopped: no bubblewrap, and it could not be installed; the labs' sandbox cannot be tested" >&2; exit 1; }
        echo "no bubblewrap (Debian: apt install bubblewrap): tests of the labs' sandbox will be skipped"
    }
fi
