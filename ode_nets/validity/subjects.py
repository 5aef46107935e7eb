"""What is examined: a model, or a bare field, as a function from solvers to outputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from ode_nets.arguments import Finite, checked, is_real, shown
from ode_nets.gradients import Direct, solve
from ode_nets.integrate import (
    Adaptive,
    FixedStep,
    Problem,
    Result,
    Solution,
    WeightFunction,
    integrate,
    make_problem,
    pad,
)
from ode_nets.nn import OdeBlock
from ode_nets.remanifest import check_exchangeable, has_intervals, restat, unmet_intervals
from ode_nets.tableaus import SCHEMES
from ode_nets.validity.convergence import distance, rounding
from ode_nets.validity.quality import TOLERANCES

PyTree = Any
Batch = Shaped[Array, "batch feature ..."]
ENOUGH_STEPS = 4096
"""Trials that an adaptive solver is given at tolerances below its own, at least: a bound that was enough for training
says nothing about smaller ones."""
N_STAGES = 4
"""Stages that solvers are padded to; those with more compile a program of their own."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A trained model whose solver can be exchanged. Made by `of_model` or `of_field`.

    Attributes:
      run: `run(solver) -> outputs`, `[batch, ...]`: the model under another solver. One compiled program
        serves all `FixedStep` of up to four stages, and one all tolerances of an embedded scheme.
      solver: what it was trained with.
      problems: `problems(solver) -> list[Problem]`: the initial value problems that it solves, in their order, each
        from the end of the one before under that solver.
      span: |t1 - t0| of each of them.
      path: `path(solver) -> outputs`, `[n_steps + 1, batch, ...]`: from the start to the end; `None` where there are
        none before the end, as of a model of several blocks.
      statistics: which batch statistics it has where training met none; empty if it met all, or there are none.
    """

    run: Callable[[FixedStep | Adaptive], jax.Array]
    solver: FixedStep | Adaptive
    problems: Callable[[FixedStep | Adaptive], list[Problem]]
    span: float = 1.0
    path: Callable[[FixedStep], jax.Array] | None = None
    statistics: str = ""


@dataclasses.dataclass(frozen=True)
class _Probe:
    """A solver that notes the problems that another is given."""

    solver: FixedStep | Adaptive
    found: list[Problem]

    def solve(self, problem: Problem, gradient: Any, dense: bool) -> Solution:
        self.found.append(problem)
        return integrate(problem, self.solver)


def _by_solver(apply: Callable[[Any, PyTree], jax.Array], inputs: PyTree) -> Callable[..., jax.Array]:
    """`run` of a subject from `apply(solver, inputs) -> outputs`, compiled once a kind of solver."""
    leaves, tree = jax.tree.flatten(inputs)
    # Arrays are arguments of the programs: as constants inside, large ones would take seconds to compile.
    arrays = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray)}

    def applied(solver: Any, arrays: dict[int, Any]) -> jax.Array:
        return apply(solver, jax.tree.unflatten(tree, [arrays.get(i, leaf) for i, leaf in enumerate(leaves)]))

    programs: dict[Any, Callable[..., jax.Array]] = {"fixed": jax.jit(applied)}

    def run(solver: FixedStep | Adaptive) -> jax.Array:
        if not solver.estimates:
            return programs["fixed"](pad(solver, max(N_STAGES, solver.scheme.n_evaluations or 0)), arrays)
        static = dataclasses.replace(solver, rtol=1.0, atol=1.0)
        if static not in programs:
            programs[static] = jax.jit(
                lambda rtol, atol, arrays: applied(dataclasses.replace(static, rtol=rtol, atol=atol), arrays)
            )
        return programs[static](solver.rtol, solver.atol, arrays)

    return run


@checked
def of_model(
    net: nn.Module,
    variables: PyTree,
    inputs: Batch,
    *,
    restat_on: Shaped[Array, "samples feature ..."] | None = None,
    **kwargs: Any,
) -> Subject:
    """A Flax model of this library, or any that hands its `solver` to its `OdeBlock`s.

    Where no stage of its own solver meets an interval, which other solvers do, it runs under each of those with batch
    statistics that are estimated under it (see `remanifest.restat`): what training left there would be taken for a
    fault of the model.

    Args:
      net: with attributes `solver`, a `FixedStep` or `Adaptive`, and `gradient`; `net.apply(variables, inputs)`
        gives an array `[batch, ...]`.
      variables: trained, as `net.init` shapes them.
      inputs: `[batch, ...]`, at least one sample.
      restat_on: inputs of training to estimate those statistics on, `[samples, ...]`; default `inputs`.
      **kwargs: handed on to `net.apply`.

    Raises:
      ValueError: for a model without a solver and a gradient method to exchange, whose blocks have spans of different
        lengths, or an empty batch; for a scheme that is not of the catalogue, with whose others it is compared.
    """
    check_exchangeable(net, "solver", "gradient")
    model: Any = net
    solver = model.solver
    if not isinstance(solver, FixedStep | Adaptive):
        raise ValueError(
            f"net.solver={solver!r} of {type(net).__name__}: expected a FixedStep or Adaptive to exchange; "
            "examine its field with of_field otherwise"
        )
    check_batch(inputs)
    solver, statistics = _counted(solver), ""
    samples = inputs if restat_on is None else restat_on
    # Inside a program, as where a step is adapted while it trains, statistics are what they are.
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((variables, inputs)))
    known = not traced and not kwargs and has_intervals(net, variables)
    if known and (unmet := unmet_intervals(net, variables, samples)):
        statistics = say_statistics(unmet, len(samples))

    def apply(solver: Any, inputs: PyTree) -> jax.Array:
        out: Any = net.clone(solver=solver, gradient=Direct()).apply(*inputs, **kwargs)
        return out

    def restated(solver: Any, arrays: PyTree) -> jax.Array:
        variables, inputs, samples = arrays
        return apply(solver, (restat(net.clone(solver=solver), variables, samples), inputs))

    as_trained = _by_solver(apply, (variables, inputs))
    under_others = _by_solver(restated, (variables, inputs, samples)) if statistics else as_trained

    def run(other: FixedStep | Adaptive) -> jax.Array:
        return (as_trained if other == solver else under_others)(other)

    def problems(other: FixedStep | Adaptive) -> list[Problem]:
        found: list[Problem] = []
        own = not statistics or other == solver
        weights = variables if own else restat(net.clone(solver=other), variables, samples)
        apply(_Probe(other, found), (weights, inputs))
        return found

    return Subject(run, solver, problems, _span_of(net, variables, inputs, kwargs), statistics=statistics)


def _span_of(net: nn.Module, variables: PyTree, inputs: jax.Array, kwargs: dict[str, Any]) -> float:
    """|t1 - t0| of the blocks that a model calls."""
    spans: set[float] = set()

    def note(call: Any, args: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, OdeBlock) and context.method_name == "__call__":
            spans.add(abs(float(context.module.t1) - float(context.module.t0)))
        return call(*args, **options)

    with nn.intercept_methods(note):
        jax.eval_shape(lambda variables, inputs: net.apply(variables, inputs, **kwargs), variables, inputs)
    if len(spans) > 1:
        raise ValueError(
            f"blocks of {type(net).__name__} have spans {sorted(spans)}: expected one, which steps are parts of; "
            "examine each block by itself"
        )
    return spans.pop() if spans else 1.0


@checked
def say_statistics(unmet: Mapping[str, tuple[int, ...]], n_samples: int) -> str:
    """Which batch statistics were estimated anew, in words."""
    where = ", ".join(f"{name or 'the block'}: {', '.join(map(str, which))}" for name, which in unmet.items())
    return (
        f"no stage of training meets some intervals ({where}; counted from 0), so that under any other solver or basis "
        f"batch statistics are estimated anew, on {n_samples} samples"
    )


@checked
def of_field(
    field: Any,
    theta: PyTree,
    x0: Batch,
    solver: FixedStep | Adaptive,
    *,
    t0: Finite = 0.0,
    t1: Finite = 1.0,
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
      ValueError: for another kind of solver, a scheme that is not of the catalogue, with whose others it is compared,
        an empty batch, a time span other than the domain of a weight function, and what `solve` refuses.
    """
    check_batch(x0)
    solver = _counted(solver)

    def apply(solver: Any, inputs: PyTree) -> jax.Array:
        return readout(solve(field, *inputs, solver=solver, gradient=Direct(), t0=t0, t1=t1).x)

    problem = make_problem(field, x0, theta, t0=t0, t1=t1)
    by_node = isinstance(problem.weights, WeightFunction)
    if by_node and not problem.exact:
        raise ValueError(f"t0={t0}, t1={t1}: expected the domain {problem.weights.domain} of the weights theta")

    def path(solver: FixedStep) -> jax.Array:
        ts = t0 + (t1 - t0) * np.arange(solver.n_steps + 1) / solver.n_steps
        return jax.jit(
            lambda: jax.vmap(readout)(solve(field, x0, theta, solver=solver, gradient=Direct(), t0=t0, t1=t1, ts=ts).x)
        )()

    return Subject(_by_solver(apply, (x0, theta)), solver, lambda solver: [problem], abs(t1 - t0), path)


