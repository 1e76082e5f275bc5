"""Measurements: benchmarks, ablations, and facts read from compiled programs. Only people who measure open it."""
