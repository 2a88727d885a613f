"""Recipes: named pipelines. `recipe(name, kind)` is the pipeline text for a kind of model."""

from __future__ import annotations

from ingot.errors import PassError

CLEAN = "canonicalize,fold-constants,cse,dce"
RECOGNIZE = f"{CLEAN},recognize,{CLEAN}"
DECODE = "take-logits,insert-kv-cache"
FUSE = "fuse"

RECIPES: dict[str, tuple[str, str]] = {
    "fp32": (f"{RECOGNIZE},DECODE,{FUSE},{CLEAN}", "32-bit floats throughout: the reference"),
    "cpu-int8": (f"{RECOGNIZE},DECODE,{FUSE},quantize{{format=int8 group=32 symmetric}},{CLEAN}",
                 "8-bit weights in groups of 32: hardly a loss"),
    "cpu-int4": (f"{RECOGNIZE},DECODE,{FUSE},quantize{{format=int4 group=32 symmetric}},{CLEAN}",
                 "4-bit weights in groups of 32: the smallest at full kernel speed"),
}
"""Pipeline text and what it is for, by name. DECODE stands for the stages only decoders have."""


def recipe(name: str, *, kind: str = "decoder") -> str:
    """The pipeline text of a recipe for a model of `kind`. Raises PassError listing the recipes for an unknown name."""
    if name not in RECIPES:
        raise PassError(f"unknown recipe {name}", hint=f"recipes: {', '.join(RECIPES)}")
    text = RECIPES[name][0]
    return text.replace("DECODE", DECODE) if kind == "decoder" else text.replace("DECODE,", "")
