"""Failure is never silent: a code, NaN at times that were not reached, and gradients that are right or NaN."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets.gradients import ACA, Backsolve, Checkpointed, Direct, solve
from ode_nets.integrate import Adaptive, FixedStep, Result, pad
from ode_nets.weights import BasisExpansion, PiecewiseConstant

METHODS = {
    "direct": Direct(),
    "checkpointed": Checkpointed(),
    "aca": ACA(None),
    "aca in three slots": ACA(3),
    "backsolve": Backsolve(),
}
RATE = 1.3

FIELDS = {
    "decay": lambda t, x, a: -a * x,
    "blow-up": lambda t, x, a: a * x**2,
    "nan from the start": lambda t, x, a: a * x * jnp.nan,
    "nan in the middle": lambda t, x, a: jnp.where(t > 0.5, jnp.nan, -a * x),
    "inf from the start": lambda t, x, a: a * x * jnp.inf,
    "inf in the middle": lambda t, x, a: jnp.where(t > 0.5, jnp.inf, -a * x),
    "too many steps": lambda t, x, a: a * jnp.cos(1e6 * t) * 1e6 * x,
    # Its error is zero, and a state that overflowed would be a scale that excuses any.
    "overflow": lambda t, x, a: jnp.full_like(x, 1e308) + 0 * a * x,
    # sqrt(0) is fine, its slope is not, and 0 * inf is NaN.
    "nan backward": lambda t, x, a: -a * x + jnp.sqrt(0 * x),
}


def field(t, x, theta):
    """All fields in one program, chosen by an integer of theta."""
    return jax.lax.switch(theta["which"], list(FIELDS.values()), t, x, theta["rate"])


_PROGRAMS = {}


def program(method):
    """State, code, and gradients of a solve; compiled once for all failures."""
    if method not in _PROGRAMS:

        def loss(x0, rate, t0, t1, closed, which, sizes):
            solver = Adaptive("heun_euler", sizes[0], sizes[1], first_step=sizes[2], max_steps=4000)
            solution = solve(
                lambda t, x, theta: closed * field(t, x, theta),
                x0,
                {"rate": rate, "which": which},
                solver=solver,
                gradient=METHODS[method],
                t0=t0,
                t1=t1,
            )
            return jnp.sum(solution.x), solution

        _PROGRAMS[method] = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4), has_aux=True))
    return _PROGRAMS[method]


def run(method, name, x0=(1.0, 1.0), t0=0.0, t1=1.0, sizes=(1e-5, 1e-5, 0.01)):
    which = list(FIELDS).index(name)
    (_, solution), gradients = program(method)(np.array(x0), RATE, t0, t1, 1.0, which, sizes)
    return solution, [np.asarray(g) for g in jax.tree.leaves(gradients)]


FAILURES = {
    "blow-up": Result.STEP_UNDERFLOW,
    "nan from the start": Result.NON_FINITE,
    "nan in the middle": Result.NON_FINITE,
    "inf from the start": Result.NON_FINITE,
    "inf in the middle": Result.NON_FINITE,
    "too many steps": Result.MAX_STEPS,
    "overflow": Result.NON_FINITE,
}


@pytest.mark.parametrize("method", METHODS)
def test_a_failed_solve_has_its_code_and_is_nan_in_value_and_gradient(x64, method):
    for name, code in FAILURES.items():
        x0 = (1e308, 1e308) if name == "overflow" else (1.0, 1.0)
        solution, gradients = run(method, name, x0, sizes=(1e-3, 1e-3, 0.01))
        assert Result(int(solution.result)) == code, name
        assert np.isnan(solution.x).all(), name
        for gradient in gradients:
            assert np.isnan(gradient).all(), (name, gradients)


@pytest.mark.parametrize("method", METHODS)
def test_bad_values_that_only_show_at_run_time_have_a_code_too(x64, method):
    """States, tolerances, first steps and times that are traced, so that nothing could be refused."""
    bad = {
        "nan state": ({"x0": (np.nan, 1.0)}, Result.NON_FINITE),
        "inf state": ({"x0": (np.inf, 1.0)}, Result.NON_FINITE),
        "negative rtol": ({"sizes": (-1e-3, 1e-6, 0.1)}, Result.NON_FINITE),
        "nan rtol": ({"sizes": (np.nan, 1e-6, 0.1)}, Result.NON_FINITE),
        "no tolerance at all": ({"sizes": (0.0, 0.0, 0.1)}, Result.NON_FINITE),
        "negative first step": ({"sizes": (1e-3, 1e-6, -0.1)}, Result.NON_FINITE),
        "zero first step": ({"sizes": (1e-3, 1e-6, 0.0)}, Result.NON_FINITE),
        "nan t1": ({"t1": np.nan}, Result.NON_FINITE),
        "inf t1": ({"t1": np.inf}, Result.NON_FINITE),
    }
    for name, (changes, code) in bad.items():
        solution, gradients = run(method, "decay", **changes)
        assert Result(int(solution.result)) == code, name
        assert np.isnan(solution.x).all(), name
        assert all(np.isnan(g).all() for g in gradients), (name, gradients)


@pytest.mark.parametrize("method", METHODS)
def test_a_backward_pass_that_meets_nan_gives_nan(x64, method):
    solution, gradients = run(method, "nan backward")
    assert Result(int(solution.result)) == Result.SUCCESS
    np.testing.assert_allclose(solution.x, np.exp(-RATE), rtol=1e-4)
    assert np.isnan(gradients[0]).all()
    assert np.isnan(gradients[1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (0.3, 0.3), (1.0, 0.0), (-0.7, -1.1), (-1.0, 0.2)])
def test_where_nothing_fails_gradients_are_right(x64, method, t0, t1):
    """t1 = t0 included, where no step carries the derivative with respect to time."""
    solution, gradients = run(method, "decay", t0=t0, t1=t1)
    assert Result(int(solution.result)) == Result.SUCCESS
    growth, span = np.exp(-RATE * (t1 - t0)), t1 - t0
    np.testing.assert_allclose(solution.x, growth, rtol=1e-4)
    x0, rate, d_t0, d_t1, closed = gradients
    np.testing.assert_allclose(x0, [growth, growth], rtol=1e-3)
    np.testing.assert_allclose(rate, -2 * span * growth, rtol=1e-3, atol=1e-12)
    np.testing.assert_allclose(d_t0, 2 * RATE * growth, rtol=1e-3)
    np.testing.assert_allclose(d_t1, -2 * RATE * growth, rtol=1e-3)
    np.testing.assert_allclose(closed, -2 * RATE * span * growth, rtol=1e-3, atol=1e-12)


ASKED = {
    "reached, then nan": ([0.2, 0.45, 0.7], "nan in the middle", Result.NON_FINITE, [0, 0, 1]),
    "unsorted": ([0.2, 0.8, 0.4], "decay", Result.UNSORTED_TIMES, [1, 1, 1]),
    "before t0": ([-0.2, 0.5, 0.7], "decay", Result.UNSORTED_TIMES, [1, 1, 1]),
    "after t1": ([0.2, 0.5, 1.7], "decay", Result.UNSORTED_TIMES, [1, 1, 1]),
    "nan": ([0.2, np.nan, 0.7], "decay", Result.UNSORTED_TIMES, [1, 1, 1]),
    "fine": ([0.0, 0.4, 1.0], "decay", Result.SUCCESS, [0, 0, 0]),
}


@pytest.mark.parametrize(
    ("method", "outputs"),
    [
        ("direct", "clip"),
        ("aca in three slots", "clip"),
        ("direct", "interpolate"),
        ("aca", "interpolate"),
        ("backsolve", "clip"),
    ],
)
def test_asked_times_that_were_not_reached_are_nan_and_others_are_right(x64, method, outputs):
    @jax.jit
    def everything(ts, which):
        def loss(x0, rate, ts):
            solver = Adaptive("bosh3", 1e-6, 1e-6, max_steps=600, outputs=outputs)
            theta = {"rate": rate, "which": which}
            solution = solve(field, x0, theta, solver=solver, gradient=METHODS[method], ts=ts)
            return jnp.sum(solution.x * jnp.array([1.0, 2.0, 3.0])), solution

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(1.0, RATE, ts)

    for name, (ts, which, code, missing) in ASKED.items():
        ts = np.array(ts)
        (_, solution), gradients = everything(ts, list(FIELDS).index(which))
        assert Result(int(solution.result)) == code, name
        np.testing.assert_array_equal(np.isnan(solution.x), missing, err_msg=name)
        reached = np.array(missing) == 0
        np.testing.assert_allclose(np.asarray(solution.x)[reached], np.exp(-RATE * ts[reached]), rtol=1e-5)
        if code != Result.SUCCESS:
            assert all(np.isnan(g).all() for g in gradients), name
        else:
            decay = np.array([1.0, 2.0, 3.0]) * np.exp(-RATE * ts)
            np.testing.assert_allclose(gradients[0], decay.sum(), rtol=1e-4)
            np.testing.assert_allclose(gradients[1], -(ts * decay).sum(), rtol=1e-4)
            np.testing.assert_allclose(gradients[2], -RATE * decay, rtol=1e-3)


@pytest.mark.parametrize("method", [Direct(), Checkpointed("block"), ACA(2), Backsolve()])
def test_a_state_that_leaves_the_numbers_on_a_fixed_grid_has_nan_gradients(x64, method):
    """The slope of `where` is zero where the state is NaN: plausible, and wrong."""

    def loss(x0, rate, closed, which):
        theta = {"rate": rate, "which": which}
        closing = lambda t, x, theta: closed * field(t, x, theta)
        solution = solve(closing, x0, theta, solver=FixedStep("rk4", 5), gradient=method, t1=0.9)
        return solution.x, solution.result

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    for name in ("nan in the middle", "inf in the middle", "nan from the start"):
        (_, result), gradients = run(1.0, RATE, 1.0, list(FIELDS).index(name))
        assert Result(int(result)) == Result.NON_FINITE
        assert np.isnan(gradients).all(), name
    (_, result), gradients = run(1.0, RATE, 1.0, list(FIELDS).index("decay"))
    assert Result(int(result)) == Result.SUCCESS
    assert np.isfinite(gradients).all()


@pytest.mark.parametrize("method", [Direct(), ACA(3), ACA(None), Backsolve()])
def test_a_fixed_grid_tells_of_what_happens_after_the_last_asked_time(x64, method):
    """The blow-up reaches the gradient of the state before it: 0 times infinity."""

    @jax.jit
    @jax.value_and_grad
    def run(x0):
        solver = FixedStep("euler", 8)
        solution = solve(lambda t, x, _: 1e200 * x**3, x0, solver=solver, gradient=method, ts=[0.125])
        return jnp.sum(jnp.where(solution.result == Result.NON_FINITE, solution.x, 0))

    value, gradient = run(1.0)
    np.testing.assert_allclose(value, 1.25e199)
    assert np.isnan(gradient)


@pytest.mark.parametrize(
    "solver",
    [
        FixedStep("euler", 4),
        Adaptive("heun_euler"),
        dataclasses.replace(pad(FixedStep("euler", 4), 2), max_steps=8),
    ],
)
@pytest.mark.parametrize("method", [Direct(), ACA(3), Backsolve()])
def test_a_report_that_leaves_the_numbers_is_a_failure(method, solver):
    def run(rate):
        field = lambda t, x, rate: (-rate * x, jnp.where(t > 0.5, jnp.nan, x))
        solution = solve(field, 1.0, rate, solver=solver, gradient=method, has_aux=True)
        return solution.x, solution

    (_, solution), gradient = jax.jit(jax.value_and_grad(run, has_aux=True))(0.3)
    assert Result(int(solution.result)) == Result.NON_FINITE
    assert np.isnan(gradient)


def test_one_failure_of_many_leaves_the_others_alone(x64):
    """Mapped over start states: a blow-up makes its own gradient NaN and, where shared, the sum's."""

    def loss(x0, rate, solver):
        solution = solve(lambda t, x, a: a * x**2, x0, rate, solver=solver, gradient=ACA(4))
        return solution.x, solution.result

    @jax.jit
    def everything(x0, rate):
        solver = Adaptive("bosh3", 1e-6, 1e-6, max_steps=600)
        each = jax.vmap(jax.value_and_grad(lambda x: loss(x, rate, solver), has_aux=True))(x0)
        return each, jax.grad(lambda rate: jnp.sum(jax.vmap(lambda x: loss(x, rate, solver)[0])(x0)))(rate)

    ((x, result), gradient), shared = everything(np.array([0.25, 2.0, 0.5]), 1.0)
    assert [int(r) == Result.SUCCESS for r in result] == [True, False, True]
    np.testing.assert_allclose(x, [1 / 3, np.nan, 1.0], rtol=1e-4)
    np.testing.assert_allclose(gradient, [16 / 9, np.nan, 4.0], rtol=1e-3)
    assert np.isnan(shared)


