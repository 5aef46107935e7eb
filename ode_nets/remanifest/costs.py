"""What a manifestation costs, and which of several no other beats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax

from ode_nets.integrate import FixedStep

PyTree = Any


def n_parameters(variables: PyTree) -> int:
    """Number of trainable parameters in `variables["params"]`."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(variables["params"]))


def nfe(solver: FixedStep, n_blocks: int = 1) -> int:
    """Field evaluations of one forward pass: stages that the state depends on, times steps, times blocks.

    Raises:
      ValueError: for a scheme that cannot tell, as no implicit one can.
    """
    if solver.scheme.n_evaluations is None:
        raise ValueError(f"scheme {solver.scheme.name!r} takes as many evaluations a step as it needs; solve and count")
    return solver.n_steps * solver.scheme.n_evaluations * n_blocks


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats in both: lower cost, higher value; sorted by cost.

    Args:
      points: `(cost, value)`; points with a value that is NaN are never in the front.
    """
    best, front = -math.inf, []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best:
            best = points[i][1]
            front.append(i)
    return front
