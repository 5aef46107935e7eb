"""The exchange test and the report: verdicts follow from measures."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets import Adaptive, ContinuousNet, FixedStep, PiecewiseConstant, validity


def test_exchange_passes_an_ode_and_fails_a_tied_model():
    schemes = ("euler", "midpoint", "rk4")
    flow = {(s, n): 0.9 - 0.3 * (n < 4) for s in schemes for n in (1, 2, 4, 8, 16)}
    found = validity.exchange(flow, ("euler", 8), 0.9, measure="accuracy")
    assert found.passed
    assert found.converged_enough
    assert found.critical_step == 1 / 4
    tied = dict.fromkeys(flow, 0.5) | {("euler", 2): 0.95}
    found = validity.exchange(tied, ("euler", 2), 0.95, measure="accuracy")
    assert not found.passed
    assert found.loss == pytest.approx(0.45)
    # Coarser steps and lower orders are no solvers of smaller error.
    low = {("euler", 8): 0.2, ("rk4", 2): 0.2, ("rk4", 4): 0.9, ("rk4", 8): 0.9, ("rk4", 16): 0.9}
    assert validity.exchange(low, ("rk4", 4), 0.9, measure="accuracy").passed
    assert not validity.exchange(low | {("rk4", 16): math.nan}, ("rk4", 4), 0.9, measure="accuracy").passed


def test_exchange_of_errors_takes_ratios_and_ignores_how_far_they_fall():
    falling = {("rk4", n): float(n) ** -4 for n in (1, 2, 4, 8)}
    found = validity.exchange(falling, ("rk4", 4), 4.0**-4, measure="error")
    assert (found.passed, found.converged_enough, found.critical_step) == (True, True, 0.25)
    dip = {("euler", n): 1e-4 if n == 4 else 1e-1 for n in (1, 2, 4, 8, 16)}
    found = validity.exchange(dip, ("euler", 4), 1e-4, measure="error")
    assert (found.passed, found.loss) == (False, pytest.approx(1000))


def test_critical_training_step_lies_between_the_finest_failure_and_what_follows():
    passed = {1: False, 2: True, 4: False, 8: True, 16: True}
    assert validity.critical_training_step(passed) == (1 / 8, 1 / 4)
    good, bad = validity.critical_training_step({1: True, 2: True})
    assert good == 1
    assert math.isnan(bad)
    assert math.isnan(validity.critical_training_step({1: False})[0])


@pytest.mark.usefixtures("x64")
def test_a_bare_field_that_euler_was_fitted_with_is_tied_and_its_flow_is_not():
    # One step of Euler with the field (e^-2 - 1) x is the exact flow of -2 x over a unit of time.
    x0, fit = jnp.array([[1.0], [0.5]]), math.expm1(-2)
    truth, linear = x0 * math.exp(-2), lambda t, x, k: k * x
    tied = validity.examine(validity.of_field(linear, fit, x0, FixedStep("euler", 1)), truth=truth + 1e-3)
    assert tied.verdict == "tied"
    assert tied.dip.detected
    assert "tied to its solver, euler with 1 steps" in tied.sentence
    flow = validity.examine(validity.of_field(linear, -2.0, x0, FixedStep("rk4", 8)), truth=truth)
    assert flow.verdict == "ode"
    assert flow.crossings[0].count == 0
    assert flow.convergence.slopes["rk4"].order == pytest.approx(4, abs=0.3)
    # Without a truth the trained outputs are compared with the flow's.
    assert validity.examine(validity.of_field(linear, fit, x0, FixedStep("euler", 1))).verdict == "tied"


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("scheme", ["heun_euler", "dopri5"])
def test_an_adaptive_solver_is_measured_at_smaller_tolerances_too(scheme):
    x0, oscillate = jnp.array([[1.0, 0.0]]), lambda t, x, k: k * jnp.stack([x[..., 1], -x[..., 0]], -1)
    subject = validity.of_field(oscillate, 6.0, x0, Adaptive(scheme, rtol=1e-3, atol=1e-3))
    report = validity.examine(subject, schemes=("rk4",), factors=(1, 2), n_samples=0)
    assert report.verdict == "ode"
    own, tenth, hundredth = (row for row in report.rows if "rtol" in row)
    assert report.trained == (scheme, own["n_steps"])
    assert own["n_steps"] < tenth["n_steps"] < hundredth["n_steps"]
    assert own["error"] > 3 * tenth["error"] > 9 * hundredth["error"]
    assert ("dopri5", "rk4")[scheme == "heun_euler"] == report.rows[-4]["scheme"]


def test_a_model_that_returns_nan_is_reported_as_such():
    subject = validity.of_field(lambda t, x, k: k * x, np.nan, jnp.ones((2, 1)), FixedStep("rk4", 2))
    report = validity.examine(subject, labels=jnp.zeros(2, int))
    assert report.verdict == "not finite"
    assert "NaN" in report.sentence
    assert report.exchange is None


def test_a_flow_that_ends_nowhere_is_tied_to_the_solver_that_misses_it():
    # x' = x^2 from 1 is infinite at t = 1; Euler's coarse steps pass that by.
    subject = validity.of_field(lambda t, x, k: k * x**2, 2.0, jnp.ones((1, 1)), FixedStep("euler", 1))
    report = validity.examine(subject, factors=(1, 64))
    assert report.verdict == "tied"
    assert "rk4 with 64 steps" in report.sentence
    truth = jnp.full((1, 1), 3.0)
    assert validity.examine(subject, truth=truth, factors=(1, 64), n_samples=0).verdict == "tied"


def test_a_model_is_examined_block_by_block():
    net = ContinuousNet(n_classes=3, widths=(2,), basis=PiecewiseConstant(2), solver=FixedStep("midpoint", 2))
    images = jax.random.normal(jax.random.key(0), (3, 4, 4, 1))
    variables = jax.jit(net.init)(jax.random.key(1), images)
    subject = validity.of_model(net, variables, images)
    np.testing.assert_allclose(subject.run(net.solver), jax.jit(net.apply)(variables, images), atol=1e-6)
    labels = jnp.argmax(subject.run(net.solver), -1)
    report = validity.examine(subject, labels=labels, schemes=("midpoint",), factors=(0.5, 1, 2, 4), n_samples=8)
    # With skip_init an untrained net does nothing, whatever its solver.
    assert report.verdict == "ode"
    assert [c.test for c in report.crossings] == ["jacobian"]
    assert all(row["accuracy"] == 1 for row in report.rows)
    with pytest.raises(ValueError, match="labels has shape"):
        validity.examine(subject, labels=jnp.zeros(4, int))
    with pytest.raises(ValueError, match="both given"):
        validity.examine(subject, labels=labels, truth=images)


def test_subjects_that_cannot_be_examined_are_named():
    x0, linear = jnp.ones((2, 1)), lambda t, x, k: k * x
    with pytest.raises(ValueError, match="at least one sample"):
        validity.of_field(linear, 1.0, jnp.zeros((0, 1)), FixedStep("euler", 1))
    with pytest.raises(ValueError, match="solver="):
        validity.of_field(linear, 1.0, x0, "euler")
    import flax.linen as nn

    with pytest.raises(ValueError, match="of Dense"):
        validity.of_model(nn.Dense(2), {}, x0)
    with pytest.raises(ValueError, match="equal or smaller error"):
        validity.exchange({("rk4", 1): 1.0}, ("rk4", 4), 1.0, measure="accuracy")
    with pytest.raises(ValueError, match="measure"):
        validity.exchange({("rk4", 1): 1.0}, ("rk4", 4), 1.0, measure="speed")
