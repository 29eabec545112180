"""The models: the catalogue, a page each, comparisons, votes."""
