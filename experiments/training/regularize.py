"""Penalties on what ODE blocks integrate along their solutions, `--regularize kinetic=0.01 jacobian=0.01`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

PyTree = Any
QUANTITIES = {
    "kinetic": "kinetic_energy",
    "jacobian": "jacobian_frobenius",
    "local_error": "local_error",
    "stiffness": "stiffness",
}
"""What can be penalized, and what an `OdeBlock` calls it."""


def weights_of(regularize: Sequence[str]) -> dict[str, float]:
    """The weight of each quantity, by the name that an `OdeBlock` has for it, from `["kinetic=0.01", ...]`.

    Raises:
      ValueError: for an unknown quantity, one that comes twice, and a weight that is no finite number above 0.
    """
    weights: dict[str, float] = {}
    for entry in regularize:
        name, _, number = entry.partition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if name not in QUANTITIES or not 0 < weight < math.inf or QUANTITIES[name] in weights:
            raise ValueError(
                f"regularize={entry!r}: expected, once each, {', '.join(QUANTITIES)} with a weight above 0, such as "
                "kinetic=0.01"
            )
        weights[QUANTITIES[name]] = weight
    return weights


def measured(net: nn.Module, weights: dict[str, float]) -> nn.Module:
    """The net, whose blocks integrate in training what is penalized.

    Raises:
      ValueError: for a net that integrates nothing.
    """
    if not weights:
        return net
    if not hasattr(net, "quantities"):
        raise ValueError(f"regularize: a {type(net).__name__} integrates nothing along its blocks; leave it out")
    return net.clone(quantities=tuple(weights))


def penalty(weights: dict[str, float], changed: PyTree) -> jax.Array | float:
    """Sum over blocks and quantities of weight times integral, from what a net has handed out.

    Integrals are means over the entries of a block's state, as in RNODE (Finlay et al. 2020).
    """
    blocks = changed.get("quantities", {}).values()
    return sum((weights[name] * value for block in blocks for name, value in block.items()), start=0.0)
