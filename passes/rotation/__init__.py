"""Rotations folded into weights, so that no channel stands out."""
