"""Lowering modules to something that runs."""
