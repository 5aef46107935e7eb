"""What is examined: a model, or a bare field, as a function from solvers to outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ode_nets.gradients import Direct, solve
from ode_nets.integrate import (
    Adaptive,
    FixedStep,
    Problem,
    Solution,
    integrate_adaptive,
    integrate_fixed,
    make_problem,
    pad,
)
from ode_nets.stepping import n_propagating

PyTree = Any
N_STAGES = 4
"""Stages that solvers are padded to; those with more compile a program of their own."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A trained model whose solver can be exchanged. Made by `of_model` or `of_field`.

    Attributes:
      run: `run(solver) -> outputs`, `[batch, ...]`: the model under another solver. One compiled program
        serves all `FixedStep` of up to four stages, and one all tolerances of an embedded scheme.
      solver: what it was trained with.
      problems: `problems(solver) -> list[Problem]`: the initial value problems that it solves, in their order.
      span: |t1 - t0| of each of them.
    """

    run: Callable[[FixedStep | Adaptive], jax.Array]
    solver: FixedStep | Adaptive
    problems: Callable[[FixedStep], list[Problem]]
    span: float = 1.0


@dataclasses.dataclass(frozen=True)
class _Probe:
    """A solver that notes the problems it is given and solves them on a fixed grid."""

    solver: FixedStep
    found: list[Problem]

    def run(self, problem: Problem, gradient: Any) -> Solution:
        self.found.append(problem)
        return integrate_fixed(problem, self.solver)


def _by_solver(apply: Callable[[Any, PyTree], jax.Array], inputs: PyTree) -> Callable[..., jax.Array]:
    """`run` of a subject from `apply(solver, inputs) -> outputs`, compiled once a kind of solver."""
    leaves, tree = jax.tree.flatten(inputs)
    # Arrays are arguments of the programs: as constants inside, large ones would take seconds to compile.
    arrays = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray)}

    def applied(solver: Any, arrays: dict[int, Any]) -> jax.Array:
        return apply(solver, jax.tree.unflatten(tree, [arrays.get(i, leaf) for i, leaf in enumerate(leaves)]))

    programs: dict[Any, Callable[..., jax.Array]] = {"fixed": jax.jit(applied)}

    def run(solver: FixedStep | Adaptive) -> jax.Array:
        if isinstance(solver, FixedStep):
            return programs["fixed"](pad(solver, max(N_STAGES, n_propagating(solver.tableau))), arrays)
        static = dataclasses.replace(solver, rtol=1.0, atol=1.0)
        if static not in programs:
            programs[static] = jax.jit(
                lambda rtol, atol, arrays: applied(dataclasses.replace(static, rtol=rtol, atol=atol), arrays)
            )
        return programs[static](solver.rtol, solver.atol, arrays)

    return run


def of_model(net: nn.Module, variables: PyTree, inputs: jax.Array, **kwargs: Any) -> Subject:
    """A Flax model of this library, or any that hands its `solver` to its `OdeBlock`s.

    Args:
      net: with attributes `solver`, a `FixedStep` or `Adaptive`, and `gradient`; `net.apply(variables, inputs)`
        gives an array `[batch, ...]`.
      variables: trained, as `net.init` shapes them.
      inputs: `[batch, ...]`, at least one sample.
      **kwargs: handed on to `net.apply`.

    Raises:
      ValueError: for a model without a solver to exchange, or an empty batch.
    """
    solver = getattr(net, "solver", None)
    if not isinstance(solver, FixedStep | Adaptive):
        raise ValueError(
            f"net.solver={solver!r} of {type(net).__name__}: expected a FixedStep or Adaptive to exchange; "
            "examine its field with of_field otherwise"
        )
    check_batch(inputs)

    def apply(solver: Any, inputs: PyTree) -> jax.Array:
        out: Any = net.clone(solver=solver, gradient=Direct()).apply(*inputs, **kwargs)
        return out

    def problems(solver: FixedStep) -> list[Problem]:
        found: list[Problem] = []
        apply(_Probe(solver, found), (variables, inputs))
        return found

    return Subject(_by_solver(apply, (variables, inputs)), solver, problems)


def of_field(
    field: Any,
    theta: PyTree,
    x0: jax.Array,
    solver: FixedStep | Adaptive,
    *,
    t0: float = 0.0,
    t1: float = 1.0,
    readout: Callable[[jax.Array], jax.Array] = lambda x: x,
) -> Subject:
    """A bare right-hand side with its weights.

    Args:
      field: `field(t, x, theta) -> dx`.
      theta: its weights: a pytree or a weight function.
      x0: `[batch, ...]`, at least one initial state.
      solver: what it was trained with.
      t0, t1: start and end.
      readout: of the final state, e.g. a classifier.

    Raises:
      ValueError: for another kind of solver, an empty batch, and what `solve` refuses.
    """
    if not isinstance(solver, FixedStep | Adaptive):
        raise ValueError(f"solver={solver!r}: expected a FixedStep or Adaptive")
    check_batch(x0)

    def apply(solver: Any, inputs: PyTree) -> jax.Array:
        return readout(solve(field, *inputs, solver=solver, gradient=Direct(), t0=t0, t1=t1).x)

    problem = make_problem(field, x0, theta, t0=t0, t1=t1)
    return Subject(_by_solver(apply, (x0, theta)), solver, lambda solver: [problem], abs(t1 - t0))


def check_batch(inputs: Any) -> None:
    """Raises:
    ValueError: unless `inputs` is `[batch, ...]` with at least one sample.
    """
    if jnp.ndim(inputs) < 2 or jnp.size(inputs) == 0:
        raise ValueError(f"inputs have shape {jnp.shape(inputs)}: expected [batch, ...] with at least one sample")


def own_grid(subject: Subject) -> FixedStep:
    """The fixed grid of the trained solver; of an adaptive one its average.

    An adaptive solver's grid has as many steps as it accepts in the problem where it accepts most.
    """
    solver = subject.solver
    if isinstance(solver, FixedStep):
        return solver
    return FixedStep(solver.tableau, accepted_steps(subject, solver, (1.0,))[0])


def accepted_steps(subject: Subject, solver: Adaptive, factors: Sequence[float]) -> list[int]:
    """Most steps that an adaptive solver accepts in any problem of a subject, at multiples of its tolerances."""
    # Later blocks start from what a fine grid hands on, which is the adaptive solver's state to its tolerance.
    problems = subject.problems(FixedStep("rk4", 16))

    @jax.jit
    def count(rtol: jax.Array, atol: jax.Array) -> list[jax.Array]:
        own = dataclasses.replace(solver, rtol=rtol, atol=atol)
        return [integrate_adaptive(problem, own).n_accepted for problem in problems]

    return [max(1, *map(int, count(f * solver.rtol, f * solver.atol))) for f in factors]
