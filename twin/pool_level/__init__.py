"""The twin at pool level: many worlds at once, compiled, for learning and for long benchmarks.

The rules are those of the node-level twin; what telemetry would say, and the heat and links that
only telemetry shows, are left out. `tests/simulation/test_twin_levels.py` holds the two together.
"""
