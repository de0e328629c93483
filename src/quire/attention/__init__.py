"""Attention over the KV cache: the interface and its backends."""
