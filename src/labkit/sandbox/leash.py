"""What a child is held by: its process group ends with the grader, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress

# Reads a line when the group was ended by `pull`, and nothing when the grader is gone.
KEEPER = 'read -r ended || kill -9 "-$1"'


class Leash:
    """A shell that waits on a pipe from this process, and kills the group if that breaks.

    bubblewrap asks the kernel to end its inner process with its outer one, but only after its
    user has got a name. Until then nothing else does: as the first of a namespace of processes
    it is spared by signals that no process sends, as those of a pipe or a terminal are, and
    SIGKILL has to come from outside that namespace (pid_namespaces(7)).
    """

    def __init__(self, group: int) -> None:
        self._group = group
        nowhere = subprocess.DEVNULL
        self._keeper = subprocess.Popen(
            ["/bin/sh", "-c", KEEPER, "leash", str(group)],
            stdin=subprocess.PIPE,
            stdout=nowhere,
            stderr=nowhere,
            process_group=0,  # what a terminal interrupts must not be the keeper
        )

    def pull(self) -> None:
        """End the group, before its leader is waited for: until then no other has its number."""
        with suppress(ProcessLookupError):  # all of it has ended
            os.killpg(self._group, signal.SIGKILL)
        self._keeper.communicate(b"ended\n")
