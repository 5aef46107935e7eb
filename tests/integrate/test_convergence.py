"""Observed orders of convergence, of states and of interpolants, on problems with known solutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets.control import StepController
from ode_nets.gradients import Direct, solve
from ode_nets.integrate import Adaptive, FixedStep
from ode_nets.tableaus import SCHEMES

EMBEDDED = tuple(key for key, tableau in SCHEMES.items() if tableau.b_error is not None)
STEPS = {1: (64, 128, 256), 2: (64, 128, 256), 3: (32, 64, 128), 4: (32, 64, 128), 5: (32, 64)}
"""By order: numbers of steps that are in the asymptotic regime and leave errors above rounding."""


def field(t, x, theta):
    """A nonlinear and a nonlinear, non-autonomous problem side by side."""
    return {"nonlinear": 1 - x["nonlinear"] ** 2, "in time": -2 * t * x["in time"] ** 2}


def exact(t):
    return {"nonlinear": jnp.tanh(t + 0.3), "in time": 1 / (1 + t**2)}


def slopes(errors, sizes):
    return np.diff(np.log2(np.asarray(errors, np.float64))) / np.diff(np.log2(np.asarray(sizes)))


@pytest.mark.parametrize("key", tuple(SCHEMES))
def test_states_converge_with_the_order_of_the_scheme(x64, key):
    steps = STEPS[SCHEMES[key].order]

    def ends(x0):
        return [solve(field, x0, solver=FixedStep(key, n), gradient=Direct()).x for n in steps]

    ends = jax.jit(ends)(exact(jnp.zeros(())))
    for name, end in exact(jnp.ones(())).items():
        errors = [abs(x[name] - end) for x in ends]
        np.testing.assert_allclose(slopes(errors, 1 / np.array(steps)), SCHEMES[key].order, atol=0.15)


@pytest.mark.parametrize("key", EMBEDDED)
def test_interpolated_states_converge_with_the_order_of_the_interpolant(x64, key):
    """Steps of one size, whose local interpolation error h^(q+1) meets the global error h^p of the states."""
    tableau = SCHEMES[key]
    constant = StepController(max_factor=1 + 1e-15)
    ts = jnp.linspace(0, 1, 38)[1:-1]

    @jax.jit
    def errors(h):
        solver = Adaptive(key, 1.0, 1.0, first_step=h, max_steps=256, controller=constant, outputs="interpolate")
        solution = solve(field, exact(jnp.zeros(())), solver=solver, gradient=Direct(), ts=ts)
        worst = jax.tree.map(lambda x, y: jnp.max(jnp.abs(x - y)), solution.x, jax.vmap(exact)(ts))
        return worst, solution.n_accepted

    steps = {2: (64, 128, 256), 3: (32, 64, 128), 5: (16, 32, 64)}[tableau.order]
    got = [errors(1 / n) for n in steps]
    assert [int(n) for _, n in got] == list(steps)
    expected = min(tableau.order, tableau.dense_order + 1)
    for name in got[0][0]:
        # First to last: where the asked times lie inside their steps changes from one size to the next.
        ends = [got[0][0][name], got[-1][0][name]]
        np.testing.assert_allclose(slopes(ends, [1 / steps[0], 1 / steps[-1]]), expected, atol=0.15)


@pytest.mark.parametrize("key", ["heun_euler", "dopri5"])
def test_the_error_of_an_adaptive_solve_follows_its_tolerance(x64, key):
    """One compiled program for all tolerances; each error within a decade and a half of its tolerance."""

    @jax.jit
    @jax.vmap
    def run(tolerance):
        solver = Adaptive(key, tolerance, tolerance, max_steps=2000)
        return solve(field, exact(jnp.zeros(())), solver=solver, gradient=Direct(), t1=2.0)

    tolerances = np.array([1e-3, 1e-4, 1e-5, 1e-6] if key == "heun_euler" else [1e-3, 1e-5, 1e-7, 1e-9])
    solution = run(jnp.asarray(tolerances))
    end = exact(jnp.array(2.0))
    errors = np.max([np.abs(solution.x[name] - end[name]) for name in end], axis=0)
    assert (np.asarray(solution.result) == 0).all()
    assert (np.diff(errors) < 0).all()
    assert (errors < 30 * tolerances).all()
    assert (np.diff(solution.nfe) > 0).all()
