"""Adaptation of the step or the tolerance inside the training step of `experiments.train` (Ott algorithm 1).

The step count and the tolerance are arrays, as `FixedStep` and `Adaptive` take them, so no change of them compiles
anything. Measured (`benchmarks.traced_steps`), the one traced program is as fast as a program of its own for each
number of steps, whose compilations it saves. The check every 50 steps is a branch of the compiled training step; it
reads the batch that was just trained on, with running batch statistics.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from experiments.training.config import Config
from ode_nets import ACA, Adaptive, Checkpointed, Direct, FixedStep, get_scheme, validity
from ode_nets.integrate import theta_at

PyTree = Any
EVERY = 50
"""Training steps between two checks (Ott sec. 5)."""


def controller(config: Config) -> validity.Adaptation:
    """The controller of `config.adapt`."""
    if config.adapt == "tolerance":
        return validity.tolerance_adaptation()
    make = validity.settled_step_adaptation if config.adapt == "settled_step" else validity.step_adaptation
    return make(config.adapt_max_steps)


def begin(config: Config, net: Any, variables: PyTree, images: jax.Array) -> dict[str, jax.Array]:
    """State before the first step: Hairer's initial step of the block that needs the shortest, or the tolerance.

    A field that starts at zero (skip-init) has no scale of its own; then it is the step of the settings' n_steps.
    """
    if config.adapt == "tolerance":
        return controller(config).init(net.solver.rtol)._asdict()
    problems = validity.of_model(net, variables, images).problems(FixedStep("euler", 1))
    steps = []
    for problem in problems:
        slope, _ = problem.slope(problem.t0, problem.x0, theta_at(problem.weights, problem.t0))
        moves = jnp.any(jnp.abs(slope) > 0)
        steps.append(jnp.where(moves, validity.first_step(problem, net.solver.scheme.name), 1 / net.solver.n_steps))
    return controller(config).init(jnp.min(jnp.stack(steps)))._asdict()


def solved(net: Any, adaptation: dict[str, Any] | None, room: int = 4096) -> Any:
    """The network with the solver that the adaptation stands at; itself without one.

    `Direct` and `Checkpointed` differentiate a traced number of steps by as many as there is room for, needed or not.
    `ACA(None)`, whose gradient is theirs, takes their place.

    Args:
      room: most steps, of a net with fixed steps; costs memory only where the net is differentiated.
    """
    if adaptation is None:
        return net
    net = net.clone(solver=_solver(net.solver, adaptation["value"], room))
    fixed = isinstance(net.solver, FixedStep)
    return net.clone(gradient=ACA(None)) if fixed and isinstance(net.gradient, Direct | Checkpointed) else net


def settled(net: Any, value: float) -> Any:
    """The network with the solver that a finished adaptation ended at, for evaluation."""
    if isinstance(net.solver, Adaptive):
        return net.clone(solver=dataclasses.replace(net.solver, rtol=value, atol=value))
    return net.clone(solver=FixedStep(net.solver.scheme, int(validity.steps_of(value))))


def checked(
    config: Config, net: Any, adaptation: dict[str, Any], variables: PyTree, x: jax.Array, y: jax.Array, step: jax.Array
) -> dict[str, Any]:
    """The adaptation after so many training steps: judged anew every 50, on images `x` and labels `y`."""
    control = controller(config)

    def gap(state: validity.AdaptationState) -> jax.Array:
        hits = []
        for solver in (_solver(net.solver, state.value, 4096), _finer(net.solver, state.value)):
            logits = net.clone(solver=solver).apply(variables, x)
            # A solve that failed makes the gap NaN, which counts as too large.
            hits.append(jnp.where(jnp.isfinite(logits).all(), jnp.mean(jnp.argmax(logits, -1) == y), jnp.nan))
        return hits[0] - hits[1]

    def judge(state: validity.AdaptationState) -> validity.AdaptationState:
        state = control.update(gap(state), state)
        return jax.lax.cond(state.on_trial, lambda state: control.update(gap(state), state), lambda state: state, state)

    now = validity.AdaptationState(**adaptation)
    return jax.lax.cond(step % EVERY == 0, judge, lambda state: state, now)._asdict()


def _solver(solver: Any, value: Any, room: int) -> Any:
    if isinstance(solver, Adaptive):
        return dataclasses.replace(solver, rtol=value, atol=value)
    return FixedStep(solver.scheme, validity.steps_of(value), room)


def _finer(solver: Any, value: Any) -> Any:
    """A solver of smaller error: the next order; beyond the second, twice the steps; Dopri5 at a fifth or a tenth."""
    if isinstance(solver, Adaptive):
        tolerance = value / (10 if solver.scheme.name == "dopri5" else 5)
        return dataclasses.replace(solver, scheme=get_scheme("dopri5"), rtol=tolerance, atol=tolerance)
    n, order = validity.steps_of(value), solver.scheme.order
    if order > 2:
        return FixedStep(solver.scheme, 2 * n, 4096)
    return FixedStep("midpoint" if order == 1 else "rk4", n, 4096)
