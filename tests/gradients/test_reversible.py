"""Gradients by undoing steps: those of the solve as it ran, with all outputs, among lanes, without stored states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agreement import assert_agree
from ode_nets import Adaptive, Checkpointed, Coupled, Direct, FixedStep, Reversible, solve

TS = np.array([0.0, 0.2, 0.55, 0.55, 1.0])


def value_and_gradient(solver, method, x0, ts=TS):
    """Of asked states and reports, in state, weights, what the field closes over, and times."""

    def loss(x0, w, closed, t0, ts):
        field = lambda t, x, w: (jnp.tanh(w @ x) * closed + jnp.sin(2 * t), jnp.sum(x))
        solution = solve(field, x0, w, solver=solver, gradient=method, t0=t0, t1=1.0, ts=ts, has_aux=True)
        return jnp.sum(jnp.sin(solution.x) * jnp.arange(1.0, 3.0)) + 0.1 * solution.aux

    w = jnp.array([[0.5, -1.0], [2.0, 0.3]])
    value, found = jax.value_and_grad(loss, (0, 1, 2, 3, 4))(x0, w, 0.7, 0.0, ts)
    return value, (*found[:3], jnp.append(found[4], found[3]))


@pytest.mark.parametrize(
    "solver",
    [
        FixedStep(Coupled("bosh3"), 20),
        Adaptive(Coupled("bosh3"), 1e-4, 1e-4, first_step=1.0, max_steps=40),
        pytest.param(Adaptive(Coupled("heun_euler"), 1e-3, 1e-3, max_steps=40, outputs="clip"), marks=pytest.mark.slow),
    ],
    ids=["uniform", "adaptive", "clip"],
)
def test_lanes_have_the_gradients_of_the_solve_as_it_ran(x64, solver):
    """Lanes whose numbers of steps and of rejected trials differ, with asked times and reports."""
    x0 = jnp.array([[1.0, -0.5], [0.1, 0.2], [-4.0, 3.0]])
    run = lambda method: jax.jit(jax.vmap(lambda x0: value_and_gradient(solver, method, x0)))(x0)
    got, expected = run(Reversible()), run(Direct())
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-12)
    assert_agree(got[1], expected[1], 1e-10)


def test_many_steps_come_back_to_rounding_over_the_coupling(x64):
    """300 steps of 0.99: rounding grows by 20 at most."""
    solver = FixedStep(Coupled("midpoint", 0.99), jnp.int32(300), 300)
    run = lambda method: jax.jit(lambda x0: value_and_gradient(solver, method, x0, jnp.array([0.37, 1.0])))
    x0 = jnp.array([1.0, -0.5])
    assert_agree(run(Reversible())(x0), run(Checkpointed())(x0), 1e-12)


def temporary_bytes(solver, size=4096):
    """Of value and gradient, beside arguments and results."""

    def loss(x0, theta):
        field = lambda t, x, theta: jnp.tanh(theta * x)
        return jnp.sum(solve(field, x0, theta, solver=solver, gradient=Reversible()).x)

    arguments = jnp.ones(size, jnp.float32), jnp.ones(size, jnp.float32)
    return jax.jit(jax.grad(loss, (0, 1))).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def test_memory_does_not_grow_with_the_number_of_steps():
    """By nothing on a uniform grid, and by one number a step where steps are found."""
    few, many = (temporary_bytes(FixedStep(Coupled("euler"), n)) for n in (16, 1024))
    assert many == few
    few, many = (temporary_bytes(Adaptive(Coupled("heun_euler"), max_steps=n)) for n in (64, 4160))
    assert abs(many - few - 4 * 4096) < 256


def test_schemes_whose_steps_cannot_be_undone_are_refused():
    with pytest.raises(ValueError, match=r"scheme 'rk4': its steps cannot be undone.*gradient=ACA\(\) or Checkpointed"):
        solve(lambda t, x, w: -x, 1.0, solver=FixedStep("rk4", 2), gradient=Reversible())
    run = lambda x: solve(lambda t, x, w: -x, x, solver=FixedStep(Coupled("rk4"), 2), gradient=Reversible()).x
    with pytest.raises(ValueError, match=r"forward-mode.*Reversible\(\)"):
        jax.jvp(run, (1.0,), (1.0,))


def test_each_step_is_undone_and_taken_once_more():
    """Evaluations counted by the field: rejected trials are no part of the way back."""
    calls = []

    def counted(t, x, w):
        jax.debug.callback(lambda: calls.append(1))
        return -w * x + jnp.sin(5 * t)

    def loss(w):
        solver = Adaptive(Coupled("heun_euler"), 1e-3, 1e-3, first_step=2.0, max_steps=200)
        solution = solve(counted, 1.0, w, solver=solver, gradient=Reversible(), t1=3.0)
        return solution.x, solution

    _, solution = jax.block_until_ready(jax.jit(jax.grad(loss, has_aux=True))(2.0))
    jax.effects_barrier()
    assert int(solution.n_rejected) > 0
    assert len(calls) == int(solution.nfe) + 2 * 4 * int(solution.n_accepted)
