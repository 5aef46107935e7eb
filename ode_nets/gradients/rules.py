"""The library's own arithmetic under JAX's standard promotion rules, whatever the user has chosen for theirs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax


def standard(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, traced under standard promotion of dtypes and ranks.

    Backward passes are traced when a user's program is differentiated, long after `solve` has returned.
    """

    @functools.wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return traced


def as_chosen(function: Callable[..., Any]) -> Callable[..., Any]:
    """A user's function under the rules that hold where this is called."""
    dtypes: Any = jax.numpy_dtype_promotion
    ranks: Any = jax.numpy_rank_promotion
    chosen = (dtypes.value, ranks.value)
    if chosen == ("standard", "allow"):
        return function

    @functools.wraps(function)
    def configured(*args: Any) -> Any:
        with jax.numpy_dtype_promotion(chosen[0]), jax.numpy_rank_promotion(chosen[1]):
            return function(*args)

    return configured
