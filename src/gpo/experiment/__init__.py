"""Runs: rounds of stages on a run directory, and their budget."""
