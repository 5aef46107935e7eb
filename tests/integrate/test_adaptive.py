"""Adaptive steps: exact counts, exact landings, dense output, norms, controllers, direction, accuracy."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from ode_nets.control import StepController
from ode_nets.gradients import Direct, solve
from ode_nets.integrate import Adaptive, Result
from ode_nets.tableaus import SCHEMES
from ode_nets.weights import BasisExpansion, Constant, Joint, PiecewiseConstant, PiecewiseLinear

EMBEDDED = tuple(key for key, tableau in SCHEMES.items() if tableau.b_error is not None)


def van_der_pol(t, x, theta):
    """van der Pol's oscillator (ACA eq. 81-82) with a stiffness that makes steps fail."""
    return jnp.stack([x[1], (5.0 - x[0] ** 2) * x[1] - x[0]])


START = np.array([2.0, 0.0])


def run_counted(field, x0, weights=None, **times):
    """A compiled solve and the times at which it really evaluated its field, in no order."""
    seen = []

    def counted(t, x, theta):
        jax.debug.callback(lambda t: seen.append(float(t)), t)
        return field(t, x, theta)

    def run(x0, weights, ts):
        solver = times["solver"]
        span = {name: times[name] for name in ("t0", "t1") if name in times}
        return solve(counted, x0, weights, solver=solver, gradient=Direct(), ts=ts, **span)

    solution = jax.block_until_ready(jax.jit(run)(x0, weights, times.get("ts")))
    jax.effects_barrier()
    return solution, seen


