"""What decoding needs: key/value caches, and outputs at chosen positions alone."""
