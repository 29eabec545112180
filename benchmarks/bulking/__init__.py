"""The parts of bulk.py and scale.py."""
