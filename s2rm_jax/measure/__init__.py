"""Benchmarks, ablations, and analysis of compiled programs."""
