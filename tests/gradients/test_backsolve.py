"""The continuous adjoint: it converges to the discrete gradient, in times, weights that jump, and all outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets.gradients import Backsolve, Direct, solve
from ode_nets.integrate import Adaptive, FixedStep
from ode_nets.weights import BasisExpansion, PiecewiseConstant

RNG = np.random.default_rng(5)
X0 = {"p": RNG.normal(size=3), "q": np.array(0.4)}
COEFFICIENTS = RNG.normal(size=(2, 3))
CLOSED = 0.7


def loss_of(method, solver, x0, coefficients, closed, t0=0.0, t1=1.0, ts=None):
    """Of pytree states, weights that jump at 1/2, and an array from outside."""

    def field(t, x, theta):
        return {"p": closed * jnp.sin(theta * x["p"]) + t, "q": jnp.sum(x["p"] * theta) - x["q"]}

    weights = BasisExpansion(PiecewiseConstant(2), coefficients)
    x = solve(field, x0, weights, solver=solver, gradient=method, t0=t0, t1=t1, ts=ts).x
    return sum(jnp.sum(jnp.cos(v) * jnp.arange(1.0, v.size + 1).reshape(v.shape)) for v in x.values())


def error(got, expected):
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    return max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in pairs)


def test_on_a_fixed_grid_it_converges_at_the_order_of_the_scheme(x64):
    """With asked times at both ends, on the jump, and twice at one place; under vmap and checkpoint alike."""
    ts = [0.0, 0.25, 0.5, 0.5, 1.0]

    @jax.jit
    def run(x0):
        def gradient(method, n):
            loss = lambda *a: loss_of(method, FixedStep("rk4", n), *a, ts=ts)
            return jax.grad(jax.checkpoint(loss), argnums=(0, 1, 2))(x0, COEFFICIENTS, CLOSED)

        return [(gradient(Backsolve(), n), gradient(Direct(), n)) for n in (8, 16)]

    batch = jax.tree.map(lambda leaf: np.stack([leaf, leaf + 0.3]), X0)
    coarse, fine = (error(*pair) for pair in jax.vmap(run)(batch))
    assert 12 < coarse / fine < 40
    assert fine < 1e-4


@pytest.mark.parametrize("outputs", ["clip", pytest.param("interpolate", marks=pytest.mark.slow)])
def test_with_small_tolerances_it_is_the_discrete_gradient(x64, outputs):
    """Times included: weights that jump at an asked time, or where a solve ends, are read from inside it."""

    @jax.jit
    def run(t0, t1, ts):
        solver = Adaptive("dopri5", 1e-8, 1e-8, max_steps=150, outputs=outputs)

        def gradient(method):
            loss = lambda c, closed, t0, t1, ts: loss_of(method, solver, X0, c, closed, t0, t1, ts)
            asked = jax.grad(loss, argnums=(0, 1, 2, 4))(COEFFICIENTS, CLOSED, t0, t1, ts)
            return asked, jax.grad(loss, argnums=(0, 2, 3))(COEFFICIENTS, CLOSED, t0, t1, None)

        return gradient(Backsolve()), gradient(Direct())

    spans = {"forward": (0.0, 0.5, [0.0, 0.2, 0.5]), "backward": (1.0, 0.5, [1.0, 0.6, 0.5])}
    for t0, t1, ts in spans.values():
        got, expected = run(t0, t1, np.array(ts))
        # The interpolant of an asked time is of lower order than its state.
        assert error(got, expected) < (1e-6 if outputs == "clip" else 1e-4)


@pytest.mark.parametrize("solver", [FixedStep("heun", 4), Adaptive("heun_euler", 1e-3, 1e-3)], ids=repr)
def test_a_loss_on_what_the_field_reports_has_gradient_nan(solver):
    def loss(p, on_reports):
        field = lambda t, x, p: (-p * x, (p * x, jnp.int32(1)))
        solution = solve(field, 1.0, p, solver=solver, gradient=Backsolve(), has_aux=True)
        return solution.x + on_reports * solution.aux[0]

    without, with_them = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(0.5, jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(without, -np.exp(-0.5), rtol=1e-2)
    assert np.isnan(with_them)


def test_the_seminorm_leaves_errors_of_the_parameters_cotangent_out():
    """Of x' = -x + w sin 40 t at w = 0, where nothing but that cotangent is fast: evaluations counted by the field."""
    calls = []

    def counted(t, x, w):
        jax.debug.callback(lambda: calls.append(1))
        return -x + w * jnp.sin(40 * t)

    def run(method):
        calls.clear()
        solver = Adaptive("bosh3", 1e-4, 1e-4, max_steps=200)
        loss = lambda x0, w: solve(counted, x0, w, solver=solver, gradient=method).x
        found = jax.block_until_ready(jax.jit(jax.grad(loss, (0, 1)))(1.0, 0.0))
        jax.effects_barrier()
        return found, len(calls)

    (semi, few), (full, many) = (run(Backsolve(seminorm=seminorm)) for seminorm in (True, False))
    assert few < many / 2
    # What comes of it: int_0^1 e^(s - 1) sin 40 s ds, to the tolerance or to what the steps of x and a make of it.
    expected = (np.sin(40) - 40 * np.cos(40) + 40 * np.exp(-1)) / 1601
    np.testing.assert_allclose([semi[0], full[0]], np.exp(-1), rtol=1e-3)
    np.testing.assert_allclose(full[1], expected, atol=1e-4)
    assert abs(semi[1] - expected) > 1e-3


def test_it_is_differentiated_twice_as_it_says(x64):
    """Forward over reverse mode: x(1) = exp(-k), whose second derivative is itself."""
    end = lambda k: solve(lambda t, x, k: -k * x, 1.0, k, solver=FixedStep("rk4", 20), gradient=Backsolve()).x
    np.testing.assert_allclose(jax.hessian(end)(1.0), np.exp(-1.0), rtol=1e-6)
    with pytest.raises(ValueError, match=r"use forward over reverse mode.*jax\.hessian"):
        jax.grad(jax.grad(end))(1.0)
