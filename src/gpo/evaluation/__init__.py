"""Measuring any models on a task."""
