"""Judging one hand-in: the reference, the hidden tests' run, the report."""
