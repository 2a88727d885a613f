"""Generated Triton kernels: a module as an ordered list of kernel launches on the GPU."""
