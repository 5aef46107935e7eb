"""Solvers of diffrax as schemes: one step of theirs, in loops and under gradient methods of ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ode_nets.arguments import Positive, checked
from ode_nets.interop.guard import calm, guard
from ode_nets.stepping import END, START, Evaluate, OneState, RungeKutta, Stage, Step, combine
from ode_nets.tableaus import Number, Tableau

PyTree = Any
_FROM_CONTROLLER: Any = diffrax.ImplicitEuler().root_finder.rtol
"""What stands for a tolerance that diffrax takes from its controller."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
@checked
class DiffraxScheme(OneState):
    """The steps of a diffrax solver, wherever `FixedStep` and `Adaptive` take a scheme.

    Explicit Runge-Kutta solvers are taken by their tableau and cost what ours do. Of any other solver `step` is called:
    in the step's own time s from 0 to 1, each step by itself; roots are differentiated by the implicit function
    theorem. A step whose root was not found is rejected, and on a uniform grid ends in `Result.NON_FINITE`.

    What a field reports (`has_aux`) is summed over the stages that the state depends on, for an explicit Runge-Kutta
    solver. The stages of any other cannot be seen: there the field is evaluated once more at the end of each
    step, and that one report counts. `Solution.nfe` of those is -1.

    Args:
      solver: a `diffrax.AbstractSolver` for ordinary differential equations of one term.
      rtol, atol: tolerances of the roots of an implicit solver, where it would take those of diffrax's controller.
        `None` for 1e-4, or the square root of the state's precision where that is more (3e-4 in float32), and for a
        thousandth of rtol. diffrax stops at a hundredth of them, and its `VeryChord` gives up on tighter ones soon.

    States of less precision than float32, or of several precisions, are solved for in float32, or in the highest of
    them, where the solver is no explicit Runge-Kutta solver.

    Raises:
      ValueError: for anything else, solvers of stochastic and split equations, and those whose state is more than a
        start that can be computed again (`ReversibleHeun`, `LeapfrogMidpoint`); for tolerances that are not above 0.

    Example:
        >>> import diffrax
        >>> from ode_nets import FixedStep, solve
        >>> solver = FixedStep(DiffraxScheme(diffrax.ImplicitEuler()), 1)
        >>> round(float(solve(lambda t, x, k: -k * x, 1.0, 1.0, solver=solver).x), 5)
        0.5
    """

    solver: Any
    rtol: Positive | None = None
    atol: Positive | None = None

    def __post_init__(self) -> None:
        _refuse(self.solver)
        key = (type(self), values_of(self.solver), self.rtol, self.atol)
        object.__setattr__(self, "_key", key)
        object.__setattr__(self, "_explicit", explicit(self.solver))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DiffraxScheme) and self._key == other._key  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash(self._key)  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return f"DiffraxScheme({self.name})"

    @property
    def name(self) -> str:
        """That of the solver's class."""
        return type(self.solver).__name__

    @property
    def runge_kutta(self) -> RungeKutta | None:
        """The same steps as a scheme of ours, where the solver is an explicit Runge-Kutta one."""
        return self._explicit  # type: ignore[attr-defined]

    @property
    def order(self) -> int:
        """That which the solver claims."""
        return int(self.solver.order(_NO_TERM) or 1)

    @property
    def error_order(self) -> int | None:
        """One less than that of diffrax, which counts the power of h in the error of a step; `None` without error."""
        if not isinstance(self.solver, diffrax.AbstractAdaptiveSolver):
            return None
        order: Any = self.solver.error_order(_NO_TERM)
        return None if order is None else max(int(order) - 1, 1)

    interpolates = True
    """Whether states inside a step can be asked for: every solver of diffrax has an interpolant."""

    @property
    def n_evaluations(self) -> int | None:
        """Stages that the state depends on; `None` unless the solver is an explicit Runge-Kutta one."""
        return None if self.runge_kutta is None else self.runge_kutta.n_evaluations

    def start(self, evaluate: Evaluate, x: PyTree, first: Stage | None, smooth: bool) -> tuple[PyTree, int]:
        """What the scheme of ours starts with; otherwise nothing, since every step stands by itself."""
        if self.runge_kutta is not None:
            return self.runge_kutta.start(evaluate, x, first, smooth)
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
        """One step; see `Scheme.step`."""
        if self.runge_kutta is not None:
            return self.runge_kutta.step(evaluate, x, h, carry, error=error, inside=inside, smooth=smooth)
        after, y_error, within, good = self._call(evaluate, x, h)
        shapes = jax.eval_shape(lambda: evaluate(START, x)[1])
        return Step(
            x=after,
            error=y_error if error else None,
            aux=evaluate(END, after)[1] if jax.tree.leaves(shapes) else shapes,
            inside=within if inside else (),
            good=good,
            carry=carry,
            again=carry,
            nfe=jnp.int32(0),
        )

    def _call(self, evaluate: Evaluate, x: PyTree, h: Any) -> tuple[PyTree, PyTree, PyTree, jax.Array]:
        """The solver's own step: state, error, what lies inside, and whether it succeeded."""
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(x))
        solver = filled(self.solver, *tolerances(x, self.rtol, self.atol))
        implicit = isinstance(solver, diffrax.AbstractImplicitSolver)
        # Leaves alone: Equinox takes a container without any for a leaf.
        leaves, structure = jax.tree.flatten(x)
        start = [leaf.astype(dtype) for leaf in leaves]
        time = jnp.result_type(float)
        zero, one = jnp.zeros((), time), jnp.ones((), time)

        def slope(s: Any, y: list[jax.Array]) -> list[jax.Array]:
            dx = evaluate((jnp.asarray(s, time), 1), cast_like(jax.tree.unflatten(structure, y), x))[0]
            return [leaf.astype(dtype) for leaf in jax.tree.leaves(dx)]

        # What the field depends on turns into leaves of the term, where the solver of a root looks for it.
        slope = calm(slope) if implicit else slope
        field = eqx.filter_closure_convert(lambda s, y, args: slope(s, y), zero, start, None)
        term = Term(field, jnp.asarray(h, time))
        state = solver.init(term, zero, one, start, None)
        after, error, inside, _, result = solver.step(term, zero, one, start, None, state, False)
        good = jnp.asarray(result == diffrax.RESULTS.successful)
        if implicit:
            after, inside = guard((after, inside), (x, evaluate(START, x)[0]))
        whole = lambda y: cast_like(jax.tree.unflatten(structure, y), x)
        error = None if error is None else whole([jnp.where(good, leaf, jnp.inf) for leaf in error])
        return whole(after), error, inside, good

    def advance(self, evaluate: Evaluate, x: PyTree, h: Any, *, error: Any = False) -> tuple[PyTree, PyTree]:
        """The state after one step by itself and its error; infinite where the step failed."""
        if self.runge_kutta is not None:
            return self.runge_kutta.advance(evaluate, x, h, error=error)
        after, y_error, _, _ = self._call(evaluate, x, h)
        return after, None if error is False else y_error

    def interpolate(self, inside: PyTree, x: PyTree, h: Any, s: Any) -> PyTree:
        """The state at a fraction s of a step, by the solver's interpolant."""
        if self.runge_kutta is not None:
            after = combine(x, h, self.runge_kutta.tableau.b, inside)
            increments = lambda *ks: jnp.asarray(h, ks[0].dtype) * jnp.stack(ks)
            inside = within(self.solver, x, after, jax.tree.map(increments, *inside))
            inside = {name: jax.tree.leaves(tree) for name, tree in inside.items()}
        s = jnp.asarray(s, jnp.result_type(float))
        interpolant: Any = self.solver.interpolation_cls(t0=jnp.zeros_like(s), t1=jnp.ones_like(s), **inside)
        return cast_like(jax.tree.unflatten(jax.tree.structure(x), interpolant.evaluate(s)), x)


