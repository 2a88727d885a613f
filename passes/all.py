"""Imports every pass, so that pipelines find them by name."""

from ingot.passes import canonicalize, cse, dce, fold_constants, fuse, insert_kv_cache, quantize, recognize, take_logits

__all__ = ["canonicalize", "cse", "dce", "fold_constants", "fuse", "insert_kv_cache", "quantize", "recognize", "take_logits"]
