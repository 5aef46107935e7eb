"""The exchange test and the report: verdicts follow from measures."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets import (
    MLP,
    Adaptive,
    BasisExpansion,
    ContinuousNet,
    Direct,
    FixedStep,
    OdeBlock,
    PiecewiseConstant,
    Result,
    get_tableau,
    solve,
    validity,
)
from ode_nets.validity import Manifestation, Quality, describe, exchange, judge, subjects


def euler(n):
    return Manifestation("euler", n)


def rk4(n):
    return Manifestation("rk4", n)


def test_exchange_passes_an_ode_and_fails_a_tied_model():
    schemes = ("euler", "midpoint", "rk4")
    flow = {Manifestation(s, n): 0.9 - 0.3 * (n < 4) for s in schemes for n in (1, 2, 4, 8, 16)}
    found = validity.exchange(Quality(flow, "accuracy"), euler(8))
    assert found.passed
    assert found.converged_enough
    assert found.critical_step == 1 / 4
    tied = dict.fromkeys(flow, 0.5) | {euler(2): 0.95}
    found = validity.exchange(Quality(tied, "accuracy"), euler(2))
    assert not found.passed
    assert found.loss == pytest.approx(0.45)
    # From the trained step on it is no ODE; below it, it would be one if nothing finer failed.
    assert math.isnan(found.critical_step)
    # Coarser steps and lower orders are no solvers of smaller error.
    low = {euler(8): 0.2, rk4(2): 0.2, rk4(4): 0.9, rk4(8): 0.9, rk4(16): 0.9}
    assert validity.exchange(Quality(low, "accuracy"), rk4(4)).passed
    assert not validity.exchange(Quality(low | {rk4(16): math.nan}, "accuracy"), rk4(4)).passed


def test_exchange_of_errors_takes_ratios_and_ignores_how_far_they_fall():
    falling = {rk4(n): float(n) ** -4 for n in (1, 2, 4, 8)}
    found = validity.exchange(Quality(falling, "error"), rk4(4))
    assert (found.passed, found.converged_enough, found.critical_step) == (True, True, 0.25)
    dip = {euler(n): 1e-4 if n == 4 else 1e-1 for n in (1, 2, 4, 8, 16)}
    found = validity.exchange(Quality(dip, "error"), euler(4))
    assert (found.passed, found.loss) == (False, pytest.approx(1000))


EULER_DIGITS = """euler 3 0.9136 0.3444, euler 4 0.9861 0.0505, euler 5 0.9861 0.0713, euler 6 0.9721 0.1149,
euler 8 0.9805 0.0517, euler 11 0.9582 0.1091, midpoint 4 0.9721 0.0832, midpoint 6 0.9387 0.2634, midpoint 11 0.9777
0.0487, rk4 4 0.9610 0.1118, rk4 6 0.9248 0.3382, rk4 8 0.9638 0.1134, rk4 11 0.9777 0.0652"""
"""A ContinuousNet trained on digits with four Euler steps: scheme, steps, accuracy, cross-entropy."""
RK4_DIGITS = "rk4 2 0.9805 0.0437, rk4 4 0.9861 0.0420, rk4 6 0.9861 0.0422, rk4 8 0.9861 0.0420, rk4 11 0.9833 0.0408"


def measured(table):
    rows = [entry.split() for entry in table.split(",")]
    keys = [Manifestation(scheme, int(n)) for scheme, n, *_ in rows]
    accuracies, losses = (dict(zip(keys, [float(row[i]) for row in rows], strict=True)) for i in (2, 3))
    return Quality(accuracies, "accuracy"), Quality(losses, "cross_entropy")


def test_a_cross_entropy_that_explodes_is_tied_where_accuracy_hardly_falls():
    accuracies, losses = measured(EULER_DIGITS)
    trained = euler(4)
    plain = exchange(accuracies, trained)
    assert plain.passed
    assert (plain.worst, plain.entropy_ratio) == (rk4(6), None)
    found = exchange(accuracies, trained, entropies=losses)
    assert not found.passed
    assert found.loss == plain.loss == pytest.approx(0.0613)
    assert found.entropy_ratio == pytest.approx(0.3382 / 0.0505)
    judgement = judge(found, trained)
    assert (judgement.verdict, judgement.reason) == ("tied", "loses its quality")
    sentence = describe(judgement)
    for part in ("6.1 points of accuracy", "multiplies the cross-entropy by 6.7"):
        assert part in sentence
    accuracies, losses = measured(RK4_DIGITS)
    found = exchange(accuracies, rk4(4), entropies=losses)
    assert found.entropy_ratio == pytest.approx(1.0, abs=0.01)
    assert judge(found, rk4(4)).verdict == "ode"


def test_a_verdict_says_its_standard_errors_and_whether_another_lies_within_two():
    """Paired: what one sample loses another may win; McNemar's variance of the difference of two shares."""
    n, trained = 400, euler(4)
    own, worst = np.arange(n) < 380, np.arange(n) >= 60
    for tolerance, certain in ((0.02, True), (0.09, False), (0.12, False), (0.3, True)):
        found = exchange(Quality({trained: 0.95, euler(8): 0.85}, "accuracy", tolerance), trained)
        ones = np.ones(n)
        sure = validity.uncertainty(found, hits=(own, worst), entropies=(ones, 2 * ones), floor=0.01)
        lost, won = 60, 20
        assert sure.loss == pytest.approx(((lost + won) / n - ((lost - won) / n) ** 2) ** 0.5 / n**0.5)
        assert (sure.n_samples, sure.certain, sure.entropy_ratio) == (n, certain, pytest.approx(0.0))
    sentence = describe(dataclasses.replace(judge(found, trained), uncertainty=sure))
    assert "loses 10.0 points of accuracy (± 2.2)" in sentence
    assert "standard errors over 400 samples)" in sentence
    # Where nothing differs on these samples, one more might have.
    same = validity.uncertainty(found, hits=(own, own), entropies=(ones, ones), floor=0.01)
    assert same.loss == 1 / n


