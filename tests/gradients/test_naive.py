"""The naive method: the derivative of the search for steps, against finite differences through it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets import ACA, Adaptive, Direct, FixedStep, Naive, solve

TS = np.array([0.0, 1.3, 2.0])
POINT = np.array([1.0, 0.5, 0.8, 6.0])


def loss_of(solver, method, v, ts=None):
    """The oscillator of van der Pol from (v0, v1), at a stiffness v3, up to 2 (1 + v2)."""
    field = lambda t, x, mu: jnp.stack([x[1], mu * (1 - x[0] ** 2) * x[1] - x[0] + 0.1 * jnp.sin(t)])
    times = {"t1": 2 * (1 + v[2]), "ts": None if ts is None else ts * (1 + v[2])}
    solution = solve(field, v[:2], v[3], solver=solver, gradient=method, **times)
    return jnp.sum(jnp.sin(solution.x)), solution


def differences(run, v, eps=1e-7):
    """Central ones, near: second derivatives through a search reach 1e7."""
    rows = jnp.concatenate([v + eps * jnp.eye(v.size), v - eps * jnp.eye(v.size)])
    values = jax.vmap(run)(rows)
    return (values[: v.size] - values[v.size :]) / (2 * eps)


@pytest.mark.parametrize(
    ("solver", "ts"),
    [
        (Adaptive("bosh3", 1e-3, 1e-3, first_step=1.0, max_steps=80), None),
        (Adaptive("bosh3", 1e-3, 1e-3, max_steps=80), TS),
        pytest.param(Adaptive("heun_euler", 1e-2, 1e-2, max_steps=120, outputs="clip"), TS, marks=pytest.mark.slow),
    ],
    ids=["end", "interpolate", "clip"],
)
def test_it_is_the_derivative_of_the_program(x64, solver, ts):
    """Of one that rejects steps; other methods have its value, and another gradient."""
    point = jnp.asarray(POINT)
    run = lambda method: jax.jit(jax.value_and_grad(lambda v: loss_of(solver, method, v, ts), has_aux=True))(point)
    (value, solution), got = run(Naive())
    assert int(solution.n_rejected) > 2
    expected = jax.jit(lambda v: differences(lambda v: loss_of(solver, ACA(), v, ts)[0], v))(point)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    (same, frozen), other = run(Direct())
    np.testing.assert_allclose(value, same, rtol=1e-10)
    for name in ("nfe", "n_accepted", "n_rejected", "result"):
        assert int(getattr(solution, name)) == int(getattr(frozen, name))
    assert np.max(np.abs(got - other)) > 1e-4 * np.max(np.abs(other))


def test_the_tolerance_has_a_derivative(x64):
    """Which no other method has."""

    def loss(log_rtol, method):
        solver = Adaptive("heun_euler", jnp.exp(log_rtol), 1e-4, first_step=0.1, max_steps=60)
        return solve(lambda t, x, w: jnp.sin(x) + t, 0.5, solver=solver, gradient=method, t1=2.0).x

    run = jax.jit(lambda r: (jax.grad(loss)(r, Naive()), (loss(r + 1e-6, ACA()) - loss(r - 1e-6, ACA())) / 2e-6))
    got, expected = run(jnp.log(1e-3))
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert abs(expected) > 1e-6


def test_lanes_and_dense_outputs(x64):
    """Two solves of different lengths at once; states between the steps; a state without any error at first."""
    solver = Adaptive("bosh3", 1e-4, 1e-4, max_steps=60)

    def end(k):
        field = lambda t, x, k: jnp.stack([-k * x[0], 0 * x[1]])
        solution = solve(field, jnp.array([1.0, 0.0]), k, solver=solver, gradient=Naive(), dense=True)
        return solution.dense(0.7)[0] + 0 * jnp.sum(solution.x)

    k = jnp.array([0.5, 9.0])
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(end)))(k)
    np.testing.assert_allclose(value, np.exp(-0.7 * k), atol=1e-3)
    np.testing.assert_allclose(slope, -0.7 * np.exp(-0.7 * k), atol=1e-2)
    np.testing.assert_allclose(slope, jax.vmap(lambda k: differences(lambda v: end(v[0]), k[None])[0])(k), rtol=1e-5)


def test_known_steps_are_refused():
    with pytest.raises(ValueError, match=r"Naive\(\) with solver=FixedStep.*use Adaptive\(scheme, rtol, atol\), or"):
        solve(lambda t, x, w: -x, 1.0, solver=FixedStep("rk4", 2), gradient=Naive())
