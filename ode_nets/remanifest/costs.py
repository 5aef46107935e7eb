"""What a manifestation costs, and which of several no other beats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax

from ode_nets.arguments import Count, Numbers, Rule, checked
from ode_nets.integrate import FixedStep

PyTree = Any
WithParams = Annotated[Mapping[str, Any], Rule("variables with 'params' among them", lambda v: "params" in v)]


@checked
def n_parameters(variables: WithParams) -> int:
    """Number of trainable parameters in `variables["params"]`.

    Example:
        >>> n_parameters({"params": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}, "batch_stats": jnp.ones(9)})
        16
    """
    return sum(int(leaf.size) for leaf in jax.tree.leaves(variables["params"]))


@checked
def nfe(solver: FixedStep, n_blocks: Count = 1) -> int:
    """Field evaluations of one forward pass: stages that the state depends on, times steps, times blocks.

    Raises:
      ValueError: for a scheme that cannot tell, as no implicit one can.
    """
    if solver.scheme.n_evaluations is None:
        raise ValueError(f"scheme {solver.scheme.name!r} takes as many evaluations a step as it needs; solve and count")
    return solver.n_steps * solver.scheme.n_evaluations * n_blocks


@checked
def pareto_front(points: Sequence[tuple[Numbers, Numbers]]) -> list[int]:
    """Indices of the points that no other beats in both: lower cost, higher value; sorted by cost.

    Args:
      points: `(cost, value)`; points with a value that is NaN are never in the front.

    Example:
        >>> pareto_front([(1, 0.6), (2, 0.5), (4, 0.9)])  # the second costs more than the first and is worse
        [0, 2]
    """
    best, front = -math.inf, []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best:
            best = points[i][1]
            front.append(i)
    return front
