"""The checkpoint adjoint on a fixed grid, in bounded memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ode_nets.gradients import treeverse
from ode_nets.gradients.closure import Closed, Inputs, add, as_cotangents, zeros
from ode_nets.gradients.reverse_only import refuse_forward_mode
from ode_nets.gradients.treeverse import Store
from ode_nets.integrate import FixedStep, Problem, Result, Solution, integrate_fixed, is_finite
from ode_nets.integrate.fixed import grid_indices, grid_step, read_sections
from ode_nets.stepping import n_propagating

PyTree = Any


def run_fixed(problem: Problem, closed: Closed, solver: FixedStep, checkpoints: int | None) -> Solution:
    """Solve on a fixed grid, keeping at most `checkpoints` states; see `ACA`."""
    n_steps = solver.n_steps
    if checkpoints is None or checkpoints >= n_steps:
        return integrate_fixed(_reverse_only(problem, closed), solver, transform=jax.checkpoint)
    asked = np.array([n_steps]) if problem.ts is None else grid_indices(problem, n_steps)
    # Where the state after each number of steps goes among the outputs; equal times share a slot.
    slots = np.full(n_steps + 1, -1, np.int32)
    slots[asked] = np.searchsorted(np.unique(asked), asked)
    n_slots = len(np.unique(asked))

    def local(k: jax.Array, x: PyTree, inputs: Inputs) -> tuple[PyTree, PyTree]:
        again = inputs.problem(closed, problem.on_domain)
        sections, read, _ = read_sections(again, solver, 1)
        section = jax.tree.map(lambda leaf: leaf[0], sections)
        return grid_step(again, solver, read, x, section, k, k)

    def forward(inputs: Inputs, keeps: bool) -> tuple[tuple[PyTree, PyTree, Any], tuple[Inputs, Store | None]]:
        aux_shape = jax.eval_shape(lambda: local(jnp.int32(0), inputs.x0, inputs)[1])
        no_aux = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), aux_shape)
        outputs = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (n_slots, *leaf.shape)), inputs.x0)

        def body(k: jax.Array, carry: Any) -> Any:
            x, total, outputs, store = carry
            store = treeverse.keep(store, k, x, n_steps) if keeps else None
            x, aux = local(k, x, inputs)
            slot = jnp.asarray(slots)[k + 1]
            outputs = treeverse.write(outputs, jnp.maximum(slot, 0), x, slot >= 0)
            return x, jax.tree.map(jnp.add, total, aux), outputs, store

        carry = (inputs.x0, no_aux, outputs, treeverse.new_store(inputs.x0, checkpoints) if keeps else None)
        x, total, outputs, store = jax.lax.fori_loop(0, n_steps, body, carry)
        return (outputs, total, is_finite(x, outputs, total)), (inputs, store)

    def backward(residuals: tuple[Inputs, Store], cotangent: tuple[PyTree, PyTree, Any]) -> tuple[Inputs]:
        inputs, store = residuals
        ct_outputs, ct_aux, _ = cotangent

        def at(k: Any, ct_x: PyTree) -> PyTree:
            slot = jnp.asarray(slots)[k]
            return jax.tree.map(lambda a, b: a + jnp.where(slot >= 0, b[slot], 0), ct_x, ct_outputs)

        def pull(k: jax.Array, x: PyTree, carry: Any) -> Any:
            ct_x, ct = carry
            _, pullback = jax.vjp(lambda x, inputs: local(k, x, inputs), x, inputs)
            d_x, d_inputs = pullback((at(k + 1, ct_x), ct_aux))
            return d_x, add(ct, d_inputs)

        nothing = jax.tree.map(jnp.zeros_like, inputs.x0)
        start = (nothing, zeros(inputs))
        advance = lambda k, x: local(k, x, inputs)[0]
        ct_x, ct = treeverse.reverse(jnp.int32(n_steps), store, n_steps, advance, pull, start)
        return (as_cotangents(inputs, ct._replace(x0=at(0, ct_x))),)

    integrate = jax.custom_vjp(lambda inputs: forward(inputs, False)[0])
    integrate.defvjp(lambda inputs: forward(inputs, True), backward)
    outputs, aux, good = integrate(refuse_forward_mode(Inputs.of(problem, closed, solver), "ACA(...)"))
    x = jax.tree.map(lambda leaf: leaf[0] if problem.ts is None else leaf[slots[asked]], outputs)
    return Solution(
        x=x,
        aux=aux,
        nfe=jnp.int32(n_steps * n_propagating(solver.tableau)),
        n_accepted=jnp.int32(n_steps),
        n_rejected=jnp.int32(0),
        result=jnp.where(good, Result.SUCCESS, Result.NON_FINITE).astype(jnp.int32),
    )


def _reverse_only(problem: Problem, closed: Closed) -> Problem:
    """The same problem, refused in forward mode."""
    # Times known at trace time stay known; they have no tangents.
    traced = {name: t for name in ("t0", "t1") if isinstance(t := getattr(problem, name), jax.Array)}
    arrays = (problem.x0, problem.weights, closed.consts, traced)
    x0, weights, consts, traced = refuse_forward_mode(arrays, "ACA(...)")
    return dataclasses.replace(problem, field=closed.field(consts), x0=x0, weights=weights, **traced)