def test_a_minimum_step_and_a_bound_on_trials_stop_a_solve_where_they_say():
    @jax.jit
    def run(x0):
        options = {"gradient": Direct(), "t1": 2.0}
        small = solve(lambda t, x, a: x**2, x0, solver=Adaptive("bosh3", min_step=1e-2), **options)
        few = solve(lambda t, x, a: -x, x0, solver=Adaptive("bosh3", 1e-7, 1e-7, max_steps=3), **options)
        return small, few

    small, few = run(1.0)
    assert Result(int(small.result)) == Result.STEP_UNDERFLOW
    assert int(small.n_accepted) < 100
    assert Result(int(few.result)) == Result.MAX_STEPS
    assert int(few.n_accepted + few.n_rejected) == 3


def test_the_last_step_may_be_the_last_allowed():
    """A solve that needs exactly `max_steps` trials succeeds."""
    run = lambda n: solve(lambda t, x, a: -x, 1.0, solver=Adaptive("bosh3", max_steps=n), gradient=Direct())
    needed = int(jax.jit(lambda: run(100).n_accepted)())
    enough, short = jax.jit(lambda: (run(needed), run(needed - 1)))()
    assert (int(enough.result), int(short.result)) == (Result.SUCCESS, Result.MAX_STEPS)
    assert np.isfinite(enough.x)
    assert np.isnan(short.x)


@pytest.mark.parametrize("solver", [FixedStep("midpoint", 3), Adaptive("bosh3")], ids=repr)
@pytest.mark.parametrize("name", ["t0", "t1"])
def test_a_time_that_is_no_number_gives_none_though_weights_are_read_unchecked(solver, name):
    weights = BasisExpansion(PiecewiseConstant(4), jnp.arange(1.0, 5.0))

    @jax.jit
    def end(t):
        times = {"t0": 0.0, "t1": 1.0} | {name: t}
        solution = solve(lambda t, x, k: -k * x, jnp.ones(2), weights, solver=solver, **times)
        return solution.x, solution.result

    x, result = end(jnp.nan)
    assert jnp.isnan(x).all()
    assert result == Result.NON_FINITE
