"""What is known of each model beforehand: manifests for pages and prices, published numbers for comparisons.

Invariant: a number stands here only if somebody has seen it in a source that is named.
Does not know: which models are served, or what a page looks like.
"""
