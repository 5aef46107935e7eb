"""Schemes whose tableau is arrays: many schemes in one compiled program."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ode_nets.lanes import any_lane, room, select, this_lane, vary, write
from ode_nets.stepping.runge_kutta import RungeKutta, all_finite, weighted_sum
from ode_nets.stepping.scheme import Evaluate, OneState, PyTree, Stage, Step
from ode_nets.trees import pytree

_DENOMINATOR = 2**15


@pytree("a", "b", "numerators", "denominators", "n_stages")
@dataclasses.dataclass(frozen=True, eq=False)
class TracedTableau(OneState):
    """An explicit Runge-Kutta scheme as arrays, padded with stages that are never evaluated.

    Made by `pad_scheme`. A program compiled for S stages serves every scheme of at most S, and costs each its own
    evaluations. Mapped with `jax.vmap`, all evaluate as many stages as the longest.

    Attributes:
      a, b: coefficients, float `[S, S]` and `[S]`.
      numerators, denominators: nodes as fractions, int32 `[S]`, so that intervals of weights are found exactly.
      n_stages: int32 scalar.

    It has no error estimate and no interpolant.

    Example:
        >>> pad(FixedStep("midpoint", 2), n_stages=4).scheme
        TracedTableau(<4 stages>)
    """

    a: Any
    b: Any
    numerators: Any
    denominators: Any
    n_stages: Any

    name = "traced"
    order = 1  # of the lowest that it may stand for
    error_order = None
    interpolates = False

    def __repr__(self) -> str:
        return f"TracedTableau(<{jnp.shape(self.b)[-1]} stages>)"

    @property
    def n_evaluations(self) -> Any:
        """Stages, an array."""
        return self.n_stages

    def start(self, evaluate: Evaluate, x: PyTree, first: Stage | None, smooth: bool) -> tuple[PyTree, int]:
        """Nothing: every step stands by itself."""
        return (), 0

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
        """One step, a loop over its stages; see `Scheme.step`."""
        size = jnp.shape(self.b)[-1]
        # Like the entries of a static tableau, and under every gradient method.
        a, b = (jax.lax.stop_gradient(jnp.asarray(v, jnp.result_type(float))) for v in (self.a, self.b))

        def along(row: Any, slopes: PyTree) -> PyTree:
            return jax.tree.map(lambda x, k: x + weighted_sum((h * row).astype(x.dtype), k), x, slopes)

        def body(carry: Any, inputs: Any) -> Any:
            i, row, node = inputs

            mine = this_lane(i < self.n_stages)

            def evaluated(slopes: PyTree, total: PyTree, good: Any) -> Any:
                dx, aux = evaluate(node, along(row, slopes))
                dx = select(mine, dx, jax.tree.map(jnp.zeros_like, dx))
                total = select(mine, jax.tree.map(jnp.add, total, aux), total)
                return write(slopes, i, dx), total, good & all_finite(dx)

            return jax.lax.cond(any_lane(i < self.n_stages), evaluated, lambda *same: same, *carry), None

        shapes = jax.eval_shape(lambda: evaluate((0, 1), x)[1])
        total = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        slopes = jax.tree.map(jnp.zeros_like, room(size - 1, x))
        rows = (
            jnp.arange(size, dtype=jnp.int32),
            a,
            (jnp.asarray(self.numerators), jnp.asarray(self.denominators)),
        )
        carried = vary((slopes, total, jnp.asarray(True)), x)
        (slopes, total, good), _ = jax.lax.scan(body, carried, rows)
        end = along(b, slopes)
        return Step(end, None, total, (), good, carry, carry, jnp.asarray(self.n_stages, jnp.int32))

    def advance(self, evaluate: Evaluate, x: PyTree, h: Any, *, error: Any = False) -> tuple[PyTree, PyTree]:
        """The state of `step`, which is a loop already."""
        return self.step(evaluate, x, h).x, None

    def interpolate(self, inside: PyTree, x: PyTree, h: Any, s: Any) -> PyTree:
        """Not offered."""
        raise ValueError("a TracedTableau has no interpolant; use a scheme of SCHEMES")


def pad_scheme(scheme: RungeKutta, n_stages: int) -> TracedTableau:
    """A scheme as arrays with room for `n_stages` stages.

    Nodes with denominators above 32768 (those of Tsitouras) are rounded down to a multiple of 1 / 32768, so
    their stage times are early by at most 3e-5 of a step.

    Raises:
      ValueError: if the scheme has more stages than that.
    """
    tableau, used = scheme.tableau, scheme.n_evaluations
    if used > n_stages:
        raise ValueError(f"n_stages={n_stages}: {tableau.name!r} needs {used}")
    nodes = [_below(Fraction(c)) for c in tableau.c[:used]] + [Fraction(0)] * (n_stages - used)
    a, b = np.zeros((n_stages, n_stages)), np.zeros(n_stages)
    b[:used] = [float(v) for v in tableau.b[:used]]
    for i, row in enumerate(tableau.a[:used]):
        a[i, : len(row)] = [float(v) for v in row]
    return TracedTableau(
        a=a,
        b=b,
        numerators=np.array([c.numerator for c in nodes], np.int32),
        denominators=np.array([c.denominator for c in nodes], np.int32),
        n_stages=np.int32(used),
    )


def _below(node: Fraction) -> Fraction:
    if node.denominator <= _DENOMINATOR:
        return node
    return Fraction(math.floor(node * _DENOMINATOR), _DENOMINATOR)
