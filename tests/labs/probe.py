"""Asking a child what its code can do."""

from __future__ import annotations

from typing import Any

from labkit.sandbox.process import Child, Limits, Surroundings

NUMPY = Surroundings(("numpy",))
LIMITS = Limits(call_seconds=3.0, reply_bytes=1 << 20)


def ask(child: Child, body: str) -> Any:
    """Run a function's body in the child and return what it gives."""
    lines = "\n".join(f"    {line}" for line in body.strip().split("\n"))
    reply = child.request({"op": "load", "cells": [["probe", f"def probe():\n{lines}"]]})
    assert "error" not in reply, reply
    reply = child.request({"op": "call", "name": "probe", "args": []})
    return reply.get("value", reply.get("error"))
