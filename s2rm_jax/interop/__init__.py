"""Weights to and from PyTorch, and programs for other runtimes."""
