"""Batch statistics of intervals that the stages of a solver do not meet."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ode_nets.arguments import Variables, checked
from ode_nets.gradients import Direct
from ode_nets.integrate import Solver
from ode_nets.nn import weight_roles
from ode_nets.nn.roles import COEFFICIENTS

PyTree = Any
STATS = "batch_stats"
_UNTOUCHED = -1.0


@checked
def unmet_intervals(net: nn.Module, variables: Variables, images: jax.Array) -> dict[str, tuple[int, ...]]:
    """The intervals of each ODE block in which no stage of the net's own solver lies.

    Batch statistics are kept by M equal intervals in any basis (ContinuousNet A.3), and training writes those alone
    that its stages meet: Euler's method with 2 steps on M = 4 intervals meets the first and the third. The others
    stay at what they were, mean 0 and variance 1, though in a basis that is not local the weights there are trained.

    Args:
      net: a model with `momentum` and `solver`, that which it was trained with, a `FixedStep`, `Adaptive` or any other
        that has a scheme.
      variables: its variables, concrete arrays.
      images: `[batch, ...]`, what it takes; which intervals adaptive steps meet follows from them.

    Returns:
      Numbers of intervals, from 0, by the path of a block; blocks whose intervals are all met are left out.

    Raises:
      ValueError: for a net without `momentum`, or with another kind of solver.

    Cost: compiles one forward pass of training and runs it.

    Example:
      net = ContinuousNet(basis=Legendre(4), solver=FixedStep("euler", 2))
      variables = net.init(jax.random.key(0), images)
      unmet_intervals(net, variables, images)      # {"block1": (1, 3), "block2": (1, 3), "block3": (1, 3)}
    """
    _check(net)
    blank = _where_stacked(lambda leaf: jnp.full_like(leaf, _UNTOUCHED), variables[STATS])
    after = jax.device_get(_estimated(net, {**variables, STATS: blank}, images))
    found: dict[str, tuple[int, ...]] = {}
    for block, leaves in _by_block(after).items():
        untouched = np.all([(leaf == _UNTOUCHED).reshape(len(leaf), -1).all(1) for leaf in leaves], axis=0)
        if untouched.any():
            found[block] = tuple(int(i) for i in np.flatnonzero(untouched))
    return found


@checked
def restat(net: nn.Module, variables: Variables, images: jax.Array) -> PyTree:
    """Variables with the batch statistics that go with the solver and basis of a net, estimated on images.

    Another solver or basis meets intervals that training did not meet, and takes what statistics are there for those
    of training. They belong together, as the states that a block passes through do: of a net of which training met
    every second interval, those of the others alone, estimated beside the trained ones, leave it as wrong as it was.

    Args:
      net, variables: as of `unmet_intervals`, but for the solver and the basis, which are those that it is to run with.
        The solver may be of `pad`, so that one program serves all.
      images: `[batch, ...]`, of training, as many as a batch at least; no labels are needed.

    Returns:
      Variables like those given: statistics as one forward pass of training sees them, without a past. Intervals that
      no stage of this solver meets keep theirs, as they are not read either.

    Raises:
      ValueError: as `unmet_intervals`.

    Cost: a compilation, outside of `jax.jit`, and a forward pass.

    Example:
      other = net.clone(solver=FixedStep("rk4", 8))
      logits = other.apply(restat(other, variables, x_train[:512]), images)
      small, coarse = project(net, variables, Legendre(2))
      logits = small.apply(restat(small, coarse, x_train[:512]), images)
    """
    _check(net)
    return {**variables, STATS: _estimated(net, variables, images)}


@checked
def has_intervals(net: nn.Module, variables: PyTree) -> bool:
    """Whether a model keeps statistics by several intervals, and can be asked which of them its solver meets."""
    stacked = _by_block(variables.get(STATS, {})) if isinstance(variables, Mapping) else {}
    several = any(len(leaf) > 1 for leaves in stacked.values() for leaf in leaves)
    trains = hasattr(net, "momentum") and "train" in inspect.signature(type(net).__call__).parameters
    return several and trains and isinstance(getattr(net, "solver", None), Solver)


def _check(net: nn.Module) -> None:
    if not hasattr(net, "momentum"):
        raise ValueError(
            f"net is a {type(net).__name__} without momentum: expected a model that keeps batch statistics"
        )
    if not isinstance(getattr(net, "solver", None), Solver):
        raise ValueError(f"net.solver={getattr(net, 'solver', None)!r}: expected the FixedStep or Adaptive of training")


def _estimated(net: nn.Module, variables: PyTree, images: jax.Array) -> PyTree:
    """Batch statistics of one forward pass as in training, without a past; unmet intervals as they were."""
    plain: dict[str, Any] = {"gradient": Direct(), "quantities": ()}
    model: Any = net.clone(momentum=0.0, **{name: value for name, value in plain.items() if hasattr(net, name)})

    @jax.jit
    def run(variables: PyTree, images: jax.Array) -> PyTree:
        return model.apply(variables, images, train=True, mutable=[STATS])[1][STATS]

    return run(variables, images)


def _where_stacked(change: Any, stats: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf, role: change(leaf) if role == "expansion" else leaf, stats, weight_roles(stats))


def _by_block(stats: PyTree) -> dict[str, list[Any]]:
    """The stacked arrays of each block."""
    found: dict[str, list[Any]] = {}
    flat, _ = jax.tree_util.tree_flatten_with_path(stats)
    for (path, leaf), role in zip(flat, jax.tree.leaves(weight_roles(stats)), strict=True):
        if role == "expansion":
            found.setdefault(_block_of(path), []).append(leaf)
    return found


def _block_of(path: Any) -> str:
    names = [str(getattr(key, "key", key)) for key in path]
    return "/".join(names[: names.index(COEFFICIENTS)])
