"""A `flax.linen` module as the right-hand side of an `OdeBlock`."""

from __future__ import annotations

import dataclasses
import inspect
from functools import partial
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp

from ode_nets.arguments import FloatName, Natural, checked
from ode_nets.fields import Unit

PyTree = Any
KNOWN = ("params", "batch_stats")
"""Collections of variables that a right-hand side may have."""


@dataclasses.dataclass(frozen=True)
@checked
class LinenUnit:
    """A linen module as a `Unit`: parameters and statistics go in as values, and nothing of it is kept.

    The module is called with the state, and by name with what of these its `__call__` takes: `t`, the depth-time;
    `train`, or `deterministic` and `use_running_average`, its opposites.

    What it calls `batch_stats` are averages, new = m * old + (1 - m) * batch, as those of `flax.linen.BatchNorm` are.
    In training the statistics of the batch are reported, like those of the library's own units, whatever m below 1.

    Args:
      module: keeps shape and dtype of the state.
      shape, dtype: of the state that parameters are initialized with.

    Raises:
      ValueError: when initialized, for variables in other collections than `params` and `batch_stats`; in training,
        for a module that draws random numbers, as one with dropout does, or whose statistics do not move.

    Example:
        >>> import flax.linen as nn
        >>> unit = LinenUnit(nn.Dense(3), (1, 3))
        >>> unit.apply(unit.init(jax.random.key(0)), jnp.ones((2, 3)))[0].shape
        (2, 3)
    """

    module: nn.Module
    shape: tuple[Natural, ...]
    dtype: FloatName = "float32"

    def _variables(self, key: jax.Array) -> dict[str, PyTree]:
        variables: Any = self.module.init(key, jnp.zeros(self.shape, self.dtype), **self._options(0.0, False))
        other = sorted(set(variables) - set(KNOWN))
        if other:
            raise ValueError(
                f"unit={type(self.module).__name__} has variables in {', '.join(other)}: a right-hand side keeps no "
                f"state; expected {' and '.join(KNOWN)} alone"
            )
        return dict(variables)

    def _options(self, t: Any, train: bool) -> dict[str, Any]:
        known = {"t": t, "train": train, "deterministic": not train, "use_running_average": not train}
        taken = inspect.signature(type(self.module).__call__).parameters
        return {name: value for name, value in known.items() if name in taken}

    def init(self, key: jax.Array) -> PyTree:
        """The module's parameters."""
        return self._variables(key).get("params", {})

    def init_stats(self) -> PyTree:
        """The module's running statistics before any data."""
        return self._variables(jax.random.key(0)).get("batch_stats", {})

    def apply(self, params: PyTree, x: jax.Array, t: Any = 0.0, stats: PyTree = None) -> tuple[jax.Array, PyTree]:
        """The module's output, and the statistics used; `stats=None` normalizes with those of the batch."""
        if stats is not None:
            variables = {"params": params} | ({"batch_stats": stats} if stats else {})
            y: Any = self.module.apply(variables, x, **self._options(t, False))
            return y, stats

        self._check_moving()
        shapes = jax.eval_shape(self.init_stats)
        full = lambda value: jax.tree.map(
            lambda s: jnp.full(s.shape, value, jnp.promote_types(s.dtype, x.dtype)), shapes
        )
        # From zero a running average goes to its share of the batch, and its derivative is the share of the past.
        new, past, y = jax.jvp(partial(self._trained, params, x, t), (full(0),), (full(1),), has_aux=True)
        return y, jax.tree.map(lambda share, m: share / (1 - m), new, past)

    def _trained(self, params: PyTree, x: jax.Array, t: Any, old: PyTree) -> tuple[PyTree, Any]:
        """Running statistics after a call in training, and what it gives."""
        variables = {"params": params} | ({"batch_stats": old} if old else {})
        try:
            y, new = self.module.apply(variables, x, **self._options(t, True), mutable=["batch_stats"])
        except flax.errors.InvalidRngError as error:
            raise ValueError(
                f"unit={type(self.module).__name__} draws random numbers in training: expected one function of "
                "state and time for the whole of a solve; put dropout before or after the block"
            ) from error
        return new.get("batch_stats", {}), y

    def _check_moving(self) -> None:
        """Statistics that training leaves as they are would be taken for those of the batch.

        Raises:
          ValueError: for such; it names them.
        """
        with jax.ensure_compile_time_eval():
            variables = self._variables(jax.random.key(0))
            if not (stats := variables.get("batch_stats", {})):
                return
            after = partial(self._trained, variables.get("params", {}), jnp.zeros(self.shape, self.dtype), 0.0)
            _, past, _ = jax.jvp(after, (stats,), (jax.tree.map(jnp.ones_like, stats),), has_aux=True)
            fixed = [jax.tree_util.keystr(path) for path, m in jax.tree.leaves_with_path(past) if jnp.any(m == 1)]
        if fixed:
            raise ValueError(
                f"unit={type(self.module).__name__} keeps its running statistics in training ({', '.join(fixed)}): "
                "expected averages that move, momentum below 1; what is frozen is a parameter of a scale and a shift"
            )


def as_unit(unit: Any, x: jax.Array) -> Unit:
    """A right-hand side for states like x, from a `Unit` or a linen module.

    Raises:
      ValueError: for anything else; it says what is missing.
    """
    if isinstance(unit, nn.Module):
        return LinenUnit(unit.clone(parent=None, name=None), (1, *x.shape[1:]), str(x.dtype))
    advice = (
        "expected a Unit, such as ResidualUnit(channels) or MLP(size), with init(key), init_stats() and "
        "apply(params, x, t, stats), or a flax.linen module"
    )
    if isinstance(unit, type):
        raise ValueError(f"unit={unit.__name__} is a class: {advice}")
    missing = [name for name in ("init", "init_stats", "apply") if not callable(getattr(unit, name, None))]
    if missing:
        raise ValueError(f"unit={unit!r} has no {', no '.join(missing)}: {advice}")
    return unit
