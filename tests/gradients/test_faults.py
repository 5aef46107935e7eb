"""Faults that users of other libraries have reported, each with its whole kind: values, codes, or errors by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets import (
    ACA,
    Adaptive,
    Backsolve,
    Checkpointed,
    Direct,
    FixedStep,
    Recorded,
    Result,
    get_scheme,
    pad,
    solve,
    solve_until,
)
from ode_nets.gradients import methods

METHODS = [Direct(), Checkpointed(), ACA(2), Backsolve()]
SOLVERS = [FixedStep("rk4", 4), Adaptive("bosh3", max_steps=24)]
AROUND = {
    "jit": lambda f: jax.jit(f),
    "vmap": lambda f: lambda k: jax.vmap(f)(jnp.stack([k, k]))[0],
    "scan": lambda f: lambda k: jax.lax.scan(lambda c, _: (f(k), None), k, None, length=1)[0],
    "cond": lambda f: lambda k: jax.lax.cond(k > 0, f, lambda k: k, k),
    "checkpoint": lambda f: jax.checkpoint(f),
}


@pytest.mark.parametrize(
    ("around", "method"),
    [
        pytest.param(around, method, marks=[] if around == "jit" or method == ACA(2) else [pytest.mark.slow])
        for around in AROUND
        for method in METHODS
    ],
)
def test_a_field_may_close_over_keys_labels_and_masks(x64, method, around):
    for solver in SOLVERS:

        def end(k, solver=solver):
            k = jnp.asarray(k)
            key = jax.random.fold_in(jax.random.key(0), (k > 0).astype(int))
            label, mask = (2 * k).astype(int), jnp.stack([k > 0, k < 0])

            def field(t, x, k):
                noise = jax.random.normal(key, ())
                return jnp.where(mask, -k * x, x) + noise + label

            return jnp.sum(solve(field, jnp.ones(2), k, solver=solver, gradient=method).x)

        slope = jax.grad(AROUND[around](end))(1.3)
        step = 1e-5
        numeric = (end(1.3 + step) - end(1.3 - step)) / (2 * step)
        np.testing.assert_allclose(slope, numeric, rtol=1e-2)


def test_asked_times_are_not_refused_for_rounding():
    decay = lambda t, x, _: -x
    ts = jnp.linspace(0, 0.1, 11)
    for solver in (Adaptive("bosh3"), FixedStep("rk4", 10), FixedStep("rk4", jnp.int32(10))):
        np.testing.assert_allclose(solve(decay, 1.0, solver=solver, t1=0.1, ts=ts).x, np.exp(-ts), rtol=1e-4)
    many = solve(decay, 1.0, solver=FixedStep("euler", 10_000), ts=np.linspace(0, 1, 11)).x
    np.testing.assert_allclose(many, np.exp(-np.linspace(0, 1, 11)), rtol=1e-3)
    assert solve(decay, 1.0, solver=FixedStep("rk4", jnp.int32(4)), t1=jnp.float32(0.1)).result == Result.SUCCESS


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_rejected_trial_that_leaves_the_domain_leaves_no_trace(x64, method):
    """x' = -k sqrt(x): a first step that is too long takes the root of a negative number."""
    solver = Adaptive("bosh3", 1e-7, 1e-7, first_step=1.9, max_steps=300)
    end = lambda k: solve(lambda t, x, k: -k * jnp.sqrt(x), 1.0, k, solver=solver, gradient=method, t1=1.9).x
    value, slope = jax.jit(jax.value_and_grad(end))(1.0)
    np.testing.assert_allclose([value, slope], [(1 - 0.95) ** 2, -1.9 * (1 - 0.95)], rtol=1e-2)


