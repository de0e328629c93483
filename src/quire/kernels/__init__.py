"""Triton kernels, each beside its torch twin: the same function of the same arguments.

A kernel's file has three faces: `name_torch` is the meaning, `name_triton` the kernel with
its launch, and `name` chooses between them by where its input lies.
"""
