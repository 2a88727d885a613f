"""Recipes: named pipelines. `recipe(name, kind=)` is the pipeline text for a kind of model."""

from __future__ import annotations

from ingot.errors import PassError

TRACE = "clean,recognize,clean,fuse"
DECODE = "take-logits,insert-kv-cache"
DECODE_INT8 = "take-logits,insert-kv-cache{dtype=int8}"
FITTED = " method=gptq"
"""With calibration text. It runs the model without a cache, so this goes before DECODE."""

RECIPES: dict[str, tuple[str, str]] = {
    "fp32": (f"{TRACE},{DECODE},clean", "32-bit floats throughout: the reference"),
    "cpu-int8": (f"{TRACE},{DECODE_INT8},quantize{{format=int8 group=32 symmetric}},clean",
                 "8-bit weights in groups of 32, 8-bit KV cache: a small loss"),
    "cpu-int4": (f"{TRACE},quantize{{format=int4 group=32 symmetric{FITTED}}},{DECODE_INT8},clean",
                 "4-bit weights in groups of 32, fitted to calibration text where it is given; 8-bit KV cache"),
    "cpu-int4-small": (f"{TRACE},quantize{{format=int4 group=128{FITTED}}},{DECODE_INT8},clean",
                       "the same in groups of 128: the smallest"),
    "gpu-bf16": (f"{TRACE},{DECODE},clean", "bf16 weights and KV cache, for --target triton"),
    "gpu-int4": (f"{TRACE},{DECODE},quantize{{format=int4 group=128 symmetric}},clean",
                 "4-bit weights in groups of 128, bf16 KV cache, for --target triton"),
    # An embedding is looked up by rows, which costs nothing in bf16; these codes have no lookup on the GPU.
    "gpu-nvfp4": (f"{TRACE},{DECODE},quantize{{format=nvfp4 embedding=false}},clean",
                  "4-bit floats in groups of 16 (NVFP4), bf16 KV cache, for --target triton"),
    "gpu-fp8": (f"{TRACE},{DECODE},quantize{{format=fp8-e4m3 embedding=false}},clean",
                "8-bit floats with a scale per output channel, bf16 KV cache, for --target triton"),
}
"""Pipeline text for a decoder and what it is for, by name."""


def recipe(name: str, *, kind: str = "decoder", fitted: bool = True) -> str:
    """The pipeline text of a recipe; models that are no decoders get it without the KV cache and what needs calibration text.

    fitted: whether there is calibration text to fit weights to; without, they are rounded to nearest. Raises PassError listing
    the recipes for an unknown name.
    """
    if name not in RECIPES:
        raise PassError(f"unknown recipe {name}", hint=f"recipes: {', '.join(RECIPES)}")
    text = RECIPES[name][0]
    if kind != "decoder":
        text = text.replace(f"{DECODE_INT8},", "").replace(f"{DECODE},", "")
    return text if fitted and kind == "decoder" else text.replace(FITTED, "")
