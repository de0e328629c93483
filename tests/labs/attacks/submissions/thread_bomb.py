# ruff: noqa
# tries: starts threads without end
# outcome: the first start is refused
# earns: 0
# says: THREADS 0
# task: sampler
import threading

started = 0
try:
    while True:
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        started += 1
except RuntimeError:
    pass
raise RuntimeError(f"THREADS {started}")
