"""The input pipeline, from files or generated scenes to batches. It uses NumPy and Grain, but not jax.numpy."""
