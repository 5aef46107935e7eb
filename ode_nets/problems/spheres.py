"""Concentric spheres in any dimension: two classes that no flow of the same dimension can take apart linearly."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from ode_nets.arguments import Count, Key, NotNegative, checked

SHELLS = ((0.1, 0.15), (0.25, 0.3), (0.4, 0.45))
"""Inner and outer radii of the shells of Ott sec. 3.1 (published code), from the inside out."""


@checked
def generate(
    key: Key, n: Count, dimension: Count, shells: Sequence[tuple[NotNegative, NotNegative]] = SHELLS
) -> tuple[Float[Array, "n dimension"], Int32[Array, "n"]]:
    """Points in concentric shells; neighbouring shells belong to different classes.

        |x| = r_in + (r_out - r_in) u^(1/d),  u uniform in [0, 1)        (Ott sec. 3.1, published code)

    Args:
      key: PRNG key.
      n: number of points, at least 1.
      dimension: d, at least 1.
      shells: (r_in, r_out) from the inside out, disjoint. The classes share the points equally, and the shells
        of a class the points of the class: of three shells a quarter, a half, a quarter.

    Returns:
      x, `[n, dimension]` in the default floating dtype, and labels, int32 `[n]`: 0 for the first, third, ...
      shell, 1 for the others. In random order.

    Raises:
      ValueError: for an empty set, a dimension below 1, or radii that are negative, empty or overlap.
    """
    edges = [r for shell in shells for r in shell]
    if len(edges) < 2 or edges[0] < 0 or any(not a < b for a, b in itertools.pairwise(edges)):
        raise ValueError(f"shells={tuple(shells)}: expected pairs with 0 <= r_in < r_out, disjoint, rising outwards")
    order_key, radius_key, direction_key = jax.random.split(key, 3)
    shell = jax.random.permutation(order_key, _shares(n, len(shells)))
    bounds = jnp.asarray(shells, float)[shell]
    u = jax.random.uniform(radius_key, (n,)) ** (1 / dimension)
    radius = bounds[:, 0] + (bounds[:, 1] - bounds[:, 0]) * u
    direction = jax.random.normal(direction_key, (n, dimension))
    direction = direction / jnp.linalg.norm(direction, axis=1, keepdims=True)
    return radius[:, None] * direction, (shell % 2).astype(jnp.int32)


def _shares(n: int, n_shells: int) -> jax.Array:
    """The shell of each point, in order of shells, `[n]`."""
    members = [(n_shells + 1 - k % 2) // 2 for k in range(n_shells)]
    classes = min(n_shells, 2)
    ends = [round(n * sum(1 / (classes * m) for m in members[: k + 1])) for k in range(n_shells)]
    return jnp.searchsorted(jnp.asarray(ends), jnp.arange(n), side="right")
