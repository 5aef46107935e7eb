"""Coupled schemes: steps that can be undone, the order of the tableau, and what the coupling does to stability."""

import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets import SCHEMES, Adaptive, BasisExpansion, Coupled, FixedStep, PiecewiseConstant, solve
from ode_nets.stepping import RungeKutta


def evaluate(node, x):
    return jnp.sin(3 * x) + node[0] / node[1], ()


@pytest.mark.parametrize("key", ["euler", "heun", "bosh3", "dopri5"])
def test_a_step_is_undone_to_rounding(x64, key):
    scheme = Coupled(key, 0.9)
    start = scheme.lift(jnp.array([0.3, -1.2]))
    once = scheme.step(evaluate, start, 0.2)
    twice = scheme.step(evaluate, once.x, -0.4)
    assert int(once.nfe) == scheme.n_evaluations == 2 * RungeKutta(SCHEMES[key]).n_evaluations
    np.testing.assert_allclose(scheme.inverse(evaluate, twice.x, -0.4), once.x, rtol=1e-14)
    np.testing.assert_allclose(scheme.inverse(evaluate, once.x, 0.2), start, rtol=1e-14)
    # From equal copies the first step is that of the tableau.
    np.testing.assert_allclose(once.x.x, RungeKutta(SCHEMES[key]).step(evaluate, start.x, 0.2).x, rtol=1e-14)


@pytest.mark.parametrize(("key", "order"), [("midpoint", 2), ("rk4", 4)])
def test_it_has_the_order_of_the_tableau(x64, key, order):
    """x' = x cos t, also between the steps, to the order of the interpolant."""
    errors = []
    for n in (20, 40):
        solution = solve(lambda t, x, w: x * jnp.cos(t), 1.0, solver=FixedStep(Coupled(key), n), t1=2.0, dense=True)
        assert int(solution.nfe) == n * Coupled(key).n_evaluations
        errors.append([abs(solution.x - np.exp(np.sin(2.0))), abs(solution.dense(1.03) - np.exp(np.sin(1.03)))])
    slopes = np.log2(np.array(errors[0]) / errors[1])
    assert abs(slopes[0] - order) < 0.15
    assert slopes[1] > min(order, 3) - 0.5
    np.testing.assert_allclose(solution.dense(2.0), solution.x, rtol=1e-12)


def test_an_adaptive_grid_meets_tolerances_and_asked_times(x64):
    ts = [0.0, 0.7, 2.0]
    for outputs in ("interpolate", "clip"):
        solver = Adaptive(Coupled("bosh3"), 1e-8, 1e-8, outputs=outputs)
        solution = solve(lambda t, x, w: x * jnp.cos(t), 1.0, solver=solver, t1=2.0, ts=ts)
        np.testing.assert_allclose(solution.x, np.exp(np.sin(ts)), rtol=1e-6)


def test_weights_that_jump_are_read_from_inside_the_step(x64):
    """Each Euler step sees one interval alone, on the way there and on the way back."""
    weights = BasisExpansion(PiecewiseConstant(2), jnp.array([1.0, 10.0]))
    solution = solve(lambda t, x, w: w, 0.0, weights, solver=FixedStep(Coupled("heun"), 2))
    np.testing.assert_allclose(solution.x, 5.5, rtol=1e-12)


def test_stiff_decay_is_not_for_it(x64):
    """x' = -k x over [0, 1]: what the docstring says it measured, and the determinant of a step."""

    def errors(k, n, coupling):
        end = lambda scheme: solve(lambda t, x, w: -k * x, 1.0, solver=FixedStep(scheme, n)).x
        return [float(abs(end(scheme) - np.exp(-k))) for scheme in (Coupled("midpoint", coupling), "midpoint")]

    np.testing.assert_allclose(errors(1.0, 100, 0.999), [6e-6, 6e-6], rtol=0.1)
    np.testing.assert_allclose(errors(10.0, 100, 0.999), [1.2, 8e-7], rtol=0.1)
    np.testing.assert_allclose(errors(10.0, 1000, 0.99), [6e-9, 8e-9], rtol=0.1)
    scheme = Coupled("midpoint", 0.99)
    step = lambda *pair: jnp.stack(scheme.step(lambda node, x: (-7 * x, ()), scheme.lift(0.0)._make(pair), 0.1).x)
    one = jnp.array(1.0)
    matrix = jnp.stack([step(one, 0 * one), step(0 * one, one)], axis=1)
    np.testing.assert_allclose(jnp.linalg.det(matrix), 0.99, rtol=1e-12)


@pytest.mark.parametrize("coupling", [0.0, 1.5, "half"])
def test_a_coupling_out_of_range_is_refused(coupling):
    with pytest.raises(ValueError, match="expected a number above 0 and at most 1"):
        Coupled("euler", coupling)
