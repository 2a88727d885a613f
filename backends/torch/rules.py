"""All rules of the torch backend; importing this registers them."""

from ingot.backends.torch import (
    rules_attention,
    rules_compute,
    rules_conv,
    rules_creation,
    rules_layout,
    rules_norm,
    rules_pointwise,
    rules_quant,
    rules_reduce,
)

__all__ = ["rules_attention", "rules_compute", "rules_conv", "rules_creation", "rules_layout", "rules_norm",
           "rules_pointwise", "rules_quant", "rules_reduce"]
