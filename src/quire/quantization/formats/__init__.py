"""How checkpoints store quantized weights: each format is read into the same `Codes`."""
