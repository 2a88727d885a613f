"""Imports every pass, so that pipelines find them by name."""

from ingot.passes import insert_kv_cache, quantize, take_logits

__all__ = ["insert_kv_cache", "quantize", "take_logits"]
