"""The naive method: the search for step sizes is differentiated too."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ode_nets.gradients.outputs import follow_times
from ode_nets.gradients.replay import asked_states, row_of
from ode_nets.integrate import Problem, Solution, Solver
from ode_nets.integrate.loop import Asked, Run, State, finish, take
from ode_nets.integrate.program import zeros_of
from ode_nets.lanes import any_lane, vary

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Naive:
    """Differentiate everything that an adaptive solver does (ACA sec. 3.2, "naive method"), to be compared with.

        h_{k+1} = h_k factor(E_k),  E_k = E(x_k, h_k, theta):  dL/dtheta includes dL/dh_k dh_k/dtheta

    The size of every trial is a function of the errors before it, rejected trials included, up to the first step: what
    comes back is the derivative of the program, tolerances included, and not of the solution. That is a chain as deep
    as all trials together. The value is that of every other method. It keeps all that every trial kept: memory
    O(trials * stages * activations of the field), with room for `max_steps` of them. Works in forward and in reverse
    mode. Where a trial has left the finite numbers, the gradient in reverse mode is NaN.

    Example:
        >>> import jax
        >>> from ode_nets import Adaptive, Naive, solve
        >>> solver = Adaptive("heun_euler", rtol=1e-2, max_steps=50)
        >>> end = lambda k: solve(lambda t, x, k: -k * x, 1.0, k, solver=solver, gradient=Naive()).x
        >>> bool(abs(jax.grad(end)(1.0) + 0.3679) < 0.01)
        True
    """

    forward_mode: ClassVar[bool] = True
    """Whether it works in forward mode too."""

    def refuses(self, solver: Solver, dense: bool) -> str | None:
        """Solvers that do not search for their steps."""
        if not solver.recorded:
            return None
        return (
            f"gradient=Naive() with solver={solver!r}: its steps are known before they are taken, and there is no "
            "search to differentiate; use Adaptive(scheme, rtol, atol), or gradient=Direct()"
        )

    def run(self, problem: Problem, solver: Solver, dense: bool = False) -> Solution:
        """Solve `problem` with `solver`."""
        inside = dense or not solver.lands(problem)
        clock, carry, nfe = solver.begin(problem)
        start = State(clock, solver.scheme.lift(problem.x0), carry, zeros_of(problem.aux_shapes()), nfe)

        def aimed(state: State) -> State:
            if problem.ts is None:
                return state
            ts, tau = jax.lax.stop_gradient((problem.ts, state.clock.tau))
            cursor = jnp.searchsorted(ts, tau, side="right").astype(jnp.int32)
            return state._replace(clock=state.clock._replace(cursor=cursor))

        def trial(state: State) -> tuple[State, PyTree]:
            after, taken = take(problem, solver, state, inside, hold=False)
            return aimed(after), row_of(problem, solver, taken.place, state.x, taken.step, inside)

        def body(state: State, _: None) -> tuple[State, PyTree]:
            nothing = vary(zeros_of(jax.eval_shape(trial, state)[1]), problem.x0)
            going = any_lane(solver.running(state.clock))
            after, row = jax.lax.cond(going, trial, lambda state: (state, nothing), state)
            return after, (row, after.clock.tau, after.clock.step > state.clock.step)

        end, (rows, ends, accepted) = jax.lax.scan(body, vary(aimed(start), problem.x0), None, length=solver.bound)
        # Accepted steps first, in their order, as other methods have them.
        order = jnp.argsort(~accepted, stable=True)
        rows, ends = jax.tree.map(lambda leaf: leaf[order], (rows, jax.lax.stop_gradient(ends)))
        n = end.clock.step
        states = None if problem.ts is None else asked_states(problem, solver, rows, n, ends)
        run = Run(end._replace(carry=None), Asked(states, rows.inside if dense else None))
        return follow_times(problem, solver, finish(problem, solver, vary(run, problem.x0)))