def test_the_error_of_a_ratio_of_means_is_that_of_resampled_ones():
    rng = np.random.default_rng(0)
    own = rng.exponential(0.3, 500)
    other = 2 * own + rng.exponential(0.2, 500)
    found = exchange(Quality({euler(4): 0.9, euler(8): 0.9}, "accuracy"), euler(4))
    sure = validity.uncertainty(found, hits=(own < 1, own < 1), entropies=(own, other), floor=0.01)
    picks = rng.integers(0, 500, (2000, 500))
    resampled = other[picks].mean(1) / own[picks].mean(1)
    assert sure.entropy_ratio == pytest.approx(resampled.std(), rel=0.1)


def test_cross_entropies_of_over_confident_networks_are_no_measure():
    accuracies = Quality(dict.fromkeys([rk4(n) for n in (2, 4, 8)], 1.0), "accuracy")
    sure = {rk4(2): 1e-6, rk4(4): 1e-4, rk4(8): 0.02}
    assert exchange(accuracies, rk4(2), entropies=Quality(sure, "cross_entropy")).passed
    assert not exchange(accuracies, rk4(2), entropies=Quality(sure, "cross_entropy", floor=1e-3)).passed
    assert not exchange(accuracies, rk4(2), entropies=Quality(sure | {rk4(8): 0.2}, "cross_entropy")).passed
    with pytest.raises(ValueError, match="among them"):
        exchange(accuracies, rk4(2), entropies=Quality({rk4(4): 1.0}, "cross_entropy"))


def test_a_network_at_chance_has_nothing_to_lose():
    accuracies = {rk4(n): 0.3 - 0.2 * (n == 8) for n in (4, 8, 16)}
    found = exchange(Quality(accuracies, "accuracy"), rk4(4))
    assert judge(found, rk4(4)).verdict == "tied"
    judgement = judge(found, rk4(4), least=0.35)
    assert (judgement.verdict, judgement.reason) == ("undecided", "not trained")
    assert "not trained; an accuracy of 30.0 % is not above chance by a margin (35.0 %)" in describe(judgement)


