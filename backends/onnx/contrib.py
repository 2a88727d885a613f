"""Rules that use onnxruntime's own operators (domain com.microsoft); importing this registers them.

Later ones are asked first: contrib_int8 before contrib_quant.
"""

from ingot.backends.onnx import contrib_attention, contrib_decoded, contrib_norm, contrib_pointwise, contrib_quant  # isort: skip
from ingot.backends.onnx import contrib_int8  # isort: skip

__all__ = ["contrib_attention", "contrib_decoded", "contrib_int8", "contrib_norm", "contrib_pointwise", "contrib_quant"]
