"""A second tier of the KV cache in host memory: what the GPU forgets, it can load back."""
