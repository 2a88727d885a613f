"""The graph: types, dims, values, ops, text, verifier, reference interpreter, rewriting."""
