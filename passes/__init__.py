"""The passes: each takes a module and changes it in place, states its contract, and leaves a receipt."""