def test_a_gain_under_finer_steps_is_no_loss_but_lowers_the_critical_step():
    gains = {euler(n): 0.7 + 0.25 * (n >= 8) for n in (2, 4, 8, 16)}
    found = exchange(Quality(gains, "accuracy"), euler(4))
    assert (found.passed, found.critical_step) == (True, 1 / 8)
    assert "its own, 0.25, is larger" in describe(judge(found, euler(4)))


def test_errors_below_rounding_tie_nobody():
    falling = {rk4(n): error for n, error in ((2, 1e-3), (4, 0.0), (8, 1e-6), (16, 2e-7))}
    assert not exchange(Quality(falling, "error"), rk4(4)).passed
    found = exchange(Quality(falling, "error", floor=1e-5), rk4(4))
    assert (found.passed, found.loss, found.critical_step) == (True, 1.0, 1 / 4)


def test_critical_training_step_lies_between_the_finest_failure_and_what_follows():
    passed = {1: False, 2: True, 4: False, 8: True, 16: True}
    assert validity.critical_training_step(passed) == (1 / 8, 1 / 4)
    good, bad = validity.critical_training_step({1: True, 2: True})
    assert good == 1
    assert math.isnan(bad)
    assert math.isnan(validity.critical_training_step({1: False})[0])


@pytest.mark.usefixtures("x64")
def test_steps_that_weights_jump_inside_of_tie_nobody():
    """Six steps on four intervals are less exact than the four that fit them, however fine."""
    rates, x0 = jnp.array([[-3.0], [2.0], [-2.0], [3.0]]), jnp.array([[1.0], [0.5]])
    theta = BasisExpansion(PiecewiseConstant(4), rates)
    subject = validity.of_field(lambda t, x, k: k * x, theta, x0, FixedStep("rk4", 4))
    report = validity.examine(subject, truth=x0 * jnp.exp(rates.mean()), n_samples=0)
    errors = {(row["scheme"], row["n_steps"]): row["error"] for row in report.rows}
    assert errors["rk4", 6] > 10 * errors["rk4", 4] > 10 * errors["rk4", 8]
    assert (report.verdict, report.exchange.passed) == ("ode", True)
    assert report.exchange.critical_step == 1 / 8
    with pytest.raises(ValueError, match=r"t0=0.0, t1=0.5: expected the domain \(0.0, 1.0\) of the weights"):
        validity.of_field(lambda t, x, k: k * x, theta, x0, FixedStep("rk4", 4), t1=0.5)


@pytest.mark.usefixtures("x64")
def test_a_model_that_does_not_fit_the_truth_is_held_against_its_own_flow():
    """One Euler step of -1.9 x ends at -0.9 x0, its flow at 0.15 x0: to a truth of -0.375 x0 both are as near."""
    x0 = jnp.array([[1.0], [0.5], [0.8]])
    subject = validity.of_field(lambda t, x, k: k * x, -1.9, x0, FixedStep("euler", 1))
    report = validity.examine(subject, truth=-0.375 * x0)
    assert (report.verdict, report.exchange.measure) == ("tied", "disagreement")
    assert "away from the flow's outputs" in report.sentence
    assert math.isnan(report.exchange.critical_step) or report.exchange.critical_step < 1
    with pytest.raises(ValueError, match="truth holds NaN"):
        validity.examine(subject, truth=x0 * jnp.array([[1.0], [jnp.nan], [1.0]]))
    with pytest.raises(ValueError, match="n_samples=-3"):
        validity.examine(subject, n_samples=-3)


def test_blocks_after_a_stiff_one_are_given_what_the_adaptive_solver_hands_on():
    """Sixteen steps of RK4 leave the finite numbers at a rate of 400; its own steps do not."""

    class Two(nn.Module):
        solver: Adaptive
        gradient: Direct = Direct()

        def __call__(self, x):
            for rate in (400.0, 1.0):
                decay = lambda t, x, k: -k * (x - 1)
                x = solve(decay, x, jnp.float32(rate), solver=self.solver, gradient=self.gradient).x
            return x

    x0 = jnp.array([[0.0], [0.5]])
    net = Two(Adaptive("heun_euler", rtol=1e-2, atol=1e-2))
    subject = validity.of_model(net, {}, x0)
    counts = subjects.accepted_steps(subject, [net.solver])
    assert counts[0][1] == Result.SUCCESS
    few = Two(Adaptive("heun_euler", rtol=1e-2, atol=1e-2, max_steps=4))
    report = validity.examine(validity.of_model(few, {}, x0), n_samples=0)
    assert report.verdict == "not finite"
    assert "MAX_STEPS at rtol 0.01" in report.sentence


