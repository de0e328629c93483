# ruff: noqa
# tries: imports the hidden tests, labkit and quire from wherever they may be
# outcome: none is installed in the child
# earns: 0
# says: IMPORTED \[\]
# task: sampler
import glob
import importlib
import sys

sys.path += ["@LAB@", "@LAB@/hidden", "@LAB@/../../src", "@SITE@"]
sys.path += glob.glob("/usr/*/lib/python3*/*-packages") + glob.glob(
    sys.base_prefix + "/lib/*/*-packages"
)
found = []
for name in (
    "sampling_oracle",
    "test_sampler",
    "labkit",
    "labkit.grading.grade",
    "quire",
    "quire.sampling",
):
    try:
        importlib.import_module(name)
        found.append(name)
    except Exception:
        pass
raise RuntimeError(f"IMPORTED {found}")
