"""What is integrated, by what, and what comes out: the types that every solver and gradient method shares."""

from __future__ import annotations

import dataclasses
import enum
import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any
Field = Callable[[Any, PyTree, PyTree], PyTree]
"""`field(t, x, theta) -> dx`, or `-> (dx, aux)` with `has_aux`."""
Read = Callable[[PyTree, Any, int], PyTree]
"""`read(section, step, stage) -> theta`; see `WeightFunction.on_grid`."""


class Result(enum.IntEnum):
    """Result code of a solve. Anything but `SUCCESS` means that the state is not the solution."""

    SUCCESS = 0
    MAX_STEPS = 1
    STEP_UNDERFLOW = 2
    NON_FINITE = 3
    UNSORTED_TIMES = 4
    """Asked times, known only when the program runs, that are not in order from t0 to t1."""


@runtime_checkable
class TimeDependent(Protocol):
    """theta(t): a pytree of arrays that can be read at any time, on no grid in particular."""

    @property
    def continuous(self) -> bool:
        """Whether theta(t) has no jumps."""

    def at(self, t: Any, side: Any = 1) -> PyTree:
        """theta(t); at a jump the limit from the right (`side=1`) or from the left (`side=-1`)."""


@runtime_checkable
class WeightFunction(TimeDependent, Protocol):
    """theta(t): a pytree that can be read at any time and, exactly, on a uniform grid."""

    def n_sections(self, n_steps: int) -> int:
        """Largest number of equal sections of the grid that share no coefficient; divides `n_steps`."""

    def on_grid(self, n_steps: int, c: Sequence[Fraction | float], n_sections: int) -> tuple[PyTree, Read]:
        """Coefficients cut into `n_sections` (leading axis), and how a stage reads theta from its section."""

    def at_node(self, step: Any, n_steps: Any, numerator: Any, denominator: Any) -> PyTree:
        """theta at node `numerator / denominator` of a step of a grid; every argument may be traced."""


@runtime_checkable
class Expandable(Protocol):
    """A weight function that is computed from other arrays, once before a solve, and then only read."""

    def expanded(self) -> WeightFunction:
        """The weight function to read."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Solution:
    """What a solve gives.

    Attributes:
      x: the state at `t1`, a pytree like `x0`; with `ts`, every leaf has a leading axis `[len(ts), ...]`.
      aux: what the field reported, summed over the stages of accepted steps that the state depends on.
      nfe: int32 scalar, field evaluations of the forward pass, rejected trials included.
      n_accepted: int32 scalar, accepted steps.
      n_rejected: int32 scalar, rejected trials.
      result: int32 scalar, a `Result`.
    """

    x: PyTree
    aux: PyTree
    nfe: jax.Array
    n_accepted: jax.Array
    n_rejected: jax.Array
    result: jax.Array


@dataclasses.dataclass(frozen=True)
class Problem:
    """An initial value problem, ready for a solver: dx/dt = field(t, x, theta(t)), x(t0) = x0.

    Made by `make_problem`, which checks it. `field` always returns `(dx, aux)`.
    """

    field: Field
    x0: PyTree
    weights: PyTree
    t0: jax.Array
    t1: jax.Array
    ts: jax.Array | None
    on_domain: bool
    """Whether [t0, t1] is known at trace time to be the whole domain of the weights."""


def theta_at(weights: PyTree, t: Any, side: Any = 1) -> PyTree:
    """theta(t) of a weight function; anything else is a theta that does not depend on time."""
    return weights.at(t, side) if isinstance(weights, TimeDependent) else weights


def make_problem(
    field: Field,
    x0: PyTree,
    weights: PyTree,
    *,
    t0: Any = 0.0,
    t1: Any = 1.0,
    ts: Any = None,
    has_aux: bool = False,
) -> Problem:
    """Check an initial value problem and bring it into the form that solvers take.

    Args:
      field: `field(t, x, theta) -> dx`, or `-> (dx, aux)` with `has_aux`; `dx` like `x`.
      x0: initial state, a pytree of floating-point arrays.
      weights: a `WeightFunction`, or a pytree theta that holds at all times.
      t0, t1: start and end, scalars; `t1 < t0` integrates backward in time.
      ts: times at which the state is asked for, `[n]`, in the order of integration, or `None`.
      has_aux: whether the field reports something beside `dx`.

    Raises:
      ValueError: at trace time, for states that are not floating point, times that are not scalars, `ts`
        that is empty, of the wrong rank, unsorted or outside [t0, t1] (where the values are known), and a
        field whose `dx` differs from `x` in structure, shape or dtype.
    """
    # With a dtype, so that a Python number turns into an array that promotes like any other.
    x0 = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.asarray(leaf).dtype), x0)
    is_expandable = lambda part: isinstance(part, Expandable)
    weights = jax.tree.map(
        lambda part: part.expanded() if is_expandable(part) else part, weights, is_leaf=is_expandable
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(x0):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"x0{jax.tree_util.keystr(path)} has dtype {leaf.dtype}: a state must be floating point; "
                "convert it, e.g. with .astype(jnp.float32)"
            )
    if not jax.tree.leaves(x0):
        raise ValueError("x0 holds no array: expected a pytree of floating-point arrays")
    if isinstance(ts, (list, tuple)):
        ts = jnp.asarray(ts) if any(isinstance(t, jax.core.Tracer) for t in ts) else np.asarray(ts)
    _check_times(t0, t1, ts)
    domain = getattr(weights, "domain", None)
    on_domain = _concrete(t0) is not None and (_concrete(t0), _concrete(t1)) == domain
    time = jnp.result_type(float)
    problem = Problem(
        field=field if has_aux else lambda t, x, theta: (field(t, x, theta), ()),
        x0=x0,
        weights=weights,
        t0=_keep_known(t0, time),
        t1=_keep_known(t1, time),
        ts=None if ts is None else _keep_known(ts, time),
        on_domain=on_domain,
    )
    _check_field(problem, has_aux)
    return problem


def is_finite(*trees: PyTree) -> jax.Array:
    """Whether every entry of every array is finite; a boolean scalar."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(trees)]))


