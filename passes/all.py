"""Imports every pass, so that pipelines find them by name."""

from ingot.passes import (  # noqa: F401
    awq,
    canonicalize,
    clean,
    cse,
    dce,
    float_kv_cache,
    fold_constants,
    fuse,
    insert_kv_cache,
    merge_lora,
    quantize,
    recognize,
    rotate,
    smooth,
    take_logits,
)