class Term(diffrax.AbstractTerm):
    """The right-hand side of an ordinary differential equation, in the dtypes of the state whatever those of time."""

    field: Any
    h: Any = None
    """Size of the step in whose own time, from 0 to 1, it is told; `None` for the time of the problem."""

    def vf(self, t: Any, y: PyTree, args: PyTree) -> PyTree:
        """The slope, not scaled by the step: what a solver hands on holds for a step of another size."""
        return self.field(t, y, args)

    def contr(self, t0: Any, t1: Any, **kwargs: Any) -> Any:
        """Time that passes."""
        return t1 - t0 if self.h is None else self.h * (t1 - t0)

    def prod(self, vf: PyTree, control: Any) -> PyTree:
        """Increment of the state."""
        return jax.tree.map(lambda leaf: jnp.asarray(control, leaf.dtype) * leaf, vf)


_NO_TERM = Term(None)


def within(solver: Any, y: PyTree, y_next: PyTree, increments: PyTree) -> dict[str, PyTree]:
    """What the interpolant of an explicit Runge-Kutta step is made of; `increments` are stacked, one a stage."""
    return {"y0": y, "y1": y_next} | ({} if isinstance(solver, diffrax.Euler) else {"k": increments})


def cast_like(tree: PyTree, x: PyTree) -> PyTree:
    """The same numbers in the dtypes of a state."""
    return jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), tree, x)


