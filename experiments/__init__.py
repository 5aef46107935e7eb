"""Experiments: one readable script a claim, run from the repository root as `python -m experiments.NAME`."""
