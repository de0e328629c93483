"""Frontier tasks: a kernel compiled in the sandbox, launched and timed by a trusted process."""
