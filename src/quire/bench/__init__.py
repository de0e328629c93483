"""Benchmarks: each writes one file of `measurements/`, which chapters draw."""