def _concrete(t: Any) -> float | None:
    """The value of a time that is known at trace time, else `None`."""
    if isinstance(t, jax.core.Tracer):
        return None
    return float(t)


def _keep_known(t: Any, dtype: Any) -> Any:
    """An array of times; a NumPy one where the values are known, so that they stay known inside jit."""
    return jnp.asarray(t, dtype) if isinstance(t, jax.core.Tracer) else np.asarray(t, dtype)


def _check_times(t0: Any, t1: Any, ts: Any) -> None:
    for name, t in (("t0", t0), ("t1", t1)):
        if np.shape(t) != ():
            raise ValueError(f"{name} has shape {np.shape(t)}: expected a scalar; use jax.vmap for several solves")
        if (value := _concrete(t)) is not None and not math.isfinite(value):
            raise ValueError(f"{name}={value}: expected a finite time")
    if ts is None:
        return
    if jnp.ndim(ts) != 1 or jnp.shape(ts)[0] == 0:
        raise ValueError(
            f"ts has shape {jnp.shape(ts)}: expected a non-empty vector of times; leave it out for the state at t1"
        )
    start, end = _concrete(t0), _concrete(t1)
    if isinstance(ts, jax.core.Tracer) or start is None or end is None:
        return
    times = np.asarray(ts, np.float64).tolist()
    sign = 1 if end >= start else -1
    if not all(math.isfinite(t) for t in times):
        raise ValueError(f"ts={times}: expected finite times")
    if any(sign * (b - a) < 0 for a, b in itertools.pairwise(times)):
        raise ValueError(f"ts={times} is not sorted from t0={start} towards t1={end}; sort it")
    if sign * (times[0] - start) < 0 or sign * (end - times[-1]) < 0:
        raise ValueError(f"ts={times} leaves the interval from t0={start} to t1={end}; move t0 and t1, or drop times")


def _check_field(problem: Problem, has_aux: bool) -> None:
    out = jax.eval_shape(
        lambda x, t, weights: problem.field(t, x, theta_at(weights, t)), problem.x0, problem.t0, problem.weights
    )
    if has_aux and not (isinstance(out, tuple) and len(out) == 2):
        raise ValueError(f"with has_aux the field must return (dx, aux): got {type(out).__name__}")
    dx, expected = out[0], jax.eval_shape(lambda: problem.x0)
    structure: Any = jax.tree.structure(expected)
    if jax.tree.structure(dx) != structure:
        raise ValueError(
            f"the field returned the structure {jax.tree.structure(dx)}: expected that of the state, "
            f"{structure} (with has_aux=True a field may return (dx, aux))"
        )
    for (path, got), want in zip(jax.tree_util.tree_leaves_with_path(dx), jax.tree.leaves(expected), strict=True):
        if (got.shape, got.dtype) != (want.shape, want.dtype):
            raise ValueError(
                f"the field returned dx{jax.tree_util.keystr(path)} of shape {got.shape} and dtype {got.dtype}: "
                f"expected {want.shape} and {want.dtype}, those of the state"
            )