def _counted(solver: FixedStep | Adaptive) -> FixedStep | Adaptive:
    """The solver with a number of steps, or tolerances, that can be compared and looked up.

    Raises:
      ValueError: for a tolerance that is not one number, or a scheme of another name or tableau than the catalogue's.
    """
    scheme = solver.scheme
    if getattr(scheme, "tableau", None) is None or SCHEMES.get(scheme.name) != scheme.tableau:
        other = f" ({scheme.name!r} there is another tableau)" if scheme.name in SCHEMES else ""
        raise ValueError(
            f"solver={solver!r}: expected a scheme of the catalogue, with whose others it is compared: "
            f"{', '.join(sorted(SCHEMES))}{other}"
        )
    if not solver.estimates:
        return solver if solver.length is not None else FixedStep(solver.scheme, int(solver.n_steps))
    for name in ("rtol", "atol"):
        if not is_real(value := getattr(solver, name)) or np.ndim(value):
            raise ValueError(f"{name}={shown(value)}: expected one number, which smaller ones are compared with")
    # A number that is an array cannot be the key of a program.
    as_number = lambda size: None if size is None else float(size)
    return dataclasses.replace(solver, first_step=as_number(solver.first_step), min_step=as_number(solver.min_step))


def scale_of(subject: Subject, reference: jax.Array, solver: FixedStep) -> float:
    """The scale that disagreements of outputs are measured on, whatever the origin of their coordinates; above 0.

    Of models the spread of outputs over the batch, the root mean square distance from their mean, or their norm where
    a batch of one or outputs that are all alike have none. Of bare fields how far outputs get from what they
    are at the start, on the whole way, as an orbit may come back; or the spread if that is smaller, as the whole batch
    may just drift; but of a spread below a hundredth of the way an attractor is the reason, and no step a wrong one.
    And so much, at least, that rounding comes to no more than 0.05, the tolerance of disagreement.

    Args:
      subject: what is examined.
      reference: outputs under the most exact solver, or the truth, `[batch, ...]`.
      solver: the most exact grid. Of a path that ends elsewhere than the reference only the start counts.
    """
    spread = distance(reference, jnp.broadcast_to(jnp.mean(reference, 0), reference.shape))
    least = max(rounding(reference) / TOLERANCES["disagreement"], 1e-30)
    if subject.path is not None:
        path = np.asarray(subject.path(solver))
        way = max(distance(outputs, path[0]) for outputs in path)
        # Steps that are too large for the field may go anywhere on the way.
        if not distance(path[-1], reference) <= way / 10:
            way = distance(reference, path[0])
        if math.isfinite(way) and way > 0:
            return max(way if spread == 0 else min(way, max(spread, way / 100)), least)
    return max(spread if spread > least else distance(reference, jnp.zeros_like(reference)), least)