@pytest.mark.parametrize(
    "setting", ["debug_nans", *(pytest.param(s, marks=pytest.mark.slow) for s in ("strict", "ranks"))]
)
def test_settings_of_jax_that_forbid_things_forbid_them_in_users_code_alone(setting):
    guard = {
        "debug_nans": lambda: jax.debug_nans(True),
        "strict": lambda: jax.numpy_dtype_promotion("strict"),
        "ranks": lambda: jax.numpy_rank_promotion("raise"),
    }[setting]
    with guard():
        for method in METHODS:
            for solver in SOLVERS:
                end = lambda x, k, s=solver, m=method: jnp.sum(
                    solve(lambda t, x, k: -k * x, x, k, solver=s, gradient=m, ts=jnp.array([0.5, 1.0])).x
                )
                slope = jax.grad(end, (0, 1))(jnp.ones(2), jnp.array([1.0, 2.0]))
                assert all(bool(jnp.isfinite(leaf).all()) for leaf in slope)


def test_the_users_field_keeps_the_users_rules():
    with jax.numpy_dtype_promotion("strict"), pytest.raises(Exception, match=r"[Pp]romot"):
        solve(lambda t, x, _: -x * jnp.float32(1) * jnp.ones((), jnp.float16), jnp.ones(2), solver=FixedStep("rk4", 2))


def test_eager_solves_reuse_their_program_whoever_wrote_the_field():
    def run(k):
        closed = jnp.float32(k)
        return float(solve(lambda t, x, _: -closed * x, 1.0, solver=Adaptive("bosh3")).x)

    run(1.0)
    before = methods._compiled.cache_info().currsize
    values = [run(k) for k in (0.5, 1.0, 2.0)]
    np.testing.assert_allclose(values, np.exp([-0.5, -1.0, -2.0]), rtol=1e-2)
    assert methods._compiled.cache_info().currsize == before
    # Another operation is another program, and there is a bound on how many are kept.
    solve(lambda t, x, _: -jnp.sin(x), 1.0, solver=Adaptive("bosh3"))
    assert methods._compiled.cache_info().currsize == before + 1 <= methods.N_PROGRAMS


def sine(factor):
    """A sine by `jax.custom_vjp`, whose derivative is said to be a multiple of the cosine."""
    function = jax.custom_vjp(jnp.sin)
    function.defvjp(lambda x: (jnp.sin(x), x), lambda x, ct: (factor * jnp.cos(x) * ct,))
    return function


@pytest.mark.parametrize("make", [lambda: jax.nn.relu, lambda: jax.nn.softplus, lambda: sine(1.0)])
def test_eager_solves_reuse_programs_with_rules_of_their_own(make):
    """`jax.custom_jvp` and `jax.custom_vjp` make a new rule whenever they are traced."""
    run = lambda: solve(lambda t, x, _: -make()(x), 1.0, solver=FixedStep("euler", 2))
    run()
    before = methods._compiled.cache_info().currsize
    run()
    assert methods._compiled.cache_info().currsize == before


def test_programs_that_differ_in_a_rule_are_not_mistaken():
    def end(factor):
        """Of x' = -x, whose derivative is said to be -factor."""
        negative = jax.custom_jvp(lambda x: -x)
        negative.defjvp(lambda x, dx: (-x[0], -factor * dx[0]))
        return lambda x: solve(lambda t, x, _: negative(x), x, solver=FixedStep("euler", 1)).x

    assert [float(jax.grad(end(factor))(1.0)) for factor in (1.0, 3.0)] == [0.0, -2.0]
    step = lambda factor: lambda x: solve(lambda t, x, _: sine(factor)(x), x, solver=FixedStep("euler", 1)).x
    slopes = [float(jax.grad(step(factor))(0.0)) for factor in (1.0, 3.0)]
    assert slopes == [2.0, 4.0]


def test_a_field_with_a_rule_that_fails_can_be_solved_again():
    def run():
        called = jax.custom_jvp(jnp.negative)
        called.defjvp(lambda x, dx: 1 / 0)
        return float(solve(lambda t, x, _: called(x), 1.0, solver=FixedStep("euler", 1)).x)

    assert [run(), run()] == [0.0, 0.0]


def test_programs_that_differ_in_a_constant_are_not_mistaken():
    values = [float(solve(lambda t, x, _, k=k: -k * x, 1.0, solver=Adaptive("bosh3")).x) for k in (1.0, 2.0)]
    np.testing.assert_allclose(values, np.exp([-1.0, -2.0]), rtol=1e-2)


