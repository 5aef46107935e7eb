"""Commands on top, a folder a paper with one readable script a claim, and below them what they share.

Run from the repository root, as `python -m experiments.NAME` or `python -m experiments.PAPER.NAME`.
"""
