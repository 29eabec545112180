"""Deltas as files: compared, merged, extracted, averaged."""
