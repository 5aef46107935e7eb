"""One explicit Runge-Kutta step and its embedded error, on states of any pytree structure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ode_nets.tableaus import Number, Tableau

PyTree = Any
Stage = tuple[PyTree, PyTree]
"""What one field evaluation gives: `(dx, aux)`."""
Evaluate = Callable[[int, Any, PyTree], Stage]
"""`evaluate(i, t, x) -> (dx, aux)`: the field at stage `i` (static), with the weights of that stage."""


class Step(NamedTuple):
    """What one Runge-Kutta step gives: the state at its end and what else was asked for."""

    x: PyTree
    error: PyTree | None
    aux: PyTree
    stages: tuple[Stage, ...]


def combine(x: PyTree, h: jax.Array | float, weights: Sequence[Number], slopes: Sequence[PyTree]) -> PyTree:
    """The state moved along a combination of slopes.

        x + h * sum_i w_i k_i                                (ContinuousNet eq. 11)

    Args:
      x: state, any pytree of floating-point arrays; `None` in its place leaves the increment alone.
      h: step size, scalar.
      weights: one number a slope; slopes with weight zero are not read.
      slopes: pytrees like `x`.

    Returns:
      A pytree like `x`, in its dtypes.
    """
    used = [(float(w), k) for w, k in zip(weights, slopes, strict=False) if w != 0]

    def leaf(*ks: jax.Array) -> jax.Array:
        total = sum(w * k for (w, _), k in zip(used[1:], ks[1:], strict=True)) if len(ks) > 1 else None
        first = used[0][0] * ks[0] if used[0][0] != 1 else ks[0]
        return jnp.asarray(h, ks[0].dtype) * (first if total is None else first + total)

    if not used:
        return x if x is not None else jax.tree.map(jnp.zeros_like, slopes[0])
    increment = jax.tree.map(leaf, *(k for _, k in used))
    return increment if x is None else jax.tree.map(jnp.add, x, increment)


def n_propagating(tableau: Tableau) -> int:
    """Number of stages that the state at the end of a step depends on.

    Smaller than `tableau.n_stages` where the last stage serves the error estimate alone, as in every
    first-same-as-last pair.
    """
    return max(i for i, b in enumerate(tableau.b) if b != 0) + 1


def rk_step(
    tableau: Tableau,
    evaluate: Evaluate,
    t: jax.Array | float,
    x: PyTree,
    h: jax.Array | float,
    *,
    first: Stage | None = None,
    with_error: bool = False,
) -> Step:
    """One explicit Runge-Kutta step.

        k_i = f(t + c_i h, x + h * sum_{j<i} a_ij k_j)
        x_{n+1} = x_n + h * sum_i b_i k_i                    (ContinuousNet eq. 11)
        error   = h * sum_i (b_i - bhat_i) k_i

    Args:
      tableau: the scheme.
      evaluate: `evaluate(i, t, x) -> (dx, aux)`, the field at stage `i`.
      t: time at the start of the step, scalar.
      x: state, a pytree of floating-point arrays.
      h: step size, scalar, negative for a step back in time.
      first: `(dx, aux)` of the first stage where it is known already.
      with_error: whether to evaluate the embedded error estimate.

    Returns:
      `Step`: the next state; the error (`None` unless asked for); `aux` summed over the stages that the
      state depends on; all stages evaluated, so that a first-same-as-last pair can hand on its last one.

    Raises:
      ValueError: if an error estimate is asked of a tableau without embedded weights.

    Cost: `n_propagating(tableau)` evaluations, `tableau.n_stages` with the error, one less with `first`.
    """
    if with_error and tableau.b_error is None:
        raise ValueError(
            f"tableau {tableau.name!r} has no embedded error weights; "
            "use an embedded scheme (heun_euler, bosh3, fehlberg21, dopri5, tsit5) or fixed steps"
        )
    n_stages = tableau.n_stages if with_error else n_propagating(tableau)
    stages: list[Stage] = [] if first is None else [first]
    for i in range(len(stages), n_stages):
        x_i = combine(x, h, tableau.a[i], [k for k, _ in stages])
        t_i = t + h if tableau.c[i] == 1 else t + float(tableau.c[i]) * h
        stages.append(evaluate(i, t_i, x_i))
    slopes = [k for k, _ in stages]
    auxes = [aux for _, aux in stages[: n_propagating(tableau)]]
    return Step(
        x=combine(x, h, tableau.b, slopes),
        error=combine(None, h, tableau.b_error or (), slopes) if with_error else None,
        aux=jax.tree.map(lambda *leaves: sum(leaves[1:], start=leaves[0]), *auxes),
        stages=tuple(stages),
    )


def weighted_sum(weights: jax.Array, slopes: jax.Array) -> jax.Array:
    """sum_i weights_i slopes_i, `[S]` and `[S, ...]` to `[...]`, in the full precision of its arguments."""
    # Accelerators would otherwise round the factors of a product of matrices.
    return jnp.tensordot(weights, slopes, 1, precision=jax.lax.Precision.HIGHEST)


def rk_advance(
    tableau: Tableau, evaluate: Callable[[Any, Any, PyTree], PyTree], t: Any, x: PyTree, h: Any
) -> PyTree:
    """The state after one step, as `rk_step` computes it, from one compiled evaluation of the field.

    Args:
      tableau, t, x, h: as in `rk_step`.
      evaluate: `evaluate(i, t, x) -> dx`, the field at stage `i`, which is traced.

    Returns:
      The next state, equal to that of `rk_step` to rounding.

    Compiles several times faster than `rk_step`, and takes longer by what it costs to sum over all stages in
    every one of them: for steps that are rarely taken.
    """
    n = n_propagating(tableau)
    a = np.zeros((n, n))
    for i, row in enumerate(tableau.a[:n]):
        a[i, :i] = [float(entry) for entry in row]
    b, c = (np.array([float(entry) for entry in entries[:n]]) for entries in (tableau.b, tableau.c))

    def move(weights: Any, slopes: PyTree) -> PyTree:
        def leaf(x: jax.Array, k: jax.Array) -> jax.Array:
            return x + jnp.asarray(h, x.dtype) * weighted_sum(jnp.asarray(weights, x.dtype), k)

        return jax.tree.map(leaf, x, slopes)

    def stage(i: jax.Array, slopes: PyTree) -> PyTree:
        t_i = jnp.where(jnp.asarray(c)[i] == 1, t + h, t + jnp.asarray(c, jnp.result_type(t))[i] * h)
        k = evaluate(i, t_i, move(jnp.asarray(a)[i], slopes))
        return jax.tree.map(lambda all_, one: jax.lax.dynamic_update_index_in_dim(all_, one, i, 0), slopes, k)

    slopes = jax.tree.map(lambda leaf: jnp.zeros((n, *leaf.shape), leaf.dtype), x)
    return move(b, jax.lax.fori_loop(0, n, stage, slopes))
