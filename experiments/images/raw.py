"""What the readers of image sets hand on: unchecked arrays, and where they are from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

KEYS = ("x_train", "y_train", "x_test", "y_test")


class Raw(NamedTuple):
    """Unchecked arrays by the names in `KEYS`, the file or folder they lie in, a sentence on their origin.

    `x_validation` and `y_validation` are among the arrays where the place has validation images of its own.
    notes: what of that place was not read, a sentence each; class_names: in the order of the labels, or none.
    """

    arrays: dict[str, np.ndarray]
    where: str
    source: str
    n_classes: int | None = None
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()


def by_key(*arrays: np.ndarray) -> dict[str, np.ndarray]:
    """Four arrays by the names in `KEYS`."""
    return dict(zip(KEYS, arrays, strict=True))


def held_out(labels: np.ndarray, n_classes: int) -> np.ndarray:
    """A fifth of each class, of sets that come without test images: ascending indices, the same for everybody."""
    rng = np.random.default_rng(0)  # not the caller's seed: everybody must be tested on the same images
    members = [rng.permutation(np.flatnonzero(labels == label)) for label in range(n_classes)]
    return np.sort(np.concatenate([m[: round(0.2 * len(m))] for m in members]))
