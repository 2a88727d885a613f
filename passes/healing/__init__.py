"""Healing: what passes have cost is won back by training against the module as it was before them."""