@pytest.mark.parametrize(
    ("t0", "span"), [(0.0, 1.0), pytest.param(100.0, 1.0, marks=pytest.mark.slow), (1000.0, 1.0), (1e7, 1.0)]
)
def test_a_solve_far_from_time_zero_is_as_accurate(t0, span):
    """x' = 100 J x, a rotation, in float32; and its derivative."""
    field = lambda t, x, w: w * jnp.stack([-x[1], x[0]])
    solver = Adaptive("dopri5", 1e-6, 1e-6)

    @jax.jit
    def run(w):
        end = lambda w: solve(field, jnp.array([1.0, 0.0]), w, solver=solver, t0=t0, t1=t0 + span)
        return end(w), jax.jacrev(lambda w: end(w).x)(w)

    solution, slope = run(100.0)
    reference, slope_at_zero = jax.jit(
        lambda w: (
            solve(field, jnp.array([1.0, 0.0]), w, solver=solver, t1=span),
            jax.jacrev(lambda w: solve(field, jnp.array([1.0, 0.0]), w, solver=solver, t1=span).x)(w),
        )
    )(100.0)
    assert solution.result == Result.SUCCESS
    exact = np.array([np.cos(100 * span), np.sin(100 * span)])
    error, at_zero = (np.abs(np.asarray(s.x, float) - exact).max() for s in (solution, reference))
    assert error <= 2 * at_zero
    np.testing.assert_allclose(slope, slope_at_zero, rtol=1e-5)


def test_a_step_that_the_clock_cannot_resolve_has_a_code():
    """A field of time in float32 at 1e7, where the clock moves by whole units."""
    for solver in (Adaptive("bosh3", 1e-6, 1e-6), FixedStep("rk4", 100)):
        solution = solve(lambda t, x, _: jnp.sin(t) * x, 1.0, solver=solver, t0=1e7, t1=1e7 + 1)
        assert solution.result == Result.STEP_UNDERFLOW
        assert jnp.isnan(solution.x)
    with pytest.raises(ValueError, match="no time passes between them"):
        solve(lambda t, x, _: -x, 1.0, solver=FixedStep("rk4", 2), t0=1e8, t1=1e8 + 1)


def test_the_smallest_step_goes_with_the_time_and_not_with_the_goal():
    """x' = -x / (c + t): steps of 1e-5 at the start of a solve to 1e4."""
    solution = solve(lambda t, x, c: -x / (c + t), 1.0, 1e-3, solver=Adaptive("tsit5", 1e-4, 1e-9), t1=1e4)
    assert solution.result == Result.SUCCESS
    np.testing.assert_allclose(solution.x, 1e-3 / (1e-3 + 1e4), rtol=1e-2)
    assert solution.n_accepted < 100


def test_an_infinite_slope_is_seen_whatever_its_weight():
    """The first stage of midpoint has weight zero, and tanh hides where it went."""
    field = lambda t, x, a: jnp.where(t == 0.5, jnp.inf, -a * jnp.tanh(x))
    for method in (Direct(), ACA(2), Checkpointed()):
        end = lambda a, m=method: solve(field, 1.0, a, solver=FixedStep("midpoint", 4), gradient=m)
        assert end(1.0).result == Result.NON_FINITE
        assert jnp.isnan(jax.grad(lambda a, end=end: end(a).x)(1.0))


def test_tolerances_are_numbers_arrays_and_trees():
    decay = lambda t, x, _: jax.tree.map(jnp.negative, x)
    x0 = {"a": jnp.ones(2), "b": jnp.ones(())}
    loose, tight = {"a": jnp.array([1e-2, 1.0]), "b": 1.0}, {"a": jnp.array([1e-6, 1.0]), "b": 1.0}
    steps = [int(solve(decay, x0, solver=Adaptive("bosh3", 1e-9, atol)).n_accepted) for atol in (loose, tight)]
    assert steps[0] < steps[1]
    closed = jnp.float32(1e-3)
    inside = jax.jit(lambda x: solve(decay, x, solver=Adaptive("bosh3", closed * 2, jnp.float32(1e-6))).x)
    np.testing.assert_allclose(inside(jnp.ones(2)), np.exp(-1), rtol=1e-2)
    with pytest.raises(ValueError, match=r"shape \(3,\) for a leaf of the state of shape \(2,\)"):
        solve(decay, jnp.ones(2), solver=Adaptive("bosh3", 1e-3, jnp.ones(3)))


