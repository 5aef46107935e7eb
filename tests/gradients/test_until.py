"""Events: their times and states against closed forms, under every gradient method, and what is no event."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agreement import assert_agree
from ode_nets import (
    ACA,
    Adaptive,
    Backsolve,
    Checkpointed,
    Coupled,
    Direct,
    FixedStep,
    Result,
    SecondOrder,
    pad,
    solve_until,
)
from ode_nets.interop.diffrax import DiffraxScheme, DiffraxSolver

falling = SecondOrder(lambda t, r, v, g: -g)
SOLVERS = {
    "uniform": FixedStep("midpoint", 7),
    "traced": FixedStep("midpoint", jnp.int32(7), 9),
    "no interpolant": FixedStep(pad(FixedStep("midpoint", 1), 2).scheme, 7),
    "reversible": FixedStep(Coupled("midpoint"), 7),
    "adaptive": Adaptive("bosh3", 1e-3, 1e-3, max_steps=24),
    "explicit of diffrax": FixedStep(DiffraxScheme(diffrax.Midpoint()), 7),
    "implicit of diffrax": FixedStep(DiffraxScheme(diffrax.Kvaerno3()), 7),
}
METHODS = [Direct(), Checkpointed(), ACA(2), Backsolve()]


def ball(h0, v0, g, floor, t0, solver, method=None, t1=3.0):
    """A ball thrown from a height, until it meets the floor."""
    reaches = lambda t, x: x[0] - floor
    return solve_until(falling, (h0, v0), g, event=reaches, solver=solver, gradient=method, t0=t0, t1=t1)


@pytest.mark.parametrize(
    "solver",
    [pytest.param(name, marks=[] if name in ("uniform", "no interpolant") else [pytest.mark.slow]) for name in SOLVERS],
)
def test_a_ball_meets_the_ground_on_time_and_so_do_its_derivatives(x64, solver):
    """Schemes of order 2 are exact for it, whichever their steps."""

    def exact(h0, v0, g, floor, t0):
        t = t0 + (v0 + jnp.sqrt(v0**2 + 2 * g * (h0 - floor))) / g
        return t, v0 - g * (t - t0)

    def found(*args, method):
        stopped = ball(*args, SOLVERS[solver], method)
        return stopped.t, stopped.x[1]

    args, all_of = (2.0, 0.5, 9.81, 0.1, 0.2), (0, 1, 2, 3, 4)
    expected = jax.jit(lambda *args: (exact(*args), jax.jacrev(exact, all_of)(*args)))(*args)
    methods = METHODS if solver in ("uniform", "adaptive") else [ACA()]
    slopes = lambda method: jax.jacrev(lambda *args: found(*args, method=method), all_of)
    run = lambda *args: [(found(*args, method=method), slopes(method)(*args)) for method in methods]
    for got in jax.jit(run)(*args):
        assert_agree(got, expected, 1e-7 if solver == "implicit of diffrax" else 1e-11)
    stopped = ball(*args, SOLVERS[solver])
    assert bool(stopped.found)
    assert int(stopped.result) == 0
    np.testing.assert_allclose(stopped.x[0], 0.1, atol=1e-13)


def test_a_tank_drains_to_a_level_as_torricelli_says(x64):
    # sqrt(h) falls evenly.
    exact = lambda h0, k, level: 2 * (jnp.sqrt(h0) - jnp.sqrt(level)) / k

    def found(h0, k, level, method):
        solver = Adaptive("dopri5", 1e-10, 1e-12, max_steps=64)
        event = lambda t, h: jnp.sqrt(h) - jnp.sqrt(level)
        field = lambda t, h, k: -k * jnp.sqrt(h)
        return solve_until(field, h0, k, event=event, solver=solver, gradient=method, t1=50.0).t

    args = (2.0, 0.3, 0.5)
    expected = (exact(*args), jax.grad(exact, (0, 1, 2))(*args))
    got = jax.jit(lambda *args: jax.value_and_grad(found, (0, 1, 2))(*args, ACA()))(*args)
    assert_agree(got, expected, 1e-9)
    # Forward mode, by what has it.
    forward = jax.jit(lambda *args: jax.jacfwd(found, (0, 1, 2))(*args, Direct()))(*args)
    assert_agree(forward, expected[1], 1e-9)


def test_lanes_stop_each_at_its_own_time_and_what_never_happens_ends_at_t1(x64):
    heights = jnp.array([0.5, 40.0, 2.0, 300.0])
    for solver in (SOLVERS["uniform"], SOLVERS["adaptive"]):
        end = lambda h0, t1, solver=solver: ball(h0, 0.0, 9.81, 0.0, 0.0, solver, ACA(3), t1)

        def both(h0, t1, end=end):
            slopes = jax.grad(lambda h0, t1: end(h0, t1).t, (0, 1))(h0, t1)
            return end(h0, t1), slopes

        stopped, (d_h, d_t1) = jax.jit(jax.vmap(both, (0, None)))(heights, 3.0)
        t = np.sqrt(2 * heights / 9.81)
        np.testing.assert_array_equal(stopped.found, t < 3)
        np.testing.assert_allclose(stopped.t, np.minimum(t, 3.0), rtol=1e-12)
        np.testing.assert_allclose(d_h, np.where(t < 3, 1 / (9.81 * t), 0), rtol=1e-10)
        np.testing.assert_array_equal(d_t1, t >= 3)
        np.testing.assert_allclose(stopped.x[0][1], 0, atol=1e-12) if t[1] < 3 else None
        np.testing.assert_allclose(stopped.x[0][3], 300 - 9.81 * 4.5, rtol=1e-12)


def test_a_ball_that_starts_on_the_ground_comes_back_to_it_and_bounces(x64):
    solver = FixedStep("midpoint", 10)

    @jax.jit
    def bounces(h0, restitution):
        t, state, times = 0.0, (h0, 0.0), []
        for _ in range(3):
            event = lambda t, x: x[0]
            options = {"event": event, "direction": -1, "t0": t, "t1": t + 2.0}
            stopped = solve_until(falling, state, 9.81, solver=solver, gradient=Direct(), **options)
            t, state = stopped.t, (stopped.x[0], -restitution * stopped.x[1])
            times.append(t)
        return jnp.stack(times)

    h0, r = 1.0, 0.8
    first = np.sqrt(2 * h0 / 9.81)
    expected = first * (1 + 2 * np.cumsum([0, r, r**2]))
    np.testing.assert_allclose(bounces(h0, r), expected, rtol=1e-12)
    slopes = jax.jacrev(bounces, (0, 1))(h0, r)
    np.testing.assert_allclose(slopes[0], expected / 2, rtol=1e-11)
    np.testing.assert_allclose(slopes[1], first * np.array([0, 2, 2 + 4 * r]), rtol=1e-11, atol=1e-12)


def test_direction_chooses_among_the_zeros_and_time_may_run_backward(x64):
    event = lambda t, x: x[0]
    spring = SecondOrder(lambda t, r, v, k: -k * r)
    solver, quarter = FixedStep("rk4", 600), np.pi / 2
    run = lambda **changes: solve_until(spring, (1.0, 0.0), 1.0, event=event, solver=solver, **changes)
    # Along the solve the cosine falls first, whichever the direction of time.
    for t1, direction, expected in ((9.0, 1, 3), (-9.0, -1, -1)):
        stopped = run(t1=t1, direction=direction)
        np.testing.assert_allclose(stopped.t, expected * quarter, rtol=1e-8)
    stopped = run(t1=9.0, dense=True)
    np.testing.assert_allclose(stopped.solution.dense(1.0)[0], np.cos(1.0), rtol=1e-7)
    np.testing.assert_allclose(stopped.t, quarter, rtol=1e-8)


def test_a_solve_that_fails_says_so_and_has_no_derivative(x64):
    def end(h0):
        return ball(h0, 0.0, 9.81, 0.0, 0.0, Adaptive("bosh3", 1e-9, 1e-9, first_step=1e-3, max_steps=2), ACA())

    stopped, slope = end(2.0), jax.grad(lambda h0: end(h0).t)(2.0)
    assert (bool(stopped.found), int(stopped.result)) == (False, 1)
    assert jnp.isnan(stopped.x[0])
    assert jnp.isnan(slope)
    solver = Adaptive("bosh3", 1e-9, 1e-9, first_step=1e-3, max_steps=2)
    with pytest.raises(RuntimeError, match="MAX_STEPS"):
        solve_until(lambda t, x, _: -x, 1.0, event=lambda t, x: x - 0.5, solver=solver, throw=True)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"event": lambda t, x: x}, "expected a floating-point scalar"),
        ({"event": lambda t, x: x[0] > 0}, "expected a floating-point scalar"),
        ({"direction": 2}, "direction=2: expected one of -1, 0, 1"),
        ({"solver": DiffraxSolver(diffrax.Tsit5(), dt0=0.1)}, "stops at no event here.*DiffraxScheme.*diffrax.Event"),
        ({"solver": SOLVERS["no interpolant"], "dense": True}, "has no interpolant"),
    ],
)
def test_what_is_no_event_is_refused_by_name(changes, says):
    given = {"event": lambda t, x: x[0], "solver": FixedStep("euler", 2)} | changes
    with pytest.raises(ValueError, match=says):
        solve_until(falling, (1.0, 0.0), 9.81, **given)


def test_events_on_the_ends_of_steps_are_found_there(x64):
    """Which side of the end they lie on is rounding's choice, and no step leads from one to the other."""

    def first_after(c):
        event = lambda t, x: jnp.where(t > c - 0.3, jnp.sin(jnp.pi * t) * jnp.cos(jnp.pi * c), -1.0)
        still = lambda t, x, k: jnp.ones_like(x)
        return solve_until(still, 0.0, event=event, solver=FixedStep("rk4", 200), gradient=Direct(), t1=100.0)

    times = jnp.arange(1.0, 100.0)
    stopped = jax.jit(jax.vmap(first_after))(times)
    assert not np.any(stopped.result)
    np.testing.assert_allclose(stopped.t, times, rtol=1e-14)
    np.testing.assert_allclose(stopped.x, times, rtol=1e-12)


def test_where_the_function_of_the_event_is_no_number_nothing_is_found(x64):
    event = lambda t, x: jnp.where((x > 0.39) & (x < 0.51), jnp.nan, x - 0.45)
    stopped = solve_until(lambda t, x, k: jnp.ones_like(x), 0.0, event=event, solver=FixedStep("rk4", 10))
    assert (int(stopped.result), bool(stopped.found)) == (Result.NON_FINITE, False)
    assert np.isnan(stopped.x)


@pytest.mark.parametrize("twice", [lambda f: jax.grad(jax.grad(f)), jax.hessian], ids=["reverse", "hessian"])
def test_a_second_derivative_is_refused(twice):
    falls = lambda g: ball(2.0, 0.0, g, 0.0, 0.0, FixedStep("midpoint", 7), Direct()).t
    with pytest.raises(ValueError, match="second derivatives of solve_until"):
        twice(falls)(9.81)
