"""Low-rank adapters: read, merged into weights, or kept beside them."""