@pytest.mark.slow
def test_complex_weights_of_a_real_state_have_their_gradient(x64):
    def end(w, method):
        field = lambda t, x, w: jnp.real(w * jnp.exp(1j * t)) * x
        return solve(field, 1.0, w, solver=Adaptive("tsit5", 1e-9, 1e-9, max_steps=200), gradient=method).x

    direct, *others = [jax.grad(end)(0.3 + 0.4j, m) for m in (Direct(), ACA(), Backsolve())]
    np.testing.assert_allclose(others, direct, rtol=1e-6)


@pytest.mark.parametrize("method", [ACA(2), Backsolve()], ids=repr)
def test_reverse_over_reverse_is_refused_by_name(method):
    end = lambda k: solve(lambda t, x, k: -k * x, 1.0, k, solver=FixedStep("rk4", 8), gradient=method).x
    with pytest.raises(ValueError, match=r"reverse over reverse mode through gradient=.*jax.hessian"):
        jax.grad(jax.grad(end))(1.0)


def test_what_is_no_array_is_named_with_what_to_do():
    field = lambda t, x, _: -x
    for weights, message in (
        ({"name": "relu"}, r"weights\['name'\] is 'relu', a str: a setting is no weight"),
        ({"flag": True}, r"weights\['flag'\] is True, a bool: a setting is no weight"),
        ([jnp.ones(2), jnp.tanh], r"weights\[1\] is .*: only arrays go through a solve; split the model"),
    ):
        with pytest.raises(ValueError, match=message):
            solve(field, 1.0, weights, solver=FixedStep("rk4", 2))
    with pytest.raises(ValueError, match=r"max_steps=64.5: expected an integer"):
        Adaptive("bosh3", max_steps=64.5)


def test_samples_need_an_axis_in_every_leaf():
    decay = lambda t, x, _: jax.tree.map(jnp.negative, x)
    with pytest.raises(ValueError, match="norm='sample' with leaves of shapes"):
        solve(decay, {"a": jnp.ones(3), "b": jnp.ones(())}, solver=Adaptive("bosh3", norm="sample"))