@pytest.mark.usefixtures("x64")
def test_a_bare_field_that_euler_was_fitted_with_is_tied_and_its_flow_is_not():
    # One step of Euler with the field (e^-2 - 1) x is the exact flow of -2 x over a unit of time.
    x0, fit = jnp.array([[1.0], [0.5]]), math.expm1(-2)
    truth, linear = x0 * math.exp(-2), lambda t, x, k: k * x
    tied = validity.examine(validity.of_field(linear, fit, x0, FixedStep("euler", 1)), truth=truth + 1e-3)
    assert tied.verdict == "tied"
    assert tied.dip.detected
    assert "tied to its solver, euler with 1 step" in tied.sentence
    flow = validity.examine(validity.of_field(linear, -2.0, x0, FixedStep("rk4", 8)), truth=truth)
    assert flow.verdict == "ode"
    assert flow.crossings[0].count == 0
    assert flow.convergence.slopes["rk4"].order == pytest.approx(4, abs=0.3)
    # Without a truth the trained outputs are compared with the flow's.
    assert validity.examine(validity.of_field(linear, fit, x0, FixedStep("euler", 1))).verdict == "tied"


def test_exact_models_are_odes_down_to_the_rounding_of_float32():
    x0 = jnp.array([[1.0], [0.5]])
    subject = validity.of_field(lambda t, x, k: k * jnp.ones_like(x), 1.0, x0, FixedStep("euler", 10))
    report = validity.examine(subject, truth=x0 + 1, factors=(1, 2, 4, 8), n_samples=0)
    assert report.verdict == "ode"
    assert not report.dip.detected
    plane, turn = (
        jnp.array([[1.0, 0.0], [0.3, 0.7]]),
        np.array([[math.cos(2), math.sin(2)], [-math.sin(2), math.cos(2)]]),
    )
    oscillate = lambda t, x, k: k * jnp.stack([x[..., 1], -x[..., 0]], -1)
    subject = validity.of_field(oscillate, 2.0, plane, FixedStep("rk4", 96))
    truth = jnp.asarray(np.asarray(plane) @ turn.T)
    assert validity.examine(subject, truth=truth, schemes=(), n_samples=0).verdict == "ode"


def test_verdicts_do_not_depend_on_the_origin_nor_on_whether_an_orbit_returns():
    fit, around = math.expm1(-2), lambda t, x, k: k[0] * (x - k[1])
    for c in (0.0, 100.0):
        subject = validity.of_field(around, (fit, c), jnp.array([[1.0], [0.5]]) + c, FixedStep("euler", 1))
        assert validity.examine(subject, n_samples=0).verdict == "tied"
    # One sample has no spread, and a whole turn ends where it began.
    one = validity.of_field(around, (fit, 100.0), jnp.array([[101.0]]), FixedStep("euler", 1))
    assert validity.examine(one, n_samples=0).verdict == "tied"
    oscillate = lambda t, x, k: k * jnp.stack([x[..., 1], -x[..., 0]], -1)
    turn = validity.of_field(oscillate, 2 * math.pi, jnp.array([[1.0, 0.0]]), FixedStep("rk4", 16))
    assert validity.examine(turn, n_samples=0).verdict == "ode"
    # An attractor leaves no spread to speak of, and Euler is right to a millionth of the way.
    merge = validity.of_field(around, (-20.0, 1.0), jnp.array([[0.0], [3.0]]), FixedStep("euler", 32))
    assert validity.examine(merge, n_samples=0).verdict == "ode"


