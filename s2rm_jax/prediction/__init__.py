"""Predictions and their files: one image, or a job on many (`predict`)."""
