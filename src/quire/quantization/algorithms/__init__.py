"""Algorithms that choose a weight's codes by what the layer is given: tensors in, tensors out.

None of them knows a decoder; `quire.quantize` runs one layer after another and calls them.
"""
