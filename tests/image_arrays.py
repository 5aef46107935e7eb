"""Random images in files, for tests of data."""

import numpy as np


def make_arrays(n_train=40, n_test=20, size=(6, 5, 3), n_classes=4, seed=0):
    """Random images, every class in both splits."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for split, n in (("train", n_train), ("test", n_test)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (n, *size), dtype=np.uint8)
        arrays[f"y_{split}"] = rng.permutation(np.arange(n) % n_classes)
    return arrays


def save(path, **changes):
    np.savez(path, **{**make_arrays(), **changes})
    return path
