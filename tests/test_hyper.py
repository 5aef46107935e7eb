"""Hypersolvers: the formula of a step, a correction that is trained and pays, one gradient, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from agreement import assert_agree
from ode_nets import ACA, Adaptive, Backsolve, Checkpointed, Direct, FixedStep, Hyper, hyper_loss, solve
from ode_nets.problems import pendulum

MU = 0.8


def field(t, x, theta):
    """A driven oscillator."""
    return jnp.stack([x[..., 1], -theta * jnp.sin(x[..., 0]) + jnp.cos(2 * t)], -1)


def network(params, t, x, dx):
    y = jnp.concatenate([x, dx, jnp.full_like(x[..., :1], t)], -1)
    for kernel, bias in params[:-1]:
        y = jnp.tanh(y @ kernel + bias)
    return y @ params[-1][0] + params[-1][1]


def draw(key, sizes=(5, 24, 24, 2)):
    keys = jax.random.split(key, len(sizes))
    shapes = zip(keys, sizes, sizes[1:], strict=False)
    return [(jax.random.normal(k, (n, m)) * n**-0.5, jnp.zeros(m)) for k, n, m in shapes]


def test_a_step_is_that_of_the_scheme_and_its_correction(x64):
    scheme = Hyper("midpoint", lambda a, t, x, dx: a * t * x + dx**2, 0.3)
    x, h, t = np.array([0.4, -1.0]), -0.25, 0.5
    k1 = field(t, x, MU)
    expected = x + h * field(t + h / 2, x + h / 2 * k1, MU) + h**3 * (0.3 * t * x + k1**2)
    solution = solve(field, x, MU, solver=FixedStep(scheme, 1), t0=t, t1=t + h, dense=True)
    np.testing.assert_allclose(solution.x, expected, rtol=1e-14)
    np.testing.assert_allclose(solution.dense(t + h), expected, rtol=1e-14)
    assert int(solution.nfe) == 2


@pytest.mark.parametrize("base", ["euler", "midpoint"])
def test_a_trained_correction_makes_few_steps_more_accurate(base):
    n, ts = 10, jnp.linspace(0.0, 2.0, 11)
    starts = jax.random.uniform(jax.random.key(0), (64, 2), minval=-1.5, maxval=1.5)

    @jax.jit
    def gains(key):
        fine = lambda x0: solve(field, x0, MU, solver=FixedStep("rk4", 200), ts=ts, t1=2.0).x
        xs, scheme = fine(starts[:48]), Hyper(base, network, draw(key))
        loss = lambda params: hyper_loss(params, scheme, lambda t, x: field(t, x, MU), ts, xs)
        optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 600))

        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (scheme.params, optimizer.init(scheme.params)), length=600)
        # Of starts that it has not seen.
        exact = fine(starts[48:])[-1]
        end = lambda scheme: solve(field, starts[48:], MU, solver=FixedStep(scheme, n), t1=2.0).x
        error = lambda scheme: jnp.sqrt(jnp.mean((end(scheme) - exact) ** 2))
        return error(base), error(dataclasses.replace(scheme, params=params))

    plain, corrected = gains(jax.random.key(1))
    assert corrected < 0.2 * plain


def adaptive(scheme, n):
    return Adaptive(scheme, 1e-3, 1e-3, max_steps=16)


@pytest.mark.parametrize("grid", [FixedStep, pytest.param(adaptive, marks=pytest.mark.slow)])
def test_methods_that_go_back_over_the_steps_have_one_gradient_and_the_continuous_adjoint_refuses(x64, grid):
    scheme = Hyper("heun_euler", network, draw(jax.random.key(0), (5, 3, 2)))
    x0 = np.array([0.4, -1.0])

    def loss(x0, theta, method):
        return jnp.sum(jnp.sin(solve(field, x0, theta, solver=grid(scheme, 4), gradient=method).x))

    methods = [Direct(), Checkpointed(), ACA(2)]
    expected, *others = jax.jit(lambda *args: [jax.grad(loss, (0, 1))(*args, method) for method in methods])(x0, MU)
    for other in others:
        assert_agree(other, expected)
    step = 1e-6
    difference = (loss(x0, MU + step, Direct()) - loss(x0, MU - step, Direct())) / (2 * step)
    np.testing.assert_allclose(expected[1], difference, rtol=1e-6)
    with pytest.raises(ValueError, match=r"Backsolve\(\) with scheme 'Hyper\(heun_euler\)'.*with gradient=ACA\(\)"):
        loss(x0, MU, Backsolve())
    # A correction of any state would correct the adjoint system, too.
    general = Hyper("euler", lambda c, t, x, dx: jax.tree.map(lambda leaf: c * leaf, x), 0.5)
    with pytest.raises(ValueError, match="its steps are made for the field"):
        solve(field, x0, MU, solver=FixedStep(general, 2), gradient=Backsolve())


def test_parameters_are_constants_of_a_solve_and_a_correction_of_another_shape_is_refused(x64):
    def end(c, method):
        scheme = Hyper("euler", lambda c, t, x, dx: c * x, c)
        return jnp.sum(solve(pendulum.field, jnp.ones(2), -1.0, solver=FixedStep(scheme, 2), gradient=method).x)

    assert float(end(0.0, Direct())) != float(end(1.0, Direct()))
    for method in (Direct(), ACA(1)):
        assert float(jax.grad(end)(1.0, method)) == 0
    scheme = Hyper("euler", lambda c, t, x, dx: jnp.zeros(3), 0.0)
    with pytest.raises(ValueError, match=r"gave shapes \(3,\): expected \(2,\)"):
        solve(pendulum.field, jnp.ones(2), -1.0, solver=FixedStep(scheme, 2))
    with pytest.raises(ValueError, match="correction=3: expected a function"):
        Hyper("euler", 3, ())
    with pytest.raises(ValueError, match=r"ts has shape \(\): expected a vector of two times"):
        hyper_loss(0.0, scheme, lambda t, x: x, 0.5, jnp.ones(2))
    with pytest.raises(ValueError, match="expected one row a time, 3 of them"):
        hyper_loss(0.0, scheme, lambda t, x: x, jnp.arange(3.0), jnp.ones((2, 2)))


def test_times_may_be_integers():
    scheme = Hyper("euler", lambda c, t, x, dx: c * x, 0.0)
    xs = jnp.exp(jnp.arange(5.0))
    loss = lambda ts: hyper_loss(0.5, scheme, lambda t, x: x, ts, xs)
    np.testing.assert_array_equal(loss(jnp.arange(5)), loss(jnp.arange(5.0)))
