# ruff: noqa
# tries: kills its parent, process 1, the grader and everyone
# outcome: it sees no process but its own, and process 1 takes no signal
# earns: 0
# says: SIGNALLED
# task: sampler
import os
import signal

for process in (os.getppid(), 1, int("@PID@")):
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM):
        try:
            os.kill(process, number)
        except OSError:
            pass
raise RuntimeError("SIGNALLED")
