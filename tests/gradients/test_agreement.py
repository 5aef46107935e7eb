"""ACA under vmap and checkpoint, and the continuous adjoint, which agrees as its tolerance goes to zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agreement import relative
from ode_nets import ACA, Adaptive, Backsolve, Direct, solve


@pytest.mark.slow
def test_backsolve_approaches_the_others_as_its_tolerance_goes_to_zero(x64):
    keys = jax.random.split(jax.random.key(0), 2)
    w, x0 = jax.random.normal(keys[0], (4, 4)), jax.random.normal(keys[1], (3, 4))

    def make(method):
        def loss(x0, w, tolerance):
            solver = Adaptive("dopri5", tolerance, tolerance, max_steps=400)
            field = lambda t, x, w: 3 * jnp.tanh(x @ w + jnp.sin(3 * t))
            return jnp.sum(jnp.sin(solve(field, x0, w, solver=solver, gradient=method).x))

        return jax.jit(jax.grad(loss, argnums=(0, 1)))

    reference, backsolve = make(ACA())(x0, w, 1e-12), make(Backsolve())
    errors = [relative(backsolve(x0, w, tolerance), reference) for tolerance in (1e-4, 1e-7, 1e-10)]
    assert errors[0] > 20 * errors[1] > 400 * errors[2]
    assert errors[2] < 1e-7


def test_mapped_gradients_are_those_of_solves_one_by_one(x64):
    """vmap of grad and grad of vmap, with and without checkpoint around; each solve has steps of its own."""
    solver = Adaptive("heun_euler", 1e-4, 1e-4, first_step=1.0, max_steps=256)
    x0, theta = jnp.linspace(0.1, 2.0, 3)[:, None], jnp.linspace(1.0, 4.0, 3)

    def make(method):
        def one(x0, theta):
            solution = solve(lambda t, x, p: p * x * (1 - x) + t, x0, theta, solver=solver, gradient=method)
            return jnp.sum(solution.x**3), solution.n_accepted

        return one

    one, gradient = make(ACA(2)), lambda f: jax.grad(lambda x, p: f(x, p)[0], argnums=(0, 1))
    direct = jax.jit(gradient(make(Direct())))
    singly = [direct(x0[i], theta[i]) for i in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *singly)

    @jax.jit
    def mapped(x0, theta):
        of_vmap = jax.grad(lambda x, p: jnp.sum(jax.vmap(one)(x, p)[0]), argnums=(0, 1))(x0, theta)
        of_grad = jax.vmap(gradient(jax.checkpoint(one)))(x0, theta)
        return of_vmap, of_grad, jax.vmap(one)(x0, theta)[1]

    grad_of_vmap, vmap_of_grad, accepted = mapped(x0, theta)
    assert len(set(np.asarray(accepted).tolist())) == 3
    assert relative(grad_of_vmap, stacked) < 1e-12
    assert relative(vmap_of_grad, stacked) < 1e-12
