"""Gradients under vmap and checkpoint, of what a field closes over, and of the continuous adjoint as it converges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets import ACA, Adaptive, Backsolve, Checkpointed, Direct, solve


def relative(a, b):
    flat = lambda tree: jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    return float(jnp.abs(flat(a) - flat(b)).max() / jnp.abs(flat(b)).max())


def test_backsolve_approaches_the_others_as_its_tolerance_goes_to_zero(x64):
    x0, w = jnp.array([2.0, 0.0]), jnp.array([0.15, 1.0])
    field = lambda t, y, w: jnp.stack([y[1], (w[0] - y[0] ** 2) * y[1] - w[1] * y[0]])

    def gradient(method, tol):
        def loss(x0, w, tol):
            solver = Adaptive("dopri5", tol, tol, max_steps=400)
            return jnp.sum(jnp.sin(solve(field, x0, w, solver=solver, gradient=method, t1=2.0).x))

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(x0, w, tol)

    reference = gradient(ACA(), 1e-12)
    errors = [relative(gradient(Backsolve(), tol), reference) for tol in (1e-4, 1e-7, 1e-10)]
    assert errors[0] > 20 * errors[1] > 400 * errors[2]
    assert errors[2] < 1e-7


@pytest.mark.parametrize("method", [ACA(2), ACA(None)])
def test_under_vmap_and_inside_checkpoint(x64, method):
    field = lambda t, x, theta: jnp.tanh(theta * x) + t
    solver = Adaptive("bosh3", 1e-5, 1e-5, first_step=1.0, max_steps=64)
    x0, theta = jnp.linspace(0.1, 2.0, 3)[:, None], jnp.linspace(1.0, 4.0, 3)

    def one(x0, theta):
        return jnp.sum(solve(field, x0, theta, solver=solver, gradient=method).x ** 3)

    def all_(x0, theta):
        return jnp.sum(jax.vmap(one)(x0, theta))

    grad_of_vmap = jax.jit(jax.grad(all_, argnums=(0, 1)))(x0, theta)
    vmap_of_grad = jax.jit(jax.vmap(jax.grad(one, argnums=(0, 1))))(x0, theta)
    inside = jax.checkpoint(one)
    singly = [jax.jit(jax.grad(inside, argnums=(0, 1)))(x0[i], theta[i]) for i in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *singly)
    assert relative(grad_of_vmap, stacked) < 1e-12
    assert relative(vmap_of_grad, stacked) < 1e-12


def test_arrays_that_a_field_closes_over_get_their_gradient(x64):
    solver = Adaptive("heun_euler", 1e-3, 1e-3, max_steps=64)

    def loss(scale, method):
        s = solve(lambda t, x, _: -scale * x, jnp.ones(2), solver=solver, gradient=method)
        return jnp.sum(s.x)

    reference = jax.grad(loss)(1.3, Direct())
    for method in (ACA(2), Checkpointed("step")):
        np.testing.assert_allclose(jax.grad(loss)(1.3, method), reference, rtol=1e-12)
