"""GPU kernels, generated: a module as an ordered list of Triton launches.

    func ── groups ──> groups of ops ── outline, expand ──> one func each ── write ──> kernels ── module ──> launches

A kernel is written by demand (`pull`): asked for an element of a result, it asks the operands for theirs, down to what lies
in memory, so layout, lookups, decoding of weights and caches, and elementwise chains need no code of their own in any
template. Index arithmetic is `Dim` arithmetic (`index`), element arithmetic the ops' own scalar expressions (`term`).

    flat, rows              one element after the other; rows with reductions (norms, softmax, argmax)
    matmul, tiled, gemv     products for many and few rows, and for one; prologue and epilogue from the graph
    split                   products of few rows whose depth several programs share
    coded                   products of codes with codes, where inputs are coded as weights are
    scaled                  the same where every 32 codes have a power of two of their own
    words, packing          weights in codes: 32-bit words, decoded in registers
    unpacking               the same decoded into memory first, for many rows
    attention               over blocks of keys, in one pass or split over programs
    sampling                the next token, chosen on the device
    module, decoder         launches in order, and a decode step as one CUDA graph
    caches, paging          keys and values in one piece, or in pages that rows share
    tuning                  settings measured on the device, defaults without
    warmup                  kernels compiled before they are wanted, many at a time
    prebuild, prebuilt      kernels compiled into the artifact, and found there
    aot, interpreter        what is proven where there is no GPU
"""
