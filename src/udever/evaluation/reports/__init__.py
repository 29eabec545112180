"""Results as tables and figures, beside the published numbers."""
