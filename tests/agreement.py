"""How tests compare trees of arrays."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np


def flat(tree: Any) -> np.ndarray:
    """All entries of the leaves of a tree in one vector; derivatives of integers are left out."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.ravel() for leaf in leaves if leaf.dtype != jax.dtypes.float0])


def relative(got: Any, expected: Any) -> float:
    """The largest difference of two trees over the largest entry of the second, which must be finite."""
    a, b = flat(got), flat(expected)
    assert np.isfinite(b).all(), "what is compared with is not finite"
    return float(np.abs(a - b).max() / np.abs(b).max())


def assert_agree(got: Any, expected: Any, tolerance: float = 1e-12) -> None:
    """Each leaf to `tolerance`, relative to its largest entry; both trees have one structure."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        scale = float(np.max(np.abs(b))) or 1.0
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path))
