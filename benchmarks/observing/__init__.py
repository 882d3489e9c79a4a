"""What `benchmarks/observe.py` measures with: a broker, a load, and processes that are timed."""
