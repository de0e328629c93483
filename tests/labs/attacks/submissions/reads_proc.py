# ruff: noqa
# tries: reads environment, memory and command lines of processes in /proc
# outcome: there is no /proc
# earns: 0
# says: PROC \[\]
# task: sampler
import glob

found = []
for path in glob.glob("/proc/*/environ") + glob.glob("/proc/*/cmdline") + ["/proc/@PID@/mem"]:
    try:
        found.append(open(path, "rb").read(200))
    except OSError:
        pass
raise RuntimeError(f"PROC {found}")
