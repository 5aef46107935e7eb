"""Gradient methods under JAX's transformations: forward mode, second derivatives, scan, and refusals by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets.gradients import ACA, Backsolve, Checkpointed, Direct, solve
from ode_nets.integrate import Adaptive, FixedStep
from ode_nets.weights import BasisExpansion, PiecewiseConstant

ADAPTIVE = Adaptive("heun_euler", 1e-3, 1e-3, max_steps=40)
FIXED = FixedStep("midpoint", 5)


def end(x0, theta, solver, method, t1=1.0):
    field = lambda t, x, theta: jnp.sin(theta * x) + t
    return solve(field, x0, theta, solver=solver, gradient=method, t1=t1).x


@pytest.mark.parametrize("method", [Direct(), Checkpointed("step"), Checkpointed("block")])
def test_forward_mode_is_that_of_reverse_mode(x64, method):
    for solver in (ADAPTIVE, FIXED):
        arguments, tangents = (0.7, 1.3, 1.1), (0.3, -0.8, 0.2)
        run = lambda x0, theta, t1, solver=solver: end(x0, theta, solver, method, t1)

        @jax.jit
        def both(arguments, tangents, run=run):
            return jax.jvp(run, arguments, tangents)[1], jax.grad(run, argnums=(0, 1, 2))(*arguments)

        tangent, gradient = both(arguments, tangents)
        np.testing.assert_allclose(tangent, np.dot(gradient, tangents), rtol=1e-12)


FORWARD = {
    "jvp": lambda f: jax.jvp(f, (1.0,), (1.0,)),
    "jvp of jit": lambda f: jax.jvp(jax.jit(f), (1.0,), (1.0,)),
    "jit of jvp": lambda f: jax.jit(lambda x: jax.jvp(f, (x,), (1.0,)))(1.0),
    "jacfwd": lambda f: jax.jacfwd(f)(1.0),
    "linearize": lambda f: jax.linearize(f, 1.0)[1](1.0),
    "jvp of vmap": lambda f: jax.jvp(jax.vmap(f), (jnp.ones(2),), (jnp.ones(2),)),
    "grad of jvp": lambda f: jax.grad(lambda x: jax.jvp(f, (x,), (1.0,))[1])(1.0),
}


@pytest.mark.parametrize("transform", FORWARD)
@pytest.mark.parametrize("method", [ACA(2), ACA(None), Backsolve()], ids=["aca, 2", "aca", "backsolve"])
def test_forward_mode_through_reverse_only_methods_is_refused_and_told_what_has_it(transform, method):
    """Whatever the number of steps: `ACA(None)` keeps every state of a fixed grid."""
    solver = ADAPTIVE if transform in ("jvp", "jvp of jit") else FIXED
    name = type(method).__name__ + r"\(.*\)"
    with pytest.raises(ValueError, match=rf"forward-mode.*gradient={name}.*gradient=Direct\(\) or Checkpointed"):
        FORWARD[transform](lambda x: end(x, 1.0, solver, method))


@pytest.mark.parametrize("solver", [ADAPTIVE, FIXED], ids=["adaptive", "fixed"])
def test_second_derivatives_by_forward_over_reverse_agree(x64, solver):
    hessian = lambda method: jax.hessian(lambda v: end(v[0], v[1], solver, method, v[2]))
    direct, aca = jax.jit(lambda v: [hessian(method)(v) for method in (Direct(), ACA(2))])(jnp.array([0.7, 1.3, 1.1]))
    assert np.abs(direct).min() > 1e-3
    np.testing.assert_allclose(aca, direct, rtol=1e-10)


def test_solves_in_a_row_inside_scan_and_checkpoint(x64):
    """A stack of blocks, each differentiated by itself."""

    def stack(x0, theta, method):
        def block(x, p):
            return jax.checkpoint(lambda x, p: end(x, p, FIXED, method))(x, p), None

        return jax.lax.scan(block, x0, theta)[0]

    @jax.jit
    def gradients(x0, theta):
        return [jax.grad(stack, argnums=(0, 1))(x0, theta, method) for method in (Direct(), ACA(2))]

    direct, aca = gradients(0.4, jnp.array([1.0, 0.5, 2.0]))
    for a, b in zip(aca, direct, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_random_keys_and_integers_in_theta_have_no_gradient(x64):
    """They pass through every backward pass, and what depends on them gets its own."""
    noise = lambda t, x, theta: -theta["rate"] * x + jax.random.normal(theta["key"], ()) * theta["n"]
    theta = {"key": jax.random.key(0), "n": np.int32(2), "rate": 1.3}

    def loss(rate, method):
        return solve(noise, 1.0, theta | {"rate": rate}, solver=ADAPTIVE, gradient=method).x

    direct, *others = jax.jit(lambda r: [jax.grad(loss)(r, m) for m in (Direct(), ACA(None), ACA(2))])(1.3)
    np.testing.assert_allclose(others, [direct] * 2, rtol=1e-12)


def test_a_gradient_touches_only_the_coefficients_that_were_read(x64):
    """Half of the domain is integrated: the coefficients of the other half get zero, not a rounding error."""
    weights = lambda c: BasisExpansion(PiecewiseConstant(4), c)

    def loss(c, method):
        field = lambda t, x, theta: theta * x
        return solve(field, 1.0, weights(c), solver=FixedStep("rk4", 4), gradient=method, t1=0.5).x

    coefficients = jnp.array([0.5, -1.0, 2.0, 3.0])
    for gradient in jax.jit(lambda c: [jax.grad(loss)(c, m) for m in (Direct(), ACA(2))])(coefficients):
        np.testing.assert_allclose(gradient[:2], 0.25 * np.exp(-0.125), rtol=1e-4)
        np.testing.assert_array_equal(gradient[2:], 0)


@pytest.mark.parametrize("checkpoints", [0, -1])
def test_methods_out_of_range_are_refused(checkpoints):
    says = rf"checkpoints={checkpoints}: expected an integer of at least 1 \(below 2\*\*31\) or "
    with pytest.raises(ValueError, match=says):
        ACA(checkpoints)
    with pytest.raises(ValueError, match="unit='layer': expected one of 'step', 'block'"):
        Checkpointed("layer")


@pytest.mark.parametrize("wrong", ["rk4", FixedStep, None])
def test_what_is_no_solver_is_refused(wrong):
    with pytest.raises(ValueError, match=r"solver=.*: expected FixedStep\('rk4', n_steps\), Adaptive"):
        end(1.0, 1.0, wrong, Direct())


@pytest.mark.parametrize("wrong", ["aca", ACA, FIXED, ADAPTIVE])
def test_what_is_no_gradient_method_is_refused(wrong):
    methods = r"Direct\(\), Checkpointed\(\), ACA\(\), Reversible\(\), Backsolve\(\) or Naive\(\)"
    with pytest.raises(ValueError, match=rf"gradient=.*: expected {methods}"):
        end(1.0, 1.0, FIXED, wrong)


def test_methods_are_hashable_values():
    assert len({ACA(), ACA("auto"), ACA(None), Direct(), Direct(), Checkpointed(), Checkpointed("step")}) == 4


@pytest.mark.parametrize("method", [Direct(), Checkpointed()])
def test_a_field_without_forward_mode_is_told_from_a_method_without_it(method):
    @jax.custom_vjp
    def minus(x):
        return -x

    minus.defvjp(lambda x: (-x, None), lambda _, ct: (-ct,))
    end = lambda x: solve(lambda t, x, _: minus(x), x, solver=FIXED, gradient=method).x
    with pytest.raises(ValueError, match=r"forward-mode.*a field with a backward pass of its own, jax.custom_vjp"):
        jax.jvp(end, (1.0,), (1.0,))
