"""ingot: compile trained models into smaller, faster ones."""