CASES = {
    "Hairer's start": {},
    "a given first step that is far too long": {"first_step": 3.0},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("key", EMBEDDED)
def test_counts_are_what_a_counting_field_counts(x64, key, case):
    """Rejected trials included; a first stage is reused after a rejection and, in FSAL pairs, after any step."""
    tableau = SCHEMES[key]
    solver = Adaptive(key, 1e-3, 1e-3, max_steps=1000, **CASES[case])
    solution, seen = run_counted(van_der_pol, START, solver=solver, t1=4.0)
    accepted, rejected = int(solution.n_accepted), int(solution.n_rejected)
    assert rejected >= 2
    assert int(solution.result) == Result.SUCCESS
    assert int(solution.nfe) == len(seen)
    trials = accepted + rejected
    hairer = "first_step" not in CASES[case]
    if tableau.fsal:
        expected = 1 + hairer + trials * (tableau.n_stages - 1)
    else:
        # Every trial evaluates all stages but those whose first is known: after a rejection or a start by Hairer.
        expected = 2 * hairer + trials * tableau.n_stages - rejected - hairer
    assert int(solution.nfe) == expected


JUMPS = np.array([1.0, -2.0, 3.0, -0.5])


@pytest.mark.parametrize(
    ("weights", "reuses"),
    [
        (BasisExpansion(PiecewiseConstant(4), JUMPS), False),
        (Joint({"a": Constant(1.0), "b": BasisExpansion(PiecewiseConstant(4), JUMPS)}), False),
        (BasisExpansion(PiecewiseConstant(1), JUMPS[:1]), True),
        (BasisExpansion(PiecewiseLinear(4), JUMPS), True),
        (Constant(2.0), True),
        ({"theta": 2.0}, True),
    ],
    ids=["jumps", "one part jumps", "one interval", "continuous", "constant", "plain tree"],
)
def test_last_stages_are_reused_unless_the_weights_jump(x64, weights, reuses):
    """The two stages at a jump read it from different sides: reused, the slope would be that of the past."""
    value = lambda theta: sum(jax.tree.leaves(theta))
    solver = Adaptive("dopri5", 1e-6, 1e-6, max_steps=200)
    solution, seen = run_counted(lambda t, x, theta: value(theta) * x, np.array(1.0), weights, solver=solver)
    accepted, rejected = int(solution.n_accepted), int(solution.n_rejected)
    stages = SCHEMES["dopri5"].n_stages
    trials = accepted + rejected
    expected = 2 + trials * (stages - 1) if reuses else 1 + trials * stages - rejected
    assert int(solution.nfe) == len(seen) == expected


def test_a_jump_that_steps_land_on_costs_no_accuracy(x64):
    """dx/dt = theta(t) with jumps at asked times: every stage reads its own step's side, so x is exact."""
    weights = BasisExpansion(PiecewiseConstant(4), jnp.asarray(JUMPS))
    ts = np.array([0.25, 0.5, 0.75, 1.0])

    @jax.jit
    def run(weights, ts):
        options = {"solver": Adaptive("bosh3", 1e-6, 1e-6, max_steps=100, outputs="clip"), "gradient": Direct()}
        forward = solve(lambda t, x, theta: theta, 0.0, weights, ts=ts, **options)
        back = solve(lambda t, x, theta: theta, 0.0, weights, ts=1 - ts, t0=1.0, t1=0.0, **options)
        return forward, back

    forward, back = run(weights, ts)
    np.testing.assert_allclose(forward.x, np.cumsum(JUMPS) / 4, rtol=0, atol=1e-15)
    np.testing.assert_allclose(back.x, -np.cumsum(JUMPS[::-1]) / 4, rtol=0, atol=1e-15)
    assert int(forward.n_rejected) == int(back.n_rejected) == 0


def test_piecewise_constant_weights_off_the_steps_meet_the_tolerance(x64):
    weights = BasisExpansion(PiecewiseConstant(4), jnp.asarray(JUMPS))
    solver = Adaptive("dopri5", 1e-8, 1e-8, max_steps=500)
    run = lambda w: solve(lambda t, x, theta: theta * x, 1.0, w, solver=solver, gradient=Direct())
    solution = jax.jit(run)(weights)
    assert int(solution.result) == Result.SUCCESS
    np.testing.assert_allclose(solution.x, np.exp(JUMPS.mean()), rtol=5e-6)


def test_steps_land_exactly_on_asked_times_and_on_the_end(x64):
    """Times that steps of any size would miss by rounding; each is the first stage of the step after it."""
    ts = np.array([0.1, 0.3, 0.7, 1.1, 1.3, 1.3, 2.0])
    solver = Adaptive("heun_euler", 1e-3, 1e-3, first_step=0.1, max_steps=500, outputs="clip")
    solution, seen = run_counted(lambda t, x, theta: -x, np.ones(2), solver=solver, t1=2.1, ts=ts)
    assert set(ts) <= set(seen)
    assert max(seen) == 2.1
    np.testing.assert_allclose(solution.x[:, 0], np.exp(-ts), rtol=3e-3)
    np.testing.assert_array_equal(solution.x[4], solution.x[5])

    back = solve(lambda t, x, theta: -x, np.ones(2), t0=0.1, t1=-0.6, solver=Adaptive("bosh3"), dense=True)
    last = int(back.steps.n) - 1
    assert float(back.steps.t[last] + back.steps.h[last]) == pytest.approx(-0.6, abs=1e-16)
    assert int(back.result) == Result.SUCCESS


def test_asked_times_do_not_shorten_the_steps_after_them(x64):
    """A step cut short to land leaves the step size that the error had earned."""

    @jax.jit
    def run(ts):
        options = {"solver": Adaptive("dopri5", 1e-6, 1e-6, outputs="clip"), "gradient": Direct(), "t1": 10.0}
        with_ts = solve(lambda t, x, theta: -x + jnp.sin(t), 1.0, ts=ts, **options)
        return with_ts.n_accepted, solve(lambda t, x, theta: -x + jnp.sin(t), 1.0, **options).n_accepted

    with_ts, without = run(np.array([2.0, 2.0 + 1e-9, 5.0, 5.0 + 1e-12]))
    assert int(with_ts) <= int(without) + 4


def test_dense_output_leaves_the_steps_alone(x64):
    """Any number of asked times, inside one step or on its ends, and the same grid as without them."""
    field = lambda t, x, theta: {"a": -x["a"] * t, "b": jnp.cos(t) * jnp.ones(2)}
    x0 = {"a": np.array(2.0), "b": np.zeros(2)}
    exact = lambda t: {"a": 2 * np.exp(-(t**2) / 2), "b": np.sin(t)[:, None] * np.ones(2)}
    ts = np.concatenate([[0.0, 0.0, 1e-9], np.linspace(0.1, 3.0, 41), [3.0]])

    @jax.jit
    def run(x0, ts):
        solver = Adaptive("tsit5", 1e-7, 1e-7, outputs="interpolate", max_steps=200)
        options = {"solver": solver, "gradient": Direct()}
        forward = solve(field, x0, t1=3.0, ts=ts, **options)
        return forward, solve(field, x0, t1=3.0, **options), solve(field, x0, t1=-3.0, ts=-ts, **options)

    dense, plain, back = run(x0, ts)
    assert (int(dense.nfe), int(dense.n_accepted)) == (int(plain.nfe), int(plain.n_accepted))
    for name in x0:
        np.testing.assert_allclose(dense.x[name], exact(ts)[name], rtol=0, atol=2e-6)
        np.testing.assert_allclose(dense.x[name][-1], plain.x[name], rtol=1e-14)
        np.testing.assert_allclose(back.x[name], exact(-ts)[name], rtol=0, atol=2e-6)
        np.testing.assert_array_equal(dense.x[name][0], x0[name])


def test_sample_norm_lets_no_sample_hide_in_a_batch(x64):
    """One hard sample among 64: its steps, as if it were alone, where the batch's mean would take fewer."""
    rate = np.ones(64)
    rate[17] = 30.0
    field = lambda t, x, theta: theta * jnp.cos(theta * t) * x

    def run(rate, norm):
        solver = Adaptive("bosh3", 1e-4, 1e-4, max_steps=500, norm=norm)
        return solve(field, jnp.ones((len(rate), 1)), rate[:, None], solver=solver, gradient=Direct())

    @jax.jit
    def everything(rate):
        return run(rate, "sample"), run(rate, "batch"), run(rate[17:18], "batch")

    sample, batch, alone = everything(rate)
    assert int(sample.n_accepted) == int(alone.n_accepted) > 1.3 * int(batch.n_accepted)
    np.testing.assert_allclose(sample.x[17], alone.x[0], rtol=1e-12)
    worst = [float(np.max(np.abs(s.x[:, 0] - np.exp(np.sin(rate))))) for s in (sample, batch)]
    assert worst[0] < 3e-3
    assert worst[0] < worst[1]


def test_a_pi_controller_rejects_less_at_the_same_tolerance(x64):
    pi = StepController(integral=0.3, proportional=0.4, shrink_accepted=True)

    @jax.jit
    def run(x0):
        options = {"gradient": Direct(), "t1": 10.0}
        solvers = [Adaptive("dopri5", 1e-5, 1e-5, max_steps=1000, controller=c) for c in (StepController(), pi)]
        tight = Adaptive("dopri5", 1e-10, 1e-10)
        return [solve(van_der_pol, x0, solver=s, **options) for s in (*solvers, tight)]

    plain, smooth, tight = run(START)
    assert int(smooth.n_rejected) < int(plain.n_rejected)
    for solution in (plain, smooth):
        np.testing.assert_allclose(solution.x, tight.x, rtol=0, atol=1e-3)


def test_mapped_tolerances_and_spans_equal_solves_one_by_one(x64):
    """Tolerances, first steps and times are variables: one program, whatever their values."""

    @jax.jit
    def run(rtol, first_step, t1):
        solver = Adaptive("dopri5", rtol, rtol, first_step=first_step, max_steps=500)
        return solve(van_der_pol, START, solver=solver, gradient=Direct(), t1=t1)

    rtol, first, t1 = np.array([1e-2, 1e-5, 1e-8]), np.array([1e-3, 1.0, 0.1]), np.array([3.0, -1.0, 0.5])
    mapped = jax.jit(jax.vmap(run))(rtol, first, t1)
    for i in range(3):
        alone = run(rtol[i], first[i], t1[i])
        np.testing.assert_allclose(mapped.x[i], alone.x, rtol=1e-12)
        for name in ("nfe", "n_accepted", "n_rejected", "result"):
            assert int(getattr(mapped, name)[i]) == int(getattr(alone, name))
    assert run._cache_size() == 1


def test_reversed_and_negative_time_mirror_the_forward_solve(x64):
    """y(s) = x(-s): the same trials, the same states, whatever the sign of time."""
    field = lambda t, x, theta: van_der_pol(t, x, theta) + jnp.sin(t)
    mirrored = lambda s, y, theta: -field(-s, y, theta)

    @jax.jit
    def run(x0, ts):
        options = {"solver": Adaptive("bosh3", 1e-4, 1e-4, max_steps=500), "gradient": Direct()}
        forward = solve(field, x0, t0=0.5, t1=3.0, ts=ts, **options)
        return forward, solve(mirrored, x0, t0=-0.5, t1=-3.0, ts=-ts, **options)

    forward, back = run(START, np.array([0.7, 1.9, 2.9]))
    assert int(forward.n_rejected) > 0
    np.testing.assert_allclose(forward.x, back.x, rtol=1e-12)
    counts = lambda s: [int(v) for v in (s.nfe, s.n_accepted, s.n_rejected, s.result)]
    assert counts(forward) == counts(back)


def test_reports_are_summed_over_accepted_steps_only(x64):
    """Every accepted step reports each stage once that its state depends on; rejected trials report nothing."""
    for key in ("heun_euler", "dopri5"):
        reporting = lambda t, x, theta: (van_der_pol(t, x, theta), {"stages": jnp.ones(()), "ints": jnp.int32(1)})
        solver = Adaptive(key, 1e-3, 1e-3, first_step=3.0, max_steps=1000)
        settings = {"solver": solver, "gradient": Direct(), "has_aux": True, "t1": 2.0}
        run = lambda x0, f=reporting, settings=settings: solve(f, x0, **settings)
        solution = jax.jit(run)(START)
        expected = int(solution.n_accepted) * (SCHEMES[key].n_stages - SCHEMES[key].fsal)
        assert int(solution.n_rejected) > 0
        assert int(solution.aux["stages"]) == int(solution.aux["ints"]) == expected


@pytest.mark.parametrize(("key", "peer"), [("bosh3", "Bosh3"), ("tsit5", "Tsit5"), ("dopri5", "Dopri5")])
def test_accuracy_and_work_are_those_of_diffrax(x64, key, peer):
    """van der Pol's oscillator at one tolerance: neither less accurate nor more expensive."""
    tolerance = 1e-6
    mild = lambda t, x, theta: jnp.stack([x[1], (0.15 - x[0] ** 2) * x[1] - x[0]])

    @jax.jit
    def ours(x0):
        solver = Adaptive(key, tolerance, tolerance, max_steps=4000)
        return solve(mild, x0, solver=solver, gradient=Direct(), t1=25.0)

    @jax.jit
    def theirs(x0):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(mild),
            getattr(diffrax, peer)(),
            0.0,
            25.0,
            None,
            x0,
            stepsize_controller=diffrax.PIDController(tolerance, tolerance),
            adjoint=diffrax.ForwardMode(),
            max_steps=4000,
        )

    mine, other = ours(START), theirs(START)
    slope = lambda t, x: [x[1], (0.15 - x[0] ** 2) * x[1] - x[0]]
    truth = scipy.integrate.solve_ivp(slope, (0, 25), START, "DOP853", rtol=1e-12, atol=1e-12).y[:, -1]
    errors = [float(np.max(np.abs(x - truth))) for x in (mine.x, other.ys[0])]
    assert errors[0] <= 1.5 * errors[1]
    assert errors[0] <= 20 * tolerance
    assert int(mine.n_accepted) <= 1.1 * int(other.stats["num_accepted_steps"])


def test_dense_output_takes_several_times_at_once(x64):
    """Of any shape, and outside of what was integrated NaN."""
    solution = solve(lambda t, x, k: -k * x, 1.0, 2.0, solver=Adaptive("dopri5", 1e-9, 1e-9), dense=True)
    t = jnp.linspace(0, 1.5, 6).reshape(2, 3)
    expected = jnp.where(t > 1, jnp.nan, jnp.exp(-2 * t))
    np.testing.assert_allclose(solution.dense(t), expected, rtol=1e-6)


@pytest.mark.parametrize("key", ["heun_euler", "bosh3"])
def test_far_from_zero_a_guess_of_the_first_step_is_no_smaller_than_the_clock_resolves(key):
    """In float32, where a solve of the same steps succeeds at t0 = 0."""
    end = [
        solve(lambda t, x, k: x * jnp.cos(t - k), 1.0, t0, solver=Adaptive(key), t0=t0, t1=t0 + 5)
        for t0 in (0.0, 5e4)
    ]  # fmt: skip
    assert [int(solution.result) for solution in end] == [0, 0]
    np.testing.assert_allclose(end[1].x, end[0].x, rtol=0.01)
