"""Lanes of a `jax.vmap`: the numbers of single solves, and no predicate that is mapped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets import ACA, Adaptive, Direct, FixedStep, solve
from ode_nets.gradients import aca

SOLVER = Adaptive("tsit5", 1e-6, 1e-9, max_steps=300)


def lorenz(t, x, rho):
    return jnp.stack([10 * (x[1] - x[0]), x[0] * (rho - x[2]) - x[1], x[0] * x[1] - 8 / 3 * x[2]])


def end(rho, method=None, solver=SOLVER, **options):
    return solve(lorenz, jnp.array([1.0, 0.0, 0.0]), rho, solver=solver, gradient=method, **options)


@pytest.mark.parametrize("method", [pytest.param(ACA(), marks=pytest.mark.slow), ACA(4), ACA(None)], ids=repr)
def test_lanes_have_the_values_and_gradients_of_single_solves(x64, method):
    """`vmap` of `grad` and `grad` of `vmap`, of lanes that take different numbers of steps."""
    rho, ts = jnp.array([0.0, 14.0, 28.0]), jnp.array([0.3, 0.31, 1.0])
    loss = lambda r: jnp.sum(end(r, method, ts=ts).x ** 2)
    single = jax.jit(jax.value_and_grad(loss))
    expected = [single(r) for r in rho]
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(loss)))(rho)
    summed = jax.jit(jax.grad(lambda rho: jnp.sum(jax.vmap(loss)(rho))))(rho)
    np.testing.assert_allclose(value, [v for v, _ in expected], rtol=1e-12)
    np.testing.assert_allclose(slope, [s for _, s in expected], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(summed, slope, rtol=1e-11, atol=1e-11)


def test_steps_whose_ends_are_not_recorded_are_found_again(x64, monkeypatch):
    """By the same search, in which lanes are rejected and accepted as they were."""
    monkeypatch.setattr(aca, "RECORDED", 8)
    field = lambda t, x, k: jnp.stack([x[1], k * (1 - x[0] ** 2) * x[1] - x[0]])

    def run(method):
        def loss(k):
            solver = Adaptive("bosh3", 1e-3, 1e-3, max_steps=200)
            solution = solve(field, jnp.array([2.0, 0.0]), k, solver=solver, gradient=method, t1=6.0)
            return jnp.sum(solution.x**2), solution

        return jax.jit(jax.vmap(jax.value_and_grad(loss, has_aux=True)))(jnp.array([0.5, 3.0, 9.0]))

    (_, solution), gradient = run(ACA(3))
    assert int(solution.n_accepted.min()) > 16
    assert int(solution.n_rejected.min()) > 0
    np.testing.assert_allclose(gradient, run(ACA(None))[1], rtol=1e-11)


def test_counts_are_those_of_each_lane(x64):
    rho = jnp.array([0.0, 14.0, 28.0])
    mapped = jax.jit(jax.vmap(end))(rho)
    alone = [jax.jit(end)(r) for r in rho]
    assert len({int(s.n_accepted) for s in alone}) > 1
    for name in ("nfe", "n_accepted", "n_rejected", "result"):
        np.testing.assert_array_equal(getattr(mapped, name), [getattr(s, name) for s in alone])


def test_nested_maps_over_times_tolerances_and_counts(x64):
    def run(rtol, t1, n):
        adaptive = end(14.0, solver=Adaptive("bosh3", rtol, rtol, max_steps=200), t1=t1).x
        return adaptive, end(14.0, ACA(3), FixedStep("rk4", n, 9), t1=t1).x

    rtol, t1, n = jnp.array([1e-3, 1e-6]), jnp.array([0.2, -0.1, 0.4]), jnp.array([3, 9, 5])
    over_times = jax.vmap(run, (None, 0, 0))
    mapped = jax.jit(jax.vmap(over_times, (0, None, None)))(rtol, t1, n)
    single = jax.jit(run)
    for i in range(2):
        for j in range(3):
            for got, want in zip(mapped, single(rtol[i], t1[j], n[j]), strict=True):
                np.testing.assert_allclose(got[i, j], want, rtol=1e-12)


def predicates(jaxpr, found):
    """Shapes of the predicates of all loops of a program, those inside of others included."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "while":
            found.append(eqn.params["cond_jaxpr"].out_avals[0].shape)
        for value in eqn.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    predicates(inner, found)
    return found


@pytest.mark.parametrize("method", [ACA(), ACA(4), Direct()], ids=repr)
def test_no_loop_has_a_predicate_that_is_mapped(x64, method):
    solver = Adaptive("tsit5", 1e-6, 1e-9, max_steps=300 if method != Direct() else 20)
    loss = lambda r: jnp.sum(end(r, method, solver, ts=jnp.array([0.5, 1.0])).x)
    mapped = jax.make_jaxpr(jax.vmap(jax.value_and_grad(loss)))(jnp.ones(3))
    assert set(predicates(mapped.jaxpr, [])) == {()}
    # Nor does a map over numbers of steps make one.
    fixed = lambda n: end(14.0, method, FixedStep("rk4", n, 9)).x
    assert set(predicates(jax.make_jaxpr(jax.vmap(fixed))(jnp.array([2, 5])).jaxpr, [])) <= {()}


def test_a_batch_without_entries_is_solved(x64):
    for solver in (Adaptive("bosh3"), Adaptive("bosh3", norm="sample"), FixedStep("rk4", 2)):
        solution = solve(lambda t, x, _: -x, jnp.ones((0, 2)), solver=solver)
        assert (solution.x.shape, int(solution.result)) == ((0, 2), 0)
