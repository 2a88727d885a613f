"""Sparsity: weights of linears lose most of their small elements, and stay dense tensors."""
