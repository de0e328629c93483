#!/bin/sh
# What `make test-gpu` needs beside Python: Triton compiles a launcher for each kernel when it
# first runs, with a C compiler and Python's headers.
set -eu
cd "$(dirname "$0")/.."
stop() { printf 'stopped: %s\n' "$*" >&2; exit 1; }

include=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("include"))')
[ -f "$include/Python.h" ] || stop "no Python headers in $include, and Triton needs them to build its kernels (Debian: apt install $(basename "$include")-dev)"
for compiler in ${CC:-gcc clang}; do
    if command -v "$compiler" >/dev/null; then exit 0; fi
done
stop "no C compiler (${CC:-gcc, clang}), and Triton needs one to build its kernels (Debian: apt install gcc, or set CC)"
