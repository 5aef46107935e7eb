"""Explicit Runge-Kutta schemes: one step from a tableau, its embedded error and its interpolant."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ode_nets.arguments import checked
from ode_nets.lanes import any_lane, room, write
from ode_nets.stepping.scheme import END, START, Evaluate, Node, OneState, PyTree, Stage, Step
from ode_nets.tableaus import Number, Tableau, get_tableau


class Held(NamedTuple):
    """The first stage of the step to come, where it is known."""

    first: Stage
    known: jax.Array


class OfTableau:
    """What a scheme that is made from a tableau has of it."""

    tableau: Any
    """Static, exact."""

    @property
    def order(self) -> int:
        """Order of `b`."""
        order: int = self.tableau.order
        return order

    @property
    def error_order(self) -> int | None:
        """Order of the embedded weights, or `None`."""
        order: int | None = self.tableau.embedded_order
        return order

    @property
    def interpolates(self) -> bool:
        """Whether the tableau has `b_dense`."""
        return self.tableau.b_dense is not None


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
@checked
class RungeKutta(OfTableau, OneState):
    """The scheme of a tableau.

        k_i = f(t + c_i h, x + h * sum_{j<i} a_ij k_j)
        x_{n+1} = x_n + h * sum_i b_i k_i                    (ContinuousNet eq. 11)
        error   = h * sum_i (b_i - bhat_i) k_i

    Args:
      tableau: static, exact.

    A step costs `n_evaluations`, one for each stage that the state depends on; with error or interpolant
    `tableau.n_stages`; one less where the first is known from the step before, or from a trial that was rejected.

    Example:
        >>> from ode_nets.tableaus import get_tableau
        >>> RungeKutta(get_tableau("rk4")).n_evaluations
        4
    """

    tableau: Tableau

    def __repr__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        """That of the tableau."""
        return self.tableau.name

    @property
    def n_evaluations(self) -> int:
        """Stages that the state at the end of a step depends on: fewer than all in every first-same-as-last pair."""
        return max(i for i, b in enumerate(self.tableau.b) if b != 0) + 1

    def start(self, evaluate: Evaluate, x: PyTree, first: Stage | None, smooth: bool) -> tuple[PyTree, int]:
        """The first stage: as given, evaluated where every later step will have it, or unknown."""
        if first is not None:
            return Held(first, jnp.asarray(True)), 0
        if self._hands_on(smooth):
            return Held(evaluate(START, x), jnp.asarray(True)), 1
        shapes = jax.eval_shape(lambda: evaluate(START, x))
        return Held(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), jnp.asarray(False)), 0

    def _hands_on(self, smooth: bool) -> bool:
        """Whether the last stage is the first of the next step: not across jumps, which they see from two sides."""
        return smooth and self.tableau.fsal

    def step(
        self,
        evaluate: Evaluate,
        x: PyTree,
        h: Any,
        carry: PyTree = None,
        *,
        error: bool = False,
        inside: bool = False,
        smooth: bool = True,
    ) -> Step:
        """One step; see `Scheme.step`."""
        tableau = self.tableau
        if error and tableau.b_error is None:
            raise ValueError(
                f"tableau {tableau.name!r} has no embedded error weights; "
                "use an embedded scheme (heun_euler, bosh3, fehlberg21, dopri5, tsit5) or fixed steps"
            )
        nodes = [node_of(c) for c in tableau.c]
        n_stages = tableau.n_stages if error or inside else self.n_evaluations
        stages, saved = [], 0
        if carry is not None:
            first, saved = self._first(evaluate, x, carry, smooth)
            stages = [first]
        for i in range(len(stages), n_stages):
            stages.append(evaluate(nodes[i], combine(x, h, tableau.a[i], [k for k, _ in stages])))
        slopes = [k for k, _ in stages]
        again = handed = None
        if carry is not None:
            again, handed = Held(stages[0], carry.known | True), Held(stages[0], carry.known & False)
            if self._hands_on(smooth):
                handed = Held(stages[-1], again.known)
        auxes = [aux for _, aux in stages[: self.n_evaluations]]
        return Step(
            x=combine(x, h, tableau.b, slopes),
            error=combine(None, h, tableau.b_error or (), slopes) if error else None,
            aux=jax.tree.map(lambda *leaves: sum(leaves[1:], start=leaves[0]), *auxes),
            inside=tuple(slopes) if inside else (),
            good=self._good(slopes, error),
            carry=handed,
            again=again,
            nfe=jnp.int32(n_stages) - saved,
        )

    def _first(self, evaluate: Evaluate, x: PyTree, held: Held, smooth: bool) -> tuple[Stage, Any]:
        """The first stage, evaluated where it is not known, and the evaluations saved."""
        if self._hands_on(smooth):
            return held.first, 1

        def missing() -> Stage:
            new = evaluate(START, x)
            return jax.tree.map(lambda a, b: jnp.where(held.known, a, b), held.first, new)

        first = jax.lax.cond(any_lane(~held.known), missing, lambda: held.first)
        return first, held.known.astype(jnp.int32)

    def _good(self, slopes: list[PyTree], error: bool) -> Any:
        # An infinite slope of weight zero may still saturate the field in a later stage, and leave no trace.
        b_error = self.tableau.b_error if error and self.tableau.b_error else (0,) * len(slopes)
        hidden = [k for k, b, e in zip(slopes, self.tableau.b, b_error, strict=False) if b == 0 and e == 0]
        return all_finite(hidden) if hidden else None

    def advance(self, evaluate: Evaluate, x: PyTree, h: Any, *, error: Any = False) -> tuple[PyTree, PyTree]:
        """A step with one compiled evaluation of the field, whichever the stage; equal to `step` to rounding.

        Compiles several times faster than `step`, and takes longer by what it costs to sum over all stages in every
        one of them.
        """
        tableau, asked = self.tableau, error is not False
        n = tableau.n_stages if asked else self.n_evaluations
        a = np.zeros((n, n))
        for i, row in enumerate(tableau.a[:n]):
            a[i, :i] = [float(entry) for entry in row]
        c = np.array([float(entry) for entry in tableau.c[:n]])

        def stage(i: jax.Array, slopes: PyTree) -> PyTree:
            node = (jnp.asarray(c, jnp.result_type(float))[i], 1)
            k, _ = evaluate(node, _moved_along(x, h, jnp.asarray(a)[i], slopes))
            return write(slopes, i, k)

        slopes = jax.tree.map(jnp.zeros_like, room(n - 1, x))
        slopes = jax.lax.fori_loop(0, jnp.where(error, n, self.n_evaluations), stage, slopes)
        along = lambda start, weights: _moved_along(start, h, np.array([float(w) for w in weights[:n]]), slopes)
        zero = jax.tree.map(jnp.zeros_like, x)
        return along(x, tableau.b), along(zero, tableau.b_error) if asked and tableau.b_error else None

    def interpolate(self, inside: PyTree, x: PyTree, h: Any, s: Any) -> PyTree:
        """The state inside a step, by the tableau's own interpolant: x(t_n + s h) = x_n + h * sum_i b_i(s) k_i."""
        used = []
        for polynomial, k in zip(self.tableau.b_dense or (), inside, strict=True):
            if any(polynomial):
                weight: Any = jnp.zeros_like(s)
                for coefficient in reversed(polynomial):
                    weight = (weight + float(coefficient)) * s
                used.append((weight, k))

        def leaf(a: jax.Array, *ks: jax.Array) -> jax.Array:
            total = sum((jnp.asarray(w, a.dtype) * k for (w, _), k in zip(used, ks, strict=True)), jnp.zeros_like(a))
            return a + jnp.asarray(h, a.dtype) * total

        return jax.tree.map(leaf, x, *(k for _, k in used))


