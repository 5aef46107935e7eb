"""ANODEV2 (Zhang et al. 2019): one script a claim; `python -m experiments.anodev2` is its tables."""