def test_equal_steps_are_no_match_for_an_adaptive_solver():
    # A transient of length 0.005, which as many equal steps as the solver accepts pass over.
    x0, transient = jnp.array([[1.0], [0.5]]), lambda t, x, k: -k * x / (t + 0.005)
    subject = validity.of_field(transient, 2.0, x0, Adaptive("heun_euler", rtol=1e-3, atol=1e-3))
    report = validity.examine(subject, truth=x0 * (0.005 / 1.005) ** 2, factors=(1, 2, 8), n_samples=0)
    assert report.verdict == "ode"
    assert "at rtol = 0.001 and below" in report.sentence
    grid = {(row["scheme"], row["n_steps"]): row["error"] for row in report.rows if "rtol" not in row}
    assert grid["midpoint", report.trained.n_steps] > 100 * next(row["error"] for row in report.rows if "rtol" in row)
    assert report.exchange.worst != Manifestation("midpoint", report.trained.n_steps)


@pytest.mark.usefixtures("x64")
def test_running_out_of_steps_is_no_verdict_on_the_model():
    x0, oscillate = jnp.array([[1.0, 0.0], [0.3, 0.7]]), lambda t, x, k: k * jnp.stack([x[..., 1], -x[..., 0]], -1)
    turn = np.array([[math.cos(6), math.sin(6)], [-math.sin(6), math.cos(6)]])
    truth, few = jnp.asarray(np.asarray(x0) @ turn.T), Adaptive("heun_euler", rtol=1e-2, atol=1e-2, max_steps=32)
    report = validity.examine(
        validity.of_field(oscillate, 6.0, x0, few), truth=truth, schemes=("rk4",), factors=(1, 2), n_samples=0
    )
    assert report.verdict == "ode"
    assert [row["result"] for row in report.rows if "rtol" in row] == ["SUCCESS"] * 3
    # Ten thousand steps are more than any smaller tolerance is given.
    subject = validity.of_field(oscillate, 6.0, x0, Adaptive("heun_euler", rtol=1e-6, atol=1e-6))
    report = validity.examine(subject, schemes=("rk4",), factors=(1,), n_samples=0)
    assert report.verdict == "undecided"
    assert "the solver failed at all smaller tolerances (MAX_STEPS at rtol 1e-07" in report.sentence


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("scheme", ["heun_euler", "dopri5"])
def test_an_adaptive_solver_is_measured_at_smaller_tolerances_too(scheme):
    x0, oscillate = jnp.array([[1.0, 0.0]]), lambda t, x, k: k * jnp.stack([x[..., 1], -x[..., 0]], -1)
    subject = validity.of_field(oscillate, 6.0, x0, Adaptive(scheme, rtol=1e-3, atol=1e-3))
    report = validity.examine(subject, schemes=("rk4",), factors=(1, 2), n_samples=0)
    assert report.verdict == "ode"
    own, tenth, hundredth = (row for row in report.rows if "rtol" in row)
    assert report.trained == Manifestation(scheme, own["n_steps"], rtol=1e-3)
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


def test_a_number_of_steps_may_be_an_array():
    subject = validity.of_field(lambda t, x, k: k * x, -1.0, jnp.ones((2, 1)), FixedStep("rk4", jnp.array(4)))
    assert validity.examine(subject, factors=(1, 2)).trained == rk4(4)


def test_a_model_is_examined_block_by_block():
    net = ContinuousNet(n_classes=3, widths=(2,), basis=PiecewiseConstant(2), solver=FixedStep("midpoint", 2))
    images = jax.random.normal(jax.random.key(0), (12, 4, 4, 1))
    variables = jax.jit(net.init)(jax.random.key(1), images)
    subject = validity.of_model(net, variables, images)
    np.testing.assert_allclose(subject.run(net.solver), jax.jit(net.apply)(variables, images), atol=1e-6)
    labels, few = jnp.arange(12) % 3, {"schemes": ("midpoint",), "factors": (0.5, 1, 2, 4)}
    report = validity.examine(subject, labels=labels, n_samples=8, **few)
    # With skip_init an untrained net does nothing, whatever its solver, and has no accuracy to lose.
    assert report.verdict == "undecided"
    assert "not trained" in report.sentence
    assert judge(report.exchange, report.trained).verdict == "ode"
    assert report.exchange.entropy_ratio == pytest.approx(1)
    assert [c.test for c in report.crossings] == ["jacobian"]
    assert len({row["accuracy"] for row in report.rows}) == 1
    with pytest.raises(ValueError, match="labels has shape"):
        validity.examine(subject, labels=jnp.zeros(4, int))
    with pytest.raises(ValueError, match="labels from 0 to 3"):
        validity.examine(subject, labels=jnp.arange(12) % 4)
    with pytest.raises(ValueError, match="both given"):
        validity.examine(subject, labels=labels, truth=images)


