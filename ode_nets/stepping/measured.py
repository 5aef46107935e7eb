"""Schemes that add up what their own steps tell of the equation: local error and stiffness."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ode_nets.stepping.runge_kutta import OfTableau, as_runge_kutta, combine
from ode_nets.stepping.scheme import Evaluate, OneState, PyTree, Stage, Step, judged
from ode_nets.tableaus import Tableau
from ode_nets.trees import Unjudged, root, squares

LOCAL_ERROR, STIFFNESS = "local_error", "stiffness"
"""Names of the quantities that a `Measured` scheme adds to."""


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Quantified:
    """A state with quantities beside it that are integrated along its solution, and leave its steps as they are.

    Attributes:
      x: the state.
      q: scalars by name. They have no say in the sizes of steps.

    Example:
        >>> Quantified(1.0, {"stiffness": 0.0}).q
        {'stiffness': 0.0}
    """

    x: PyTree
    q: dict[str, Any]

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        """For JAX."""
        return ((jax.tree_util.GetAttrKey("x"), self.x), (jax.tree_util.GetAttrKey("q"), Unjudged(self.q))), None

    @classmethod
    def tree_unflatten(cls, _: None, children: Any) -> Quantified:
        """For JAX."""
        x, q = children
        return cls(x, q.value if isinstance(q, Unjudged) else q)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Measured(OfTableau, OneState):
    """A Runge-Kutta scheme that integrates estimates of its own steps beside the state (after Pal et al. 2021).

        local_error += |h| * ||h * sum_i (b_i - bhat_i) k_i||
        stiffness   += |h| * ||k_i - k_j|| / ||u_i - u_j||   with u_i, u_j two stages at one time, k their slopes

    with root mean squares over all entries. They are added to the quantities of those names of a `Quantified` state
    (see `with_quantities`), part of the step like the state itself, so that methods that go back over the steps of a
    solve differentiate them. They are no integrals of a field: the continuous adjoint cannot, and refuses.

    Args:
      scheme: the key of a tableau, a `Tableau`, or its `RungeKutta`; local errors need embedded weights, and stiffness
        two stages at one time (`"dopri5"`, `"tsit5"`, `"rk4"`).

    A step costs `n_stages` evaluations of the tableau where local errors are asked for.

    Raises:
      ValueError: at trace time, for a state without such quantities, and for quantities that the tableau cannot give.

    Example:
        >>> from ode_nets import Adaptive, of_steps, solve, with_quantities
        >>> system = with_quantities(lambda t, x, k: -k * x, stiffness=of_steps)
        >>> solution = solve(system, system.start(1.0), 3.0, solver=Adaptive(Measured("tsit5")), t1=2.0)
        >>> round(float(solution.x.q["stiffness"]), 3)
        6.0
    """

    scheme: Any

    of_field_alone: ClassVar[bool] = True
    """Whether its steps are no steps of other fields."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "scheme", as_runge_kutta(self.scheme))

    def __repr__(self) -> str:
        return f"Measured({self.scheme.name})"

    @property
    def name(self) -> str:
        """That of the tableau, measured."""
        return repr(self)

    @property
    def tableau(self) -> Tableau:
        """That of the scheme."""
        tableau: Tableau = self.scheme.tableau
        return tableau

    @property
    def n_evaluations(self) -> int:
        """All stages: estimates are made of those too that the state does not depend on."""
        return self.tableau.n_stages

    def start(self, evaluate: Evaluate, x: PyTree, first: Stage | None, smooth: bool) -> tuple[PyTree, int]:
        """What the scheme of the tableau starts with."""
        first = None if first is None else (_without(first[0]), first[1])
        return self.scheme.start(_of_field(evaluate), self._checked(x), first, smooth)

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
        """One step, and what it adds to the estimates; see `Scheme.step`."""
        error |= LOCAL_ERROR in self._checked(x).q
        step = self.scheme.step(_of_field(evaluate), x, h, carry, error=error, inside=True, smooth=smooth)
        added = self._added(x, h, step)
        after = Quantified(step.x.x, _plus(step.x.q, added))
        return step._replace(x=after, inside=(step.inside, added) if inside else ())

    def _added(self, x: Quantified, h: Any, step: Step) -> dict[str, Any]:
        added = {}
        if LOCAL_ERROR in x.q:
            added[LOCAL_ERROR] = _mean(step.error.x)
        if STIFFNESS in x.q:
            i, j = self._twins()
            a, slopes = self.tableau.a, [k.x for k in step.inside]
            between = jax.tree.map(
                jnp.subtract, combine(None, h, a[j], slopes), combine(None, h, a[i], slopes) if any(a[i]) else 0
            )
            apart = _mean(between)
            ratio = _mean(jax.tree.map(jnp.subtract, slopes[j], slopes[i])) / jnp.where(apart == 0, 1, apart)
            added[STIFFNESS] = jnp.where(apart == 0, 0, ratio)
        return {name: jnp.abs(h).astype(value.dtype) * value for name, value in added.items()}

    def _twins(self) -> tuple[int, int]:
        """The last two stages at one time."""
        c = self.tableau.c
        pairs = [(i, j) for j in range(len(c)) for i in range(j) if c[i] == c[j]]
        if not pairs:
            raise ValueError(
                f"{STIFFNESS!r} with scheme {self.scheme.name!r}: it has no two stages at one time; use dopri5, "
                "tsit5 or rk4"
            )
        return pairs[-1]

    def _checked(self, x: PyTree) -> Quantified:
        if not isinstance(x, Quantified) or not {LOCAL_ERROR, STIFFNESS} & set(x.q):
            raise ValueError(
                f"scheme {self!r} on a state that is a {type(x).__name__}: expected that of with_quantities(field, "
                f"{LOCAL_ERROR}=of_steps) or {STIFFNESS}=of_steps"
            )
        return x

    def advance(self, evaluate: Evaluate, x: PyTree, h: Any, *, error: Any = False) -> tuple[PyTree, PyTree]:
        """The state of `step`, and its error."""
        return judged(self.step(evaluate, x, h, error=error is not False))

    def interpolate(self, inside: PyTree, x: PyTree, h: Any, s: Any) -> PyTree:
        """The state inside a step, by the tableau's interpolant; estimates grow evenly."""
        stages, added = inside
        state = self.scheme.interpolate(stages, x, h, s)
        part = {name: s.astype(value.dtype) * value for name, value in added.items()}
        return Quantified(state.x, _plus(state.q, part))


def _of_field(evaluate: Evaluate) -> Evaluate:
    """The field, to whom estimates of steps mean nothing."""

    def wrap(slope: Callable[[PyTree], Stage]) -> Callable[[PyTree], Stage]:
        def evaluated(x: PyTree) -> Stage:
            dx, aux = slope(x)
            return _without(dx), aux

        return evaluated

    return evaluate.through(wrap)


def _without(dx: Quantified) -> Quantified:
    names = {LOCAL_ERROR, STIFFNESS} & set(dx.q)
    return Quantified(dx.x, dx.q | {name: jnp.zeros_like(dx.q[name]) for name in names})


def _plus(q: dict[str, Any], added: dict[str, Any]) -> dict[str, Any]:
    return q | {name: q[name] + value.astype(q[name].dtype) for name, value in added.items()}


def _mean(tree: PyTree) -> jax.Array:
    """Root mean square of all entries, of derivative 0 where it is 0."""
    return root(squares(tree) / sum(leaf.size for leaf in jax.tree.leaves(tree)))
