"""The clean-up passes: one form for what means the same, nothing computed twice or in vain."""
