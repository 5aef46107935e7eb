"""Fixed steps whose number is an array, differentiable: training that changes N_t without compiling again."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ode_nets.gradients.closure import Closed, Inputs, add, as_cotangents, zero_cotangent, zeros
from ode_nets.gradients.outputs import run_marked
from ode_nets.gradients.reverse_only import refuse_forward_mode
from ode_nets.integrate import FixedStep, Problem, Result, Solution, WeightFunction, is_finite, pad, theta_at
from ode_nets.stepping import n_propagating, rk_step
from ode_nets.tableaus import Tableau, get_tableau

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TracedStep:
    """`n_steps` equal steps of one scheme, with `n_steps` an array: a solver wherever `solve` takes one.

        x_{n+1} = x_n + h * sum_i b_i k_i,  h = (t1 - t0) / n_steps          (ContinuousNet eq. 11)

    One compiled program serves every number of steps and costs each its own: the forward pass is a loop of
    traced length that keeps the state before each step, and the backward pass replays the steps from there,
    one local vector-Jacobian product each. The gradient equals that of a `FixedStep` with as many steps under
    every gradient method, whichever `solve` is given. Reverse mode only.

    Under `jax.vmap` with one `n_steps` for all lanes (batched states or weights) each lane takes that many
    steps; with `n_steps` mapped, all take as many as the longest. Then give `longest`: without it every step
    copies the states of all steps, and costs in proportion to `max_steps`.

    Attributes:
      tableau: a `Tableau` or the key of one; static.
      n_steps: int32 scalar, from 1 to `max_steps`; beyond, the state is NaN and the result `MAX_STEPS`.
      max_steps: states there is room for, static: max_steps * bytes(x0) where it is differentiated.
      longest: int32 scalar, not mapped: the most steps that any lane takes; beyond it as beyond `max_steps`.
        `None` where `n_steps` is not mapped.

    Raises:
      ValueError: for an unknown scheme, `max_steps` below 1, or a known `n_steps` out of range.
    """

    tableau: Tableau = dataclasses.field(metadata={"static": True})
    n_steps: Any
    max_steps: int = dataclasses.field(default=512, metadata={"static": True})
    longest: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tableau", get_tableau(self.tableau))
        if self.max_steps < 1:
            raise ValueError(f"max_steps={self.max_steps}: expected at least 1")
        if isinstance(self.n_steps, int) and not 1 <= self.n_steps <= self.max_steps:
            raise ValueError(f"n_steps={self.n_steps}: expected an integer from 1 to max_steps={self.max_steps}")

    @property
    def scheme(self) -> str:
        """Key of the tableau."""
        return self.tableau.name

    def run(self, problem: Problem, gradient: Any = None) -> Solution:
        """Solve `problem`, for its state at t1.

        Raises:
          ValueError: at trace time, if `ts` is asked for or a weight function has another domain.
        """
        if problem.ts is not None:
            raise ValueError("ts is given: a TracedStep solver gives the state at t1 alone; use FixedStep")
        if isinstance(problem.weights, WeightFunction) and not problem.on_domain:
            raise ValueError(
                f"t0={problem.t0}, t1={problem.t1} is not the domain {problem.weights.domain} of the weights: "  # type: ignore[attr-defined]
                "a TracedStep solver needs it; use FixedStep"
            )
        return run_marked(problem, partial(_run, self))


def _run(solver: TracedStep, problem: Problem, closed: Closed) -> Solution:
    tableau = solver.tableau
    nodes = pad(FixedStep(tableau, 1), n_propagating(tableau))

    def local(k: jax.Array, n: jax.Array, x: PyTree, inputs: Inputs) -> tuple[PyTree, PyTree]:
        """Step k of n: the next state and reports."""
        field = closed.field(inputs.consts)
        h = (inputs.t1 - inputs.t0) / n.astype(inputs.t0.dtype)

        def evaluate(i: int, t: jax.Array, x_i: PyTree) -> tuple[PyTree, PyTree]:
            if isinstance(inputs.weights, WeightFunction):
                theta = inputs.weights.at_node(k, n, nodes.numerators[i], nodes.denominators[i])
            else:
                theta = theta_at(inputs.weights, t)
            return field(t, x_i, theta)

        out = rk_step(tableau, evaluate, inputs.t0 + k * h, x, h)
        return out.x, out.aux

    def among(going: jax.Array, new: PyTree, old: PyTree) -> PyTree:
        """Lanes that have taken all of their steps stay where they are."""
        return new if solver.longest is None else jax.tree.map(partial(jnp.where, going), new, old)

    def steps(n: jax.Array, last: jax.Array, inputs: Inputs, keeps: bool) -> tuple[PyTree, PyTree, PyTree]:
        shapes = jax.eval_shape(lambda: local(jnp.int32(0), n, inputs.x0, inputs)[1])
        no_aux = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        room = solver.max_steps if keeps else 0
        kept = jax.tree.map(lambda leaf: jnp.zeros((room, *leaf.shape), leaf.dtype), inputs.x0)

        def body(k: jax.Array, carry: Any) -> Any:
            x, total, kept = carry
            if keeps:
                kept = jax.tree.map(lambda all_, one: all_.at[k].set(one), kept, x)
            new, aux = local(k, n, x, inputs)
            x, total = among(k < n, (new, jax.tree.map(jnp.add, total, aux)), (x, total))
            return x, total, kept

        return jax.lax.fori_loop(0, last, body, (inputs.x0, no_aux, kept))

    def forward(n: jax.Array, last: jax.Array, inputs: Inputs) -> Any:
        x, aux, kept = steps(n, last, inputs, True)
        return (x, aux), (n, last, inputs, kept)

    def backward(residuals: Any, cotangent: Any) -> Any:
        n, last, inputs, kept = residuals
        ct_x, ct_aux = cotangent

        def body(i: jax.Array, carry: Any) -> Any:
            ct_x, ct = carry
            k = last - 1 - i
            x = jax.tree.map(lambda all_: all_[k], kept)
            _, pullback = jax.vjp(lambda x, inputs: local(k, n, x, inputs), x, inputs)
            d_x, d_inputs = pullback((ct_x, ct_aux))
            return among(k < n, (d_x, add(ct, d_inputs)), carry)

        ct_x, ct = jax.lax.fori_loop(0, last, body, (ct_x, zeros(inputs)))
        return zero_cotangent(n), zero_cotangent(last), as_cotangents(inputs, ct._replace(x0=ct_x))

    integrate = jax.custom_vjp(lambda n, last, inputs: steps(n, last, inputs, False)[:2])
    integrate.defvjp(forward, backward)
    inputs = refuse_forward_mode(Inputs.of(problem, closed, solver), "TracedStep")
    asked = jnp.asarray(solver.n_steps, jnp.int32)
    most = jnp.int32(solver.max_steps)
    if solver.longest is not None:
        most = jnp.minimum(jnp.asarray(solver.longest, jnp.int32), most)
    fits = (asked >= 1) & (asked <= most)
    n = jnp.where(fits, asked, 1)
    x, aux = integrate(n, n if solver.longest is None else most, inputs)
    x = jax.tree.map(lambda leaf: leaf * jnp.where(fits, 1.0, jnp.nan).astype(leaf.dtype), x)
    found = jnp.where(is_finite(x, aux), Result.SUCCESS, Result.NON_FINITE)
    return Solution(
        x=x,
        aux=aux,
        nfe=n * n_propagating(tableau),
        n_accepted=n,
        n_rejected=jnp.int32(0),
        result=jnp.where(fits, found, Result.MAX_STEPS).astype(jnp.int32),
    )
