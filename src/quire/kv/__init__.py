"""The KV cache: what a layer keeps, where it lies, who holds it."""
