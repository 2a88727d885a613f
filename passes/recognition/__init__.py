"""Reading elementwise ops and products back to the ops they are: norms, ropes, activations, linears, attention."""
