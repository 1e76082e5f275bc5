"""Datasets: how to build them for TFDS (build.py) and how to check their files (check.py)."""
