"""Measurements of speed, which `python -m s2rm_jax.benchmark` runs."""
