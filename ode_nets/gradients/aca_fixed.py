"""The checkpoint adjoint on a fixed grid, in bounded memory."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ode_nets.gradients import treeverse
from ode_nets.gradients.closure import Closed, add, as_cotangents, zeros
from ode_nets.gradients.reverse_only import refuse_forward_mode
from ode_nets.gradients.treeverse import Store
from ode_nets.integrate import FixedStep, Problem, Result, Solution, integrate_fixed, is_finite
from ode_nets.integrate.fixed import grid_indices, grid_step, read_sections
from ode_nets.stepping import n_propagating

PyTree = Any


class _Inputs(NamedTuple):
    """All arrays that a solve depends on."""

    x0: PyTree
    weights: PyTree
    t0: jax.Array
    t1: jax.Array
    consts: Any


def run_fixed(problem: Problem, closed: Closed, solver: FixedStep, checkpoints: int | None) -> Solution:
    """Solve on a fixed grid, keeping at most `checkpoints` states; see `ACA`."""
    n_steps = solver.n_steps
    if checkpoints is None or checkpoints >= n_steps:
        return integrate_fixed(problem, solver, transform=jax.checkpoint)
    asked = np.array([n_steps]) if problem.ts is None else grid_indices(problem, n_steps)
    # Where the state after each number of steps goes among the outputs; equal times share a slot.
    slots = np.full(n_steps + 1, -1, np.int32)
    slots[asked] = np.searchsorted(np.unique(asked), asked)
    n_slots = len(np.unique(asked))

    def here(inputs: _Inputs) -> Problem:
        field = closed.field(inputs.consts)
        return dataclasses.replace(
            problem, field=field, x0=inputs.x0, weights=inputs.weights, t0=inputs.t0, t1=inputs.t1, ts=None
        )

    def local(k: jax.Array, x: PyTree, inputs: _Inputs) -> tuple[PyTree, PyTree]:
        problem = here(inputs)
        sections, read, _ = read_sections(problem, solver, 1)
        section = jax.tree.map(lambda leaf: leaf[0], sections)
        return grid_step(problem, solver, read, x, section, k, k)

    def forward(inputs: _Inputs, keeps: bool) -> tuple[tuple[PyTree, PyTree], tuple[_Inputs, Store | None]]:
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
        _, total, outputs, store = jax.lax.fori_loop(0, n_steps, body, carry)
        return (outputs, total), (inputs, store)

    def backward(residuals: tuple[_Inputs, Store], cotangent: tuple[PyTree, PyTree]) -> tuple[_Inputs]:
        inputs, store = residuals
        ct_outputs, ct_aux = cotangent

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
    t0, t1 = (jnp.asarray(t, jnp.result_type(float)) for t in (problem.t0, problem.t1))
    inputs = _Inputs(problem.x0, problem.weights, t0, t1, closed.consts)
    outputs, aux = integrate(refuse_forward_mode(inputs, "ACA(...)"))
    x = jax.tree.map(lambda leaf: leaf[0] if problem.ts is None else leaf[slots[asked]], outputs)
    return Solution(
        x=x,
        aux=aux,
        nfe=jnp.int32(n_steps * n_propagating(solver.tableau)),
        n_accepted=jnp.int32(n_steps),
        n_rejected=jnp.int32(0),
        result=jnp.where(is_finite(x), Result.SUCCESS, Result.NON_FINITE).astype(jnp.int32),
    )
