"""Parts of `benchmarks/encode.py`: workloads, peers, timing, report."""
