"""Which of equal intervals of [0, 1] a time or a stage of a step lies in: exact where it can be."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np

from ode_nets.tableaus import Number

Array = Any  # a NumPy array, for tables made at trace time, or a JAX one


def interval_index(step: Any, n_steps: Any, n_basis: Any, offset: Any) -> Any:
    """Which of `n_basis` equal intervals a stage of a step lies in, exactly.

        floor((n_basis * step + offset) / n_steps), clipped to [0, n_basis - 1]      (ContinuousNet eq. 25)

    `offset` is `stage_offset(n_basis, c)`: as floor((m + y) / N) = floor((m + floor(y)) / N) for integers m
    and N, the node enters by one integer, and neither a fraction nor a float is left.

    Args:
      step: step number k, `0 <= k < n_steps`; integer or integer array, traced or not, as all arguments.
      n_steps: number of steps over the whole domain.
      n_basis: number of intervals over the whole domain.
      offset: integer of the stage.

    Returns:
      The index, a Python integer if every argument is one. `n_basis * n_steps` must fit the integer type.
    """
    index = (n_basis * step + offset) // n_steps
    if isinstance(index, int):
        return min(max(index, 0), n_basis - 1)
    return namespace(index).clip(index, 0, n_basis - 1)


def stage_offset(n_basis: int, c: Number) -> int:
    """The integer by which a stage at node c enters `interval_index`.

        floor(n_basis * c) for c < 1,   ceil(n_basis * c) - 1 for c >= 1

    A stage at the end of its step sees the limit from inside the step: the weights of the interval that ends
    there, not of the one that begins. Exact for fractions, and for floats taken as the fractions they are.
    """
    node = Fraction(c)
    return node_offset(n_basis, node.numerator, node.denominator)


def node_offset(n_basis: Any, numerator: Any, denominator: Any) -> Any:
    """`stage_offset` of the node `numerator / denominator`, which may be traced, or of a float as the numerator."""
    if not isinstance(numerator, int) and jnp.issubdtype(numerator.dtype, jnp.floating):
        # A node that came as a float may be a jump that rounding has moved.
        inside = locate(numerator, n_basis, jnp.where(numerator < 1, 1, -1))
        return inside.astype(np.int32)
    scaled = n_basis * numerator
    right, left = scaled // denominator, -(-scaled // denominator) - 1
    if isinstance(right, int):
        return right if numerator < denominator else left
    return jnp.where(numerator < denominator, right, left)


def locate(u: Array, n_intervals: int, side: Any) -> Array:
    """The interval of [0, 1] that u is in, int32; within rounding of an end, the one on the given side."""
    xp = namespace(u)
    scaled = u * n_intervals
    nearest = xp.round(scaled)
    at_end = abs(scaled - nearest) <= 4 * n_intervals * jnp.finfo(u.dtype).eps
    scaled = xp.where(at_end, nearest, scaled)
    index = xp.where(side < 0, xp.ceil(scaled) - 1, xp.floor(scaled))
    return xp.clip(index, 0, n_intervals - 1).astype(np.int32)


def namespace(x: Array) -> Any:
    """NumPy for NumPy arrays, `jax.numpy` for all others."""
    return np if isinstance(x, (np.ndarray, np.generic)) else jnp
