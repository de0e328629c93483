"""`quire quantize`: a checkpoint in 16 bits to one in 8 or 4, layer by layer.

The algorithms and the formats are in `quire.quantization`; what runs a model to calibrate them
is here, above the decoder.
"""
