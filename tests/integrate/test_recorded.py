"""Steps of an earlier solve taken again: its value, the gradient of every method, and no search."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agreement import assert_agree
from ode_nets import ACA, Adaptive, Backsolve, Checkpointed, Direct, FixedStep, Recorded, Result, solve
from ode_nets.stepping import get_scheme

SEARCH = Adaptive("bosh3", 1e-4, 1e-4, first_step=1.0, max_steps=60)
POINT = np.array([1.0, 0.5, 5.0])


def field(t, x, mu):
    return jnp.stack([x[1], mu * (1 - x[0] ** 2) * x[1] - x[0] + 0.1 * jnp.sin(t)])


def run(solver, method, v, ts=None, t1=2.0, dense=False, f=field):
    return solve(f, v[:2], v[2], solver=solver, gradient=method, t0=0.5, t1=t1, ts=ts, dense=dense)


def gradient(solver, method, v):
    loss = lambda v, ts, t1: jnp.sum(jnp.sin(run(solver, method, v, ts, t1).x))
    with_ts = jax.grad(loss, (0, 1))(v, jnp.array([0.5, 1.3, 2.0]), 2.0)
    return with_ts, jax.grad(loss, (0, 2))(v, None, 2.0)


def test_it_has_the_value_and_the_gradients_of_the_search(x64):
    """Times of asked states and t1 included; among lanes, each with steps of its own."""

    @jax.jit
    @jax.vmap
    def both(v):
        found = run(SEARCH, ACA(), v, dense=True)
        frozen = Recorded(found)
        again = run(frozen, None, v)
        methods = [gradient(frozen, method, v) for method in (ACA(3), Checkpointed())]
        return found, again, gradient(SEARCH, Direct(), v), methods

    found, again, expected, got = both(np.stack([POINT, POINT * 0.3]))
    assert found.n_rejected[0] > 0
    assert found.n_accepted[0] != found.n_accepted[1]
    np.testing.assert_allclose(again.x, found.x, rtol=1e-12)
    np.testing.assert_array_equal(again.n_accepted, found.n_accepted)
    np.testing.assert_array_equal(again.n_rejected, 0)
    np.testing.assert_array_equal(again.nfe, 3 * found.n_accepted)
    for one in got:
        assert_agree(one, expected, 1e-10)


def test_a_gradient_costs_no_search():
    """The evaluations of the solve are those of its steps, and of ACA's way back as many again."""
    found = run(SEARCH, ACA(), POINT, dense=True)
    calls = []

    def counted(t, x, mu):
        jax.debug.callback(lambda: calls.append(1))
        return field(t, x, mu)

    end = lambda v: jnp.sum(run(Recorded(found), ACA(None), v, f=counted).x)
    jax.block_until_ready(jax.jit(jax.grad(end))(POINT))
    jax.effects_barrier()
    assert len(calls) == 2 * 3 * int(found.n_accepted)


def test_frozen_steps_make_a_smooth_function(x64):
    """Its gradient is that of finite differences, however coarse the tolerance was; another scheme takes the steps."""
    found = run(SEARCH, ACA(), POINT, dense=True)
    end = lambda v: jnp.sum(jnp.sin(run(Recorded(found, "rk4"), Direct(), v).x))
    v, eye = jnp.asarray(POINT), 1e-5 * jnp.eye(3)
    expected = [(end(v + d) - end(v - d)) / 2e-5 for d in eye]
    np.testing.assert_allclose(jax.grad(end)(v), expected, rtol=1e-7, atol=1e-8)
    assert int(run(Recorded(found, "rk4"), None, v).nfe) == 4 * int(found.n_accepted)


@pytest.mark.slow
def test_the_continuous_adjoint_takes_them_the_other_way_round(x64):
    """Fine where the solve was: nearer to the discrete gradient than as many equal steps."""
    found = run(SEARCH, ACA(), POINT, dense=True)
    error = lambda solver: float(jnp.max(jnp.abs(slope(solver, Backsolve()) - slope(solver, Direct()))))
    slope = lambda solver, method: jax.grad(lambda v: jnp.sum(run(solver, method, v).x))(jnp.asarray(POINT))
    assert error(Recorded(found)) < 0.5 * error(FixedStep("bosh3", int(found.n_accepted)))


def test_failed_solves_and_spans_that_end_before_the_steps_fail():
    failed = run(Adaptive("bosh3", 1e-8, 1e-8, max_steps=3), ACA(), POINT, dense=True)
    again = run(Recorded(failed), None, POINT)
    assert int(again.result) == int(failed.result) == Result.MAX_STEPS
    assert np.isnan(again.x).all()
    found = run(SEARCH, ACA(), POINT, dense=True)
    short = run(Recorded(found), None, POINT, t1=0.6)
    assert int(short.result) == Result.STEP_UNDERFLOW
    assert np.isnan(short.x).all()


def test_what_it_cannot_take_is_refused():
    found = run(SEARCH, ACA(), POINT)
    with pytest.raises(ValueError, match="dense=True"):
        Recorded(found)
    with pytest.raises(ValueError, match=r"solution=.*expected what solve\(..., dense=True\) gives"):
        Recorded(SEARCH)
    at = Recorded.at(get_scheme("dopri5"), jnp.array([0.25, 1.5]), 2)
    assert repr(at) == "Recorded(dopri5, <at most 2 steps>)"
    assert int(run(at, None, POINT).nfe) == 12


def test_of_lanes_it_is_mapped_as_they_were():
    k = jnp.array([1.0, 2.0])
    decay = lambda solver, k, dense=False: solve(lambda t, x, k: -k * x, 1.0, k, solver=solver, dense=dense)
    found = jax.vmap(lambda k: decay(Adaptive("heun_euler", max_steps=40), k, True))(k)
    again = jax.vmap(decay)(Recorded(found), k)
    np.testing.assert_allclose(again.x, found.x, rtol=1e-6)
    np.testing.assert_array_equal(again.n_accepted, found.n_accepted)
    with pytest.raises(ValueError, match=r"dense solution of lanes \(2,\)"):
        found.dense(0.5)


def test_no_steps_lead_nowhere():
    nothing = Recorded(solve(lambda t, x, k: -x, 1.0, solver=Adaptive("bosh3", max_steps=9), t1=0.0, dense=True))
    reached = [int(solve(lambda t, x, k: -x, 1.0, solver=nothing, t1=t1).result) for t1 in (0.0, 1.0)]
    assert reached == [Result.SUCCESS, Result.STEP_UNDERFLOW]
