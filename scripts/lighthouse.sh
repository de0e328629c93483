#!/bin/sh
# Lighthouse over the built site: the home page and every chapter, desktop and phone.
# Needs node; prints the four scores a line and exits 1 if one is under its mark.
set -eu
cd "$(dirname "$0")/.."
command -v npx >/dev/null || { echo "stopped: Lighthouse needs node and npm" >&2; exit 1; }
[ -d node_modules/lighthouse ] || npm ci --silent --ignore-scripts
CHROME_PATH=$(.venv/bin/python scripts/chromium.py --install)
export CHROME_PATH
exec .venv/bin/python scripts/lighthouse.py
