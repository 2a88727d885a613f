"""Imports every pass, so that pipelines find them by name."""

import ingot.passes.cache.float_kv_cache
import ingot.passes.cache.insert_kv_cache
import ingot.passes.cache.take_logits
import ingot.passes.cleanup.canonicalize
import ingot.passes.cleanup.clean
import ingot.passes.cleanup.cse
import ingot.passes.cleanup.dce
import ingot.passes.cleanup.fold_constants
import ingot.passes.fusion.fuse
import ingot.passes.grouping.gqa
import ingot.passes.healing.heal
import ingot.passes.lora.lora_inputs
import ingot.passes.lora.merge_lora
import ingot.passes.pruning.prune
import ingot.passes.quantization.awq
import ingot.passes.quantization.quantize
import ingot.passes.quantization.quantize_inputs
import ingot.passes.quantization.smooth
import ingot.passes.recognition.recognize
import ingot.passes.rotation.rotate
import ingot.passes.sparsity.sparsify  # noqa: F401
