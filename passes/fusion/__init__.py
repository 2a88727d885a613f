"""Ops joined into ones that a kernel computes better."""
