"""Fewer bits: round to nearest, GPTQ, AWQ, and moving the size of channels to where it hurts less."""
