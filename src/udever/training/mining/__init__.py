"""Hard negatives from any model's nearest neighbours."""
