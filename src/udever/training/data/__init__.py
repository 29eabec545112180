"""Training data: published files become a store of examples; which examples a step takes."""
