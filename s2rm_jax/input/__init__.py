"""From files (or a seed) to batches: NumPy and Grain only, no jax.numpy."""
