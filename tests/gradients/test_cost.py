"""What gradients cost: evaluations counted by the field itself, and memory asked of the compiled program."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets.gradients import ACA, Backsolve, Checkpointed, Direct, solve
from ode_nets.integrate import Adaptive, FixedStep
from ode_nets.stepping import get_scheme

SIZE, WIDTH = 4096, 8
STATE_BYTES = SIZE * 4


def field(t, x, theta):
    """Eight times as many activations as state, and few parameters."""
    return jnp.sum(jnp.tanh(jnp.sin(x[:, None] * theta)), axis=1)


@cache
def temporary_bytes(solver, method):
    """Peak memory of value and gradient beside arguments and results, from the compiled program."""

    def loss(x0, theta):
        return jnp.sum(solve(field, x0, theta, solver=solver, gradient=method).x)

    arguments = jnp.ones(SIZE, jnp.float32), jnp.ones(WIDTH, jnp.float32)
    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def growth(solvers, method):
    """In states."""
    few, many = (temporary_bytes(solver, method) for solver in solvers)
    return (many - few) / STATE_BYTES


def adaptive(*max_steps):
    return [Adaptive("heun_euler", 1e-3, 1e-3, max_steps=n) for n in max_steps]


def fixed(*n_steps):
    return [FixedStep("heun", n) for n in n_steps]


def test_unbounded_aca_grows_by_one_state_a_step():
    np.testing.assert_allclose(growth(adaptive(64, 192), ACA(None)), 128, rtol=0.05)


def test_bounded_aca_does_not_grow_with_the_number_of_steps():
    """But for the times of the first 256 steps."""
    assert abs(growth(adaptive(64, 4096), ACA(4))) < 1
    assert abs(growth(adaptive(512, 65536), ACA(4))) < 0.1
    assert abs(growth(fixed(16, 1024), ACA(4))) < 1


def test_backsolve_keeps_no_steps():
    """The lecture's O(1), of fixed and of adaptive steps."""
    assert growth(fixed(16, 1024), Backsolve()) < 1
    assert growth(adaptive(64, 4096), Backsolve()) < 1


def test_more_checkpoints_cost_one_state_each():
    few, many = (temporary_bytes(adaptive(64)[0], ACA(n)) for n in (4, 36))
    np.testing.assert_allclose((many - few) / STATE_BYTES, 32, rtol=0.05)


def test_checkpointed_steps_keep_a_state_and_direct_ones_their_activations():
    """Two stages a step, each with an array of eight activations an entry or more."""
    steps = growth(fixed(16, 80), Checkpointed("step")) / 64
    direct = growth(fixed(16, 80), Direct()) / 64
    np.testing.assert_allclose(steps, 1, rtol=0.1)
    assert direct > 2 * WIDTH


def test_without_differentiation_nothing_is_kept():
    def bytes_of(solver, method):
        run = lambda x0, theta: solve(field, x0, theta, solver=solver, gradient=method).x
        lowered = jax.jit(run).lower(jnp.ones(SIZE, jnp.float32), jnp.ones(WIDTH, jnp.float32))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    (solver,) = adaptive(512)
    for method in (Direct(), ACA(64)):
        assert bytes_of(solver, method) < 2 * WIDTH * STATE_BYTES + 16 * STATE_BYTES


def count_evaluations(solver, method):
    """A solution, and how often the field was evaluated for it and its gradient."""
    calls = []

    def counted(t, x, theta):
        jax.debug.callback(lambda: calls.append(1))
        return -theta * x + jnp.sin(5 * t)

    def loss(x0, theta):
        solution = solve(counted, x0, theta, solver=solver, gradient=method, t1=3.0)
        return solution.x, solution

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, solution), _ = jax.block_until_ready(run(1.0, 2.0))
    jax.effects_barrier()
    return solution, len(calls)


@pytest.mark.parametrize("key", ["heun_euler", "dopri5"])
def test_aca_evaluates_each_accepted_step_once_more_and_nothing_else(key):
    """No rejected trial, no error estimate, no last stage of an FSAL pair (ACA table 1, without its factor m)."""
    tolerance = 1e-3 if key == "heun_euler" else 1e-5
    solver = Adaptive(key, tolerance, tolerance, first_step=2.0, max_steps=200)
    solution, calls = count_evaluations(solver, ACA(None))
    n, stages = int(solution.n_accepted), get_scheme(key).n_evaluations
    assert int(solution.n_rejected) > 0
    assert calls == int(solution.nfe) + n * stages
    # With a state for every accepted step nothing is computed twice; the state that the solve ends with needs none.
    again, calls = count_evaluations(solver, ACA(n))
    assert int(again.n_accepted) == n
    assert calls == int(again.nfe) + n * stages


def test_bounded_aca_evaluates_at_most_one_more_pass():
    """For n_accepted <= S^2 / 4; recomputation uses recorded sizes and no error estimate."""
    solver = Adaptive("bosh3", 1e-4, 1e-4, first_step=2.0, max_steps=500)
    solution, calls = count_evaluations(solver, ACA(16))
    n, stages = int(solution.n_accepted), get_scheme("bosh3").n_evaluations
    assert 16 < n <= 64
    extra = calls - int(solution.nfe) - n * stages
    assert 0 < extra <= n * stages


def test_gradients_compile_once_for_all_values():
    """States, parameters, times and tolerances are variables of the program."""

    @jax.jit
    def gradient(x0, theta, t0, t1, ts, tolerance):
        def loss(x0, theta, t0, t1, ts):
            solver = Adaptive("bosh3", tolerance, tolerance, max_steps=100)
            return jnp.sum(solve(field, x0, theta, solver=solver, gradient=ACA(3), t0=t0, t1=t1, ts=ts).x)

        return jax.grad(loss, argnums=(0, 1, 2, 3, 4))(x0, theta, t0, t1, ts)

    for i in range(3):
        x0, theta = jnp.full(3, 0.1 * i), jnp.full(2, 1.0 + i)
        gradient(x0, theta, -0.5 * i, 1.0 + i, jnp.array([0.3, 0.7 + i]), 10.0 ** -(2 + i))
    assert gradient._cache_size() == 1
