"""Structured pruning: channels, heads and layers taken out, and what is left refitted to the original."""
