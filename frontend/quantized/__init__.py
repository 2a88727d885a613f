"""Checkpoints whose weights are already quantised: their layouts, read into codes, scales and zero points."""