def values_of(*parts: Any) -> tuple[Any, ...]:
    """All that parts of diffrax are, hashable: they may hold arrays, such as jump times, which are not."""
    leaves, structure = jax.tree.flatten(parts)
    plain = lambda leaf: (leaf.shape, str(leaf.dtype), np.asarray(leaf).tobytes()) if eqx.is_array(leaf) else leaf
    return structure, *map(plain, leaves)


def explicit(solver: diffrax.AbstractSolver) -> RungeKutta | None:
    """An explicit Runge-Kutta solver as a scheme of ours; `None` for any other.

    The claims about its order stay with the solver: of the tableau only the consistency is checked.
    """
    kind: Any = type(solver)
    if kind is diffrax.Euler:
        return RungeKutta(Tableau("Euler", ((),), (1,), (0,), order=1))
    tableau = getattr(kind, "tableau", None)
    # A step of its own would be taken as something else.
    plain = issubclass(kind, diffrax.AbstractERK) and kind.step is diffrax.AbstractERK.step
    if not plain or not isinstance(tableau, diffrax.ButcherTableau):
        return None
    numbers = lambda values: tuple(float(value) for value in values)
    return RungeKutta(
        Tableau(
            name=kind.__name__,
            a=((), *(numbers(row) for row in tableau.a_lower)),
            b=numbers(tableau.b_sol),
            c=(0, *(_node(float(value)) for value in tableau.c)),
            order=1,
            b_error=numbers(tableau.b_error),
            embedded_order=1,
        )
    )


def _node(c: float) -> Number:
    """A node as the fraction that it stands for, by which weights are read exactly."""
    fraction = Fraction(c).limit_denominator(1000)
    return fraction if float(fraction) == c else c


def tolerances(x: PyTree, rtol: float | None, atol: float | None) -> tuple[float, float]:
    """Those given, or the defaults for a state."""
    eps = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(x))
    rtol = max(1e-4, eps**0.5) if rtol is None else rtol
    return rtol, 1e-3 * rtol if atol is None else atol


def filled(solver: Any, rtol: float, atol: float, both: bool = True) -> Any:
    """The solver with tolerances where a controller would fill them in; with `both`, loops of both derivatives."""
    norm: Callable = diffrax.VeryChord(rtol=rtol, atol=atol).norm
    given = {"rtol": rtol, "atol": atol, "norm": norm}

    def fill(path: Any, leaf: Any) -> Any:
        name = getattr(path[-1], "name", None) if path else None
        if leaf is _FROM_CONTROLLER:
            return given[name]  # type: ignore[index]
        return "bounded" if both and leaf is None and name == "scan_kind" else leaf

    return jax.tree_util.tree_map_with_path(fill, solver, is_leaf=lambda leaf: leaf is None)


def _refuse(solver: Any) -> None:
    if not isinstance(solver, diffrax.AbstractSolver) or isinstance(solver, type):
        raise ValueError(f"solver={solver!r}: expected a diffrax.AbstractSolver such as diffrax.Kvaerno5()")
    name = type(solver).__name__
    if isinstance(solver, diffrax.ReversibleHeun | diffrax.LeapfrogMidpoint):
        raise ValueError(
            f"solver={name}: its steps hand on a state that no step by itself can compute again; use "
            f"DiffraxSolver(diffrax.{name}(), ...), which runs diffrax's own loop"
        )
    if solver.term_structure is not diffrax.AbstractTerm:
        raise ValueError(
            f"solver={name}: it takes stochastic or split equations, of several terms, and this problem has one; use a "
            "solver for ordinary differential equations such as diffrax.Tsit5() or diffrax.Kvaerno5()"
        )
