"""Bulk runs on a Ray cluster. Ray is imported in here and nowhere else, and only when it is needed."""
