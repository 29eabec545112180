"""BLOOM in packed PyTorch: token ids in, one vector a sequence out. Knows no text and no HTTP."""
