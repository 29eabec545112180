"""Training: from pairs and a BLOOM to a delta of biases, with exact gradients and exact resume."""
