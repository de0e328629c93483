# ruff: noqa
# tries: starts processes without end
# outcome: the first start is refused, so it ends at once
# earns: 0
# says: PROCESSES 0
# task: sampler
import os

started = refused = 0
while refused < 1000:
    try:
        os.fork()
        started += 1
    except OSError:
        refused += 1
raise RuntimeError(f"PROCESSES {started}")
