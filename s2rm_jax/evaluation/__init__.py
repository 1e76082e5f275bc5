"""Measuring what a network predicts: scores, the evaluator that collects them, reports and images."""
