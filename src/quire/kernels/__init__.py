"""Triton kernels, and in torch what they compute.

A function that the engine calls on any device has three faces of the same arguments:
`name_torch` is the meaning, `name_triton` the kernel with its launch, and `name` chooses
between them by where its input lies. What only Triton's own paths call (attention, a product of
few rows, a row's cutoff, the first node of a captured step) has one face.
"""
