"""Hypersolvers: an explicit scheme with a learned correction of its leading error, and the loss that trains it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ode_nets.arguments import checked
from ode_nets.lanes import read
from ode_nets.stepping.runge_kutta import OfTableau, as_runge_kutta
from ode_nets.stepping.scheme import START, Evaluate, OneState, PyTree, Stage, Step, judged
from ode_nets.tableaus import Tableau
from ode_nets.trees import pytree

Correction = Callable[[PyTree, Any, PyTree, PyTree], PyTree]
"""`correction(params, t, x, dx)`, like `x`, at the start of a step."""


@pytree("params")
@dataclasses.dataclass(frozen=True, eq=False)
@checked
class Hyper(OfTableau, OneState):
    """A Runge-Kutta scheme whose steps are corrected (Poli et al. 2020).

        x_{n+1} = x_n + h * sum_i b_i k_i + h^(p+1) g(t_n, x_n, k_1),   p the order of the scheme

    Args:
      scheme: the key of a tableau, a `Tableau`, or its `RungeKutta`.
      correction: g, a pure function `correction(params, t, x, dx)`, like `x`; hashable.
      params: its parameters, any pytree; to train them see `hyper_loss`.

    A gradient of a solve takes the parameters for constants: their training knows the solution, and needs no solve.
    Otherwise it is that of the steps as they were, corrections and all, under methods that go back over them; the
    continuous adjoint solves another system, which no correction was made for, and refuses.

    A step costs the evaluations of the scheme and one of g. An adaptive solver judges it by the error of the scheme.

    Raises:
      ValueError: at trace time, for a correction that is not like the state.

    Example:
        >>> from ode_nets import FixedStep, solve
        >>> exact = Hyper("euler", lambda c, t, x, dx: c * x, 0.5)  # x + h x + h^2 x / 2, the midpoint method
        >>> float(solve(lambda t, x, theta: x, 1.0, solver=FixedStep(exact, 1)).x)
        2.5
    """

    scheme: Any
    correction: Correction
    params: PyTree

    of_field_alone: ClassVar[bool] = True
    """Whether its steps are no steps of other fields."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "scheme", as_runge_kutta(self.scheme))
        object.__setattr__(self, "params", jax.tree.map(jnp.asarray, self.params))

    def __repr__(self) -> str:
        return f"Hyper({self.scheme.name})"

    @property
    def name(self) -> str:
        """That of the tableau, corrected."""
        return repr(self)

    @property
    def tableau(self) -> Tableau:
        """That of the scheme."""
        tableau: Tableau = self.scheme.tableau
        return tableau

    @property
    def n_evaluations(self) -> int:
        """Stages of the tableau."""
        return self.tableau.n_stages

    def start(self, evaluate: Evaluate, x: PyTree, first: Stage | None, smooth: bool) -> tuple[PyTree, int]:
        """What the scheme of the tableau starts with."""
        return self.scheme.start(evaluate, x, first, False)

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
        """One corrected step; see `Scheme.step`."""
        # The last stage of a first-same-as-last pair is not at the corrected state.
        step = self.scheme.step(evaluate, x, h, carry, error=error, inside=True, smooth=False)
        g = self._corrected(jax.lax.stop_gradient(self.params), evaluate.time(START), x, step.inside[0])
        after = _moved(step.x, h ** (self.order + 1), g)
        return step._replace(x=after, inside=(step.inside, g) if inside else ())

    def _corrected(self, params: PyTree, t: Any, x: PyTree, dx: PyTree) -> PyTree:
        shapes = jax.tree.map(jnp.shape, x)
        structure: Any = jax.tree.structure(x)
        g = self.correction(params, t, x, dx)
        if structure != jax.tree.structure(g) or jax.tree.map(jnp.shape, g) != shapes:
            raise ValueError(
                f"the correction of {self!r} gave shapes {jax.tree.map(jnp.shape, g)}: expected {shapes}, those of the "
                "state"
            )
        return g

    def advance(self, evaluate: Evaluate, x: PyTree, h: Any, *, error: Any = False) -> tuple[PyTree, PyTree]:
        """The state of `step`, and its error."""
        return judged(self.step(evaluate, x, h, error=error is not False))

    def interpolate(self, inside: PyTree, x: PyTree, h: Any, s: Any) -> PyTree:
        """The state inside a step: the tableau's interpolant, corrected for a step of size s h."""
        slopes, g = inside
        return _moved(self.scheme.interpolate(slopes, x, h, s), (s * h) ** (self.order + 1), g)


@checked
def hyper_loss(params: PyTree, scheme: Hyper, slope: Callable[[Any, PyTree], PyTree], ts: Any, xs: PyTree) -> jax.Array:
    """How far a correction is from the residuals of its scheme, by mean squares (Poli et al. 2020, residual fitting).

        r_n = (x(t_{n+1}) - x(t_n) - h * sum_i b_i k_i) / h^(p+1),   loss = mean_n |r_n - g(t_n, x(t_n), k_1)|^2

    Args:
      params: of the correction, in place of those of the scheme: what is trained.
      scheme: the hypersolver.
      slope: the field with its weights, `slope(t, x) -> dx`.
      ts: times `[n + 1]`; the steps between them are those that the correction is to be good for.
      xs: the solution there, leaves `[n + 1, ...]`, e.g. of a fine `solve(..., ts=ts)`.

    Returns:
      A scalar, to be differentiated in `params`: any optimizer does the rest.

    Raises:
      ValueError: at trace time, for fewer than two times, and for another number of states.

    Cost: a step of the scheme and an evaluation of g a time, all of them at once.

    Example:
        >>> ts = jnp.linspace(0.0, 1.0, 5)
        >>> scheme = Hyper("euler", lambda c, t, x, dx: c * x, 0.0)
        >>> loss = lambda c: hyper_loss(c, scheme, lambda t, x: x, ts, jnp.exp(ts))
        >>> bool(loss(0.5) < loss(0.0))
        True
    """
    ts = jnp.asarray(ts)
    ts = ts.astype(jnp.promote_types(ts.dtype, jnp.float32))
    if ts.ndim != 1 or len(ts) < 2:
        raise ValueError(f"ts has shape {ts.shape}: expected a vector of two times or more")
    if any(jnp.shape(leaf)[:1] != ts.shape for leaf in jax.tree.leaves(xs)):
        raise ValueError(f"xs has shapes {jax.tree.map(jnp.shape, xs)}: expected one row a time, {len(ts)} of them")

    def square(n: jax.Array) -> jax.Array:
        t, x, h = ts[n], read(xs, n), ts[n + 1] - ts[n]
        time = lambda node: t + node[0] / node[1] * h
        evaluate = Evaluate(lambda node, x: (slope(time(node), x), ()), time)
        step = scheme.scheme.step(evaluate, x, h, inside=True)
        residual = _moved(jax.tree.map(jnp.negative, step.x), 1, read(xs, n + 1))
        g = scheme._corrected(params, t, x, step.inside[0])
        apart = _moved(g, -(h ** -(scheme.order + 1)), residual)
        leaves = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(apart)]
        return sum(leaves[1:], start=leaves[0]) / sum(leaf.size for leaf in jax.tree.leaves(apart))

    return jnp.mean(jax.vmap(square)(jnp.arange(ts.shape[0] - 1)))


def _moved(x: PyTree, factor: Any, direction: PyTree) -> PyTree:
    return jax.tree.map(lambda a, d: a + (jnp.asarray(factor, a.dtype) * d).astype(a.dtype), x, direction)
