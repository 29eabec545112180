"""MTEB: udever behind mteb's encoder protocol, and runs that leave mteb's own files."""
