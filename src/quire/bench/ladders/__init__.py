"""The ladders of the chapter "Triton kernels": one operation, each kernel with one idea more."""
