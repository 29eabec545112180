"""Measuring an embedder: metrics, retrieval, protocols, baselines, and reports beside the published numbers."""