def check_batch(inputs: Batch) -> None:
    """Raises:
    ValueError: unless there is at least one sample.
    """
    if jnp.size(inputs) == 0:
        raise ValueError(f"inputs have shape {jnp.shape(inputs)}: expected at least one sample")


def accepted_steps(subject: Subject, solvers: Sequence[Adaptive]) -> list[tuple[int, Result]]:
    """Most steps that each adaptive solver accepts in any problem of a subject, and the first result code of a failure.

    Args:
      subject: what is examined.
      solvers: of one scheme, which may differ in their tolerances without compiling again. The first makes the
        states that later blocks start from.
    """
    problems = subject.problems(solvers[0])

    @partial(jax.jit, static_argnums=0)
    def count(static: Adaptive, rtol: jax.Array, atol: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        own = dataclasses.replace(static, rtol=rtol, atol=atol)
        solutions = [integrate(problem, own) for problem in problems]
        return [(solution.n_accepted, solution.result) for solution in solutions]

    found = []
    for solver in solvers:
        counts = count(dataclasses.replace(solver, rtol=1.0, atol=1.0), solver.rtol, solver.atol)
        # What follows a failed block starts from NaN, and fails for no reason of its own.
        first = next((Result(int(result)) for _, result in counts if int(result)), Result.SUCCESS)
        found.append((max(1, *(int(n) for n, _ in counts)), first))
    return found


def smaller_tolerances(solver: Adaptive, factors: Sequence[float]) -> list[Adaptive]:
    """An adaptive solver at its tolerances times each factor, with room for the steps that smaller ones take."""
    room = max(solver.max_steps, ENOUGH_STEPS)
    return [dataclasses.replace(solver, rtol=f * solver.rtol, atol=f * solver.atol, max_steps=room) for f in factors]
