"""Some weights of each block as a level of refinement ends with them."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from ode_nets.nn import weight_roles

PyTree = Any


def pick_weights(params: PyTree, n_weights: int = 40) -> dict[str, np.ndarray]:
    """The same few kernel entries of each block at any level, `{block: [n_basis, n_weights]}`, for pictures.

    Blocks whose kernels evolve have none in their coefficients, and are left out.
    """
    picked = {}
    for block, tree in params.items():
        roles = jax.tree.leaves(weight_roles(tree))
        stacked = [leaf for leaf, role in zip(jax.tree.leaves(tree), roles, strict=True) if role == "expansion"]
        # Of convolutions and dense layers, stacked.
        leaves = [leaf for leaf in jax.device_get(stacked) if leaf.ndim >= 3]
        if not leaves:
            continue
        entries = np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)
        n_picked = min(n_weights, entries.shape[1])
        picked[block] = entries[:, np.random.default_rng(0).permutation(entries.shape[1])[:n_picked]]
    return picked