@pytest.mark.parametrize("grid", ["uniform", pytest.param("adaptive", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "method",
    [ACA(3), *(pytest.param(m, marks=pytest.mark.slow) for m in (Direct(), ACA(None), Checkpointed()))],
    ids=repr,
)
def test_dense_output_is_the_solution_at_any_time_and_differentiable(x64, grid, method):
    ts = np.array([0.0, 0.13, 0.5, 0.99, 1.0])
    solver = FixedStep("rk4", 16) if grid == "uniform" else Adaptive("tsit5", 1e-8, 1e-8, max_steps=40)

    def values(k, t):
        dense = solve(lambda t, x, k: -k * x, 2.0, k, solver=solver, gradient=method, dense=True).dense
        return jax.vmap(dense)(t)

    got = jax.jit(values)(0.7, ts)
    np.testing.assert_allclose(got, 2 * np.exp(-0.7 * ts), rtol=2e-5)
    slope = jax.jit(jax.grad(lambda k, t: jnp.sum(values(k, t)), (0, 1)))(0.7, ts)
    np.testing.assert_allclose(slope[0], np.sum(-2 * ts * np.exp(-0.7 * ts)), rtol=1e-4)
    np.testing.assert_allclose(slope[1], -1.4 * np.exp(-0.7 * ts), rtol=2e-2)
    assert np.isnan(jax.jit(values)(0.7, np.array([1.5]))).all()


@pytest.mark.parametrize("solver", [FixedStep("rk4", 4), Adaptive("bosh3")], ids=repr)
@pytest.mark.parametrize("method", [Direct(), ACA(3)], ids=repr)
def test_asked_times_that_only_show_at_run_time_are_checked(solver, method):
    """Out of order, before t0, after t1: NaN and a code; off by a rounding: taken for the end that is meant."""
    run = jax.jit(lambda ts: solve(lambda t, x, k: -k * x, 1.0, 1.0, solver=solver, gradient=method, ts=ts))
    for ts in ([0.9, 0.1, 1.0], [-0.5, 0.1, 1.0], [0.1, 0.5, 3.0]):
        solution = run(jnp.array(ts))
        assert int(solution.result) == Result.UNSORTED_TIMES
        assert np.isnan(solution.x).all()
    found = run(jnp.array([0.1, 0.9, np.nextafter(np.float32(1), np.float32(2))]))
    assert int(found.result) == Result.SUCCESS
    np.testing.assert_allclose(found.x, np.exp([-0.1, -0.9, -1.0]), rtol=1e-2)


def test_lanes_of_padded_schemes_report_their_own_stages_alone():
    field = lambda t, x, k: (-k * x, jnp.ones(()))
    lanes = jax.tree.map(lambda *v: jnp.stack(v), *(pad(FixedStep(scheme, 2), 4) for scheme in ("euler", "rk4")))
    solution = jax.vmap(lambda solver: solve(field, 1.0, 1.0, solver=solver, has_aux=True))(lanes)
    np.testing.assert_array_equal(solution.aux, [2, 8])
    np.testing.assert_array_equal(solution.nfe, [2, 8])


def test_dense_output_reaches_its_ends_far_from_time_zero():
    solver = Adaptive("dopri5", 1e-6, 1e-6)
    solution = solve(lambda t, x, k: -k * x, 1.0, 1.0, solver=solver, dense=True, t0=1000.0, t1=1001.0)
    states = solution.dense(jnp.linspace(1000.0, 1001.0, 101))
    # Times there are multiples of 6e-5.
    np.testing.assert_allclose(states, np.exp(-np.linspace(0, 1, 101)), rtol=2e-4)
    assert np.isnan(solution.dense(jnp.array([999.0, 1002.0]))).all()


@pytest.mark.parametrize("method", [Direct(), ACA(3)], ids=repr)
def test_reports_may_be_constants_of_any_kind(method):
    field = lambda t, x, k: (-k * x, (jnp.ones((), jnp.int32), jnp.array(True)))
    count, flag = solve(field, 1.0, 1.0, solver=FixedStep("rk4", 4), gradient=method, has_aux=True).aux
    assert int(count) == 16
    assert flag.dtype == bool


def test_the_continuous_adjoint_takes_tolerances_by_component(x64):
    field = lambda t, x, k: {"a": -k * x["a"], "b": -x["b"]}
    for atol in ({"a": 1e-8, "b": 1e-9}, np.float64(1e-8)):
        for seminorm in (True, False):
            solver, method = Adaptive("dopri5", 1e-8, atol), Backsolve(seminorm=seminorm)
            end = lambda k: solve(field, {"a": 1.0, "b": 1.0}, k, solver=solver, gradient=method).x["a"]  # noqa: B023
            np.testing.assert_allclose(jax.grad(end)(1.0), -np.exp(-1), rtol=1e-6)


def test_a_failed_search_for_an_event_has_gradient_nan_in_what_the_event_closes_over():
    solver = Adaptive("bosh3", 1e-8, 1e-8, max_steps=5)
    end = lambda c: solve_until(lambda t, x, k: -k * x, 1.0, 1.0, event=lambda t, x: x - c, solver=solver).solution.x
    assert np.isnan(jax.grad(end)(0.5))


@pytest.mark.parametrize("method", [Direct(), ACA(2)], ids=repr)
def test_a_solve_of_no_length_has_its_derivatives_in_both_times(x64, method):
    """x(t1) moves by f where t1 moves, on recorded steps of which there are none too."""
    for solver in (Recorded.at(get_scheme("bosh3"), jnp.array([1.0]), 0), FixedStep("rk4", 4), Adaptive("bosh3")):
        end = lambda t0, t1: (
            solve(
                lambda t, x, k: -k * x,
                1.0,
                2.0,
                solver=solver,  # noqa: B023
                gradient=method,
                t0=t0,
                t1=t1,
            ).x
        )
        np.testing.assert_allclose(jax.grad(end, (0, 1))(0.3, 0.3), (2.0, -2.0), rtol=1e-12)
