"""Gradients without stored states: steps are undone, one after the other."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from ode_nets.gradients.back import Cotangents, Point, Pull, round_of, solve_and_return
from ode_nets.integrate import Problem, Solution, Solver
from ode_nets.integrate.loop import Keeper
from ode_nets.integrate.problem import Place, evaluator
from ode_nets.integrate.uniform import Clock
from ode_nets.lanes import longest, read, room, select, this_lane, write
from ode_nets.trees import Packing

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Reversible:
    """Go back over the steps by undoing them (McCallum and Foster 2024): the gradient of the solve as it ran.

        x_n = inverse(x_{n+1}),  dL/dx_n = dL/dx_{n+1} dx_{n+1}/dx_n  for n = N - 1, ..., 0

    No state is kept but the last, whatever the number of steps: memory is that of one step, and for grids that find
    their steps one number each, room for `max_steps` of them. Each step back costs the inverse step, the step once
    more, and one vector-Jacobian product. Measured on two cores (benchmarks/results/reversible_cpu.json) beside
    `Checkpointed()` on the same scheme: 10,000 steps of a small MLP take 0.05 MiB for 78 and 1.03 times the seconds,
    100 steps of the NODE18 field 10 MiB for 60 and 1.04 times the seconds. The gradient is that of `Direct` on the same
    scheme, but for the rounding of the states that come back, which may grow with the number of steps. Reverse mode
    only.

    The scheme must be one whose steps can be undone, such as `Coupled("midpoint")`, which says what that costs in
    stability: stiff decay is not for it.

    Example:
        >>> import jax
        >>> from ode_nets import Adaptive, Coupled, Reversible, solve
        >>> solver = Adaptive(Coupled("bosh3"), rtol=1e-5)
        >>> end = lambda k: solve(lambda t, x, k: -k * x, 1.0, k, solver=solver, gradient=Reversible()).x
        >>> round(float(jax.grad(end)(1.0)), 3)
        -0.368
    """

    marks_failed: ClassVar[bool] = True
    """Whether derivatives of a solve that failed are NaN without more ado."""

    def refuses(self, solver: Solver, dense: bool) -> str | None:
        """Schemes whose steps cannot be undone."""
        if solver.scheme.inverts:
            return None
        return (
            f"gradient=Reversible() with scheme {solver.scheme.name!r}: its steps cannot be undone; use a "
            "reversible scheme such as Coupled('midpoint'), or gradient=ACA() or Checkpointed()"
        )

    def run(self, problem: Problem, solver: Solver, dense: bool = False) -> Solution:
        """Solve `problem` with `solver`."""
        return solve_and_return(problem, solver, dense, repr(self), _keeper, _walk)


class Kept(NamedTuple):
    """What the forward pass leaves for the backward one."""

    round: jax.Array
    """Number of the one at hand."""
    step: jax.Array
    """Steps accepted before it."""
    starts: Any
    """Where rounds begin, `[max_steps]`, and a spare row; `None` where the solver knows its steps."""


def _keeper(problem: Problem, solver: Solver) -> Keeper:
    def begin(clock: Clock, x: PyTree) -> Kept:
        starts = None if solver.recorded else room(solver.bound, clock.tau)
        return Kept(jnp.int32(0), clock.step, starts)

    def keep(kept: Kept, clock: Clock, x: PyTree, mine: Any) -> Kept:
        i = round_of(kept, clock)
        starts = None if kept.starts is None else write(kept.starts, i, clock.tau)
        return Kept(i, clock.step, starts)

    return Keeper(begin, keep)


def _walk(problem: Problem, solver: Solver, kept: Kept, end: Point, pull: Pull, start: Cotangents) -> Cotangents:
    """By steps that are undone."""
    clocks = Packing(end.clock)

    def before(i: jax.Array, point: Point) -> Point:
        """The point before round i: where it is for a lane that took no step in it."""
        clock, x = point
        if kept.starts is None:
            place, moved = solver.place(problem, i, None, None, None), i < clock.step
        else:
            tau = read(kept.starts, i)
            place, moved = Place(tau, clock.tau - tau, clock.tau), tau < clock.tau
        undone = solver.scheme.inverse(evaluator(problem, place), x, place.shift(problem))
        earlier = Point(clock._replace(tau=place.tau, step=clock.step - 1), undone)
        return select(this_lane(moved), earlier, point)

    def body(carry: Any) -> Any:
        i, x, ct = carry
        point = before(i, Point(clocks.unpack(ct.after), x))
        return i - 1, point.x, pull(i, point, ct, True)

    last = longest(round_of(kept, end.clock)) - 1
    return jax.lax.while_loop(lambda carry: carry[0] >= 0, body, (last, end.x, start))[2]
