"""Contracts, checked: what a pass promised is tried on what it did."""