def as_runge_kutta(scheme: RungeKutta | Tableau | str) -> RungeKutta:
    """The scheme of a tableau or of its key, or itself: what schemes that are made of one take."""
    return scheme if isinstance(scheme, RungeKutta) else RungeKutta(get_tableau(scheme))


def node_of(c: Number) -> Node:
    """A node of a tableau, as the fraction that it is."""
    if c == 1:
        return END
    fraction = Fraction(c)
    return fraction.numerator, fraction.denominator


def all_finite(*trees: PyTree) -> jax.Array:
    """Whether every entry of every array is finite; a boolean scalar."""
    leaves = [leaf for leaf in jax.tree.leaves(trees) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    # 0 times what is not finite is NaN. Sums of numbers compile to fewer and faster loops than those of booleans.
    zeros = [jnp.sum(0 * jax.lax.stop_gradient(leaf)).real.astype(jnp.float32) for leaf in leaves]
    return jnp.isfinite(sum(zeros)) if leaves else jnp.asarray(True)


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


def _moved_along(x: PyTree, h: Any, weights: Any, slopes: PyTree) -> PyTree:
    def leaf(x: jax.Array, k: jax.Array) -> jax.Array:
        return x + jnp.asarray(h, x.dtype) * weighted_sum(jnp.asarray(weights, x.dtype), k)

    return jax.tree.map(leaf, x, slopes)


def weighted_sum(weights: jax.Array, slopes: jax.Array) -> jax.Array:
    """sum_i weights_i slopes_i, `[S]` and `[S, ...]` to `[...]`, in the full precision of its arguments."""
    # Accelerators would otherwise round the factors of a product of matrices.
    return jnp.tensordot(weights, slopes, 1, precision=jax.lax.Precision.HIGHEST)
