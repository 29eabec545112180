"""From files to vectors in files: planned into shards, resumable, the same bytes on a laptop and on a cluster."""
