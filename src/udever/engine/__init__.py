"""Running the model on work: texts in, vectors out, in order."""
