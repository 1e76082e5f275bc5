"""Evaluation: protocols, metrics, the evaluator, and the reports, plots and galleries of its results."""
