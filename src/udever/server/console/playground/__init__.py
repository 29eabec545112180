"""Queries and documents typed into a page, and what the model makes of them."""
