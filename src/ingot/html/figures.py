"""The numbers behind the plots of a page: bytes by layer and by element type, errors by site.

A pass that measures its sites (weights, usually) says so in its receipt: `details["sites"]` is a list of
`{"name": ..., "error": ..., "bytes": ...}`, `error` and `bytes` (of the site afterwards) being optional numbers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ingot.ir.layers import weight_layers
from ingot.ir.module import Module


def bytes_by_layer(module: Module) -> dict[str, int]:
    """Bytes of the weights of every layer, in order of their numbers; at the end, under `""`, of those in none."""
    named = weight_layers(module.consts)
    out: Counter[str] = Counter()
    for name in sorted(named, key=lambda name: (named[name].family, named[name].index)):
        out[str(named[name])] += module.consts[name].weight.nbytes
    out[""] = sum(const.weight.nbytes for name, const in module.consts.items() if name not in named)
    return dict(out)


def bytes_by_dtype(module: Module) -> dict[str, int]:
    """Bytes of the weights of every element type."""
    out: Counter[str] = Counter()
    for const in module.consts.values():
        out[const.type.dtype.name] += const.weight.nbytes
    return dict(out)


def sites(details: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sites a receipt tells of, as `name` with a finite `error`, `bytes` or both; whatever else is there is left out."""
    out: list[dict[str, Any]] = []
    given = details.get("sites")
    for site in given if isinstance(given, list) else []:
        if isinstance(site, Mapping) and isinstance(site.get("name"), str):
            numbers = {key: site[key] for key in ("error", "bytes")
                       if isinstance(site.get(key), int | float) and math.isfinite(site[key])}
            if numbers:
                out.append({"name": site["name"], **numbers})
    return out
