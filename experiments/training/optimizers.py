"""The optimizer of a config: one of optax's by its name, a schedule of its rate, a bound on the gradient's norm."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from ode_nets.nn import weight_roles

if TYPE_CHECKING:
    from experiments.training.config import Config

PyTree = Any
NEED_MORE = ("lbfgs", "scale_by_learning_rate", "scale_by_rprop")
"""Of optax's functions of a learning rate: no optimizers, or ones that ask for the loss beside its gradient."""


def find(name: str) -> Callable[..., optax.GradientTransformation]:
    """An optimizer of optax: any function there of a learning rate, with defaults for all else, and Muon.

    Raises:
      ValueError: for a name that is none.
    """
    if name == "muon":
        return contrib.muon
    found = getattr(optax, name, None)
    if name not in _names():
        close = difflib.get_close_matches(name, _names(), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"optimizer={name!r}: expected one of {', '.join(_names())}{hint}")
    return found  # type: ignore[return-value]


@lru_cache
def _names() -> tuple[str, ...]:
    functions = {name: value for name, value in vars(optax).items() if inspect.isfunction(value)}
    return (*sorted(name for name, value in functions.items() if _takes_a_rate(name, value)), "muon")


def _takes_a_rate(name: str, function: Callable[..., Any]) -> bool:
    first, *others = [*inspect.signature(function).parameters.values()] or [None]
    named = first is not None and first.name == "learning_rate" and name not in NEED_MORE
    return named and all(other.default is not other.empty for other in others if other is not None)


@lru_cache
def make_optimizer(config: Config, steps_per_epoch: int) -> optax.GradientTransformation:
    """The optimizer of a config.

    `weight_decay` is the optimizer's own where it has one (decoupled, as AdamW's), and else an L2 penalty, added to the
    gradient; `momentum` goes to those that take it. The gradient's norm is bounded first.
    """
    make = find(config.optimizer)
    taken, options = inspect.signature(make).parameters, {}
    if "momentum" in taken:
        options["momentum"] = config.momentum
    parts = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    if "weight_decay" in taken:
        options["weight_decay"] = config.weight_decay
    else:
        parts.append(optax.add_decayed_weights(config.weight_decay))
    if config.optimizer == "muon":
        options |= {"muon_weight_dimension_numbers": matrices, "adam_weight_decay": config.weight_decay}
    return optax.chain(*parts, make(rate_of(config, steps_per_epoch), **options))


def rate_of(config: Config, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate of each step: in steps down, or half a cosine to 0 at the end, after a linear rise."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if config.schedule == "step":
        decay = {epoch * steps_per_epoch: config.decay_factor for epoch in config.decay_epochs}
        rate = optax.piecewise_constant_schedule(config.learning_rate, decay)
    else:
        fall = max(1, config.epochs * steps_per_epoch - warmup)
        cosine = optax.cosine_decay_schedule(config.learning_rate, fall)
        rate = lambda step: cosine(jnp.maximum(step - warmup, 0))
    if not warmup:
        return rate
    return lambda step: rate(step) * jnp.minimum((step + 1) / warmup, 1)


def matrices(params: PyTree) -> PyTree:
    """What Muon takes for a matrix: a kernel, from all its axes to the last; those of a basis one by one."""

    def of(leaf: Any, role: str) -> contrib.MuonDimensionNumbers | None:
        first = 1 if role == "expansion" else 0
        if leaf.ndim - first < 2:
            return None
        return contrib.MuonDimensionNumbers(tuple(range(first, leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree.map(of, params, weight_roles(params))
