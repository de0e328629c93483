# ruff: noqa
# tries: sends the tests to a server on this machine and one outside
# outcome: no socket can be opened
# earns: 0
# says: CONNECTED 0
# task: sampler
import socket

connected = 0
for family, address in (
    (socket.AF_INET, ("127.0.0.1", int("@PORT@"))),
    (socket.AF_INET, ("192.0.2.1", 80)),
    (socket.AF_UNIX, "\0labkit-canary"),
    (socket.AF_UNIX, "/run/docker.sock"),
):
    try:
        with socket.socket(family) as made:
            made.settimeout(1)
            made.connect(address)
            connected += 1
    except OSError:
        pass
raise RuntimeError(f"CONNECTED {connected}")