def test_subjects_that_cannot_be_examined_are_named():
    x0, linear = jnp.ones((2, 1)), lambda t, x, k: k * x
    with pytest.raises(ValueError, match="at least one sample"):
        validity.of_field(linear, 1.0, jnp.zeros((0, 1)), FixedStep("euler", 1))
    with pytest.raises(ValueError, match="solver="):
        validity.of_field(linear, 1.0, x0, "euler")
    with pytest.raises(ValueError, match="expected one number, which smaller ones"):
        validity.of_field(linear, 1.0, x0, Adaptive("dopri5", rtol=jnp.full(1, 1e-3)))
    with pytest.raises(ValueError, match="net is a Dense with no solver, no gradient"):
        validity.of_model(nn.Dense(2), {}, x0)
    with pytest.raises(ValueError, match="equal or smaller error"):
        exchange(Quality({rk4(1): 1.0, rk4(4): 1.0}, "accuracy"), rk4(4))
    with pytest.raises(ValueError, match=r"expected Manifestation\('rk4', 4\)"):
        exchange(Quality({rk4(8): 1.0}, "accuracy"), rk4(4))
    with pytest.raises(ValueError, match="own=nan"):
        exchange(Quality({rk4(4): math.nan, rk4(8): 0.9}, "accuracy"), rk4(4))
    accuracies = Quality({rk4(4): 0.9, rk4(8): 0.9}, "accuracy")
    with pytest.raises(ValueError, match=r"expected \[Manifestation\('rk4', 8\)\] among them"):
        exchange(accuracies, rk4(4), entropies=Quality({rk4(4): 0.1}, "cross_entropy"))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"values": {euler(4): 0.9, euler(8): 98.6}}, "from 0.9 to 98.6: expected fractions"),
        ({"tolerance": math.nan}, "tolerance=nan"),
        ({"floor": -1.0}, "floor=-1"),
        ({"measure": "speed"}, "measure='speed'"),
    ],
)
def test_a_quality_that_cannot_be_compared_is_named(changes, match):
    with pytest.raises(ValueError, match=match):
        Quality(**({"values": {euler(4): 0.9}, "measure": "accuracy"} | changes))


def test_a_block_has_the_span_that_it_says():
    net = OdeBlock(MLP(2, (4,)), PiecewiseConstant(1), FixedStep("rk4", 2), t1=4.0)
    inputs = jax.random.normal(jax.random.key(0), (4, 2))
    assert validity.of_model(net, net.init(jax.random.key(1), inputs), inputs).span == 4.0

    class Two(nn.Module):
        solver: FixedStep = FixedStep("euler", 1)
        gradient: Direct = Direct()

        @nn.compact
        def __call__(self, x):
            for t1 in (1.0, 2.0):
                x = OdeBlock(MLP(2), PiecewiseConstant(1), self.solver, self.gradient, t1=t1)(x)
            return x

    with pytest.raises(ValueError, match=r"spans \[1\.0, 2\.0\]: expected one"):
        validity.of_model(Two(), Two().init(jax.random.key(1), inputs), inputs)


@pytest.mark.parametrize("name", ["mine", "rk4"])
def test_schemes_that_are_not_of_the_catalogue_are_refused_by_name(name):
    scheme = dataclasses.replace(get_tableau("euler"), name=name)
    with pytest.raises(ValueError, match="expected a scheme of the catalogue"):
        validity.of_field(lambda t, x, k: -x, 0.0, jnp.ones((2, 1)), FixedStep(scheme, 4))


def test_a_first_step_may_be_an_array():
    solver = Adaptive("bosh3", 1e-2, 1e-3, first_step=jnp.asarray(0.1))
    assert validity.of_field(lambda t, x, k: -x, 0.0, jnp.ones((2, 1)), solver).solver.first_step == pytest.approx(0.1)
