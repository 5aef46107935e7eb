"""Quantities along a solution against fine quadrature, and their gradients under every method."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agreement import assert_agree
from ode_nets import (
    ACA,
    Adaptive,
    Backsolve,
    Checkpointed,
    Direct,
    FixedStep,
    Measured,
    jacobian_frobenius,
    kinetic_energy,
    of_steps,
    solve,
    with_quantities,
)

X0, THETA = {"a": np.array([0.7, -0.4])}, np.array([1.3, 0.6])


def field(t, x, theta):
    return {"a": jnp.sin(theta * x["a"]) + jnp.cos(t)}


# Its Jacobian is diagonal, of which random signs give the norm exactly.
def system():
    return with_quantities(field, kinetic=kinetic_energy, jacobian=jacobian_frobenius(jax.random.key(0)))


def run(solver, gradient=None, theta=THETA, x0=X0):
    return solve(system(), system().start(x0), theta, solver=solver, gradient=gradient, t1=1.5)


def quadrature():
    """Gauss-Legendre in six pieces, of a solution that is far more accurate."""
    nodes, weights = np.polynomial.legendre.leggauss(10)
    ts = np.concatenate([0.125 + i * 0.25 + 0.125 * nodes for i in range(6)])
    x = solve(field, X0, THETA, solver=FixedStep("rk4", 1500), ts=ts, t1=1.5).x["a"]
    dx = jnp.sin(THETA * x) + jnp.cos(ts)[:, None]
    integrands = {"kinetic": jnp.sum(dx**2, 1), "jacobian": jnp.sum((THETA * jnp.cos(THETA * x)) ** 2, 1)}
    return {name: float(np.tile(0.125 * weights, 6) @ values) for name, values in integrands.items()}


def test_quantities_are_integrals_to_the_order_of_the_scheme(x64):
    expected = quadrature()
    for scheme, order in (("midpoint", 2), ("rk4", 4)):
        found = [run(FixedStep(scheme, jnp.int32(n))).x.q for n in (16, 32, 64)]
        for name, value in expected.items():
            errors = [abs(float(q[name]) - value) for q in found]
            assert np.log2(errors[1] / errors[2]) > order - 0.2, (scheme, name, errors)
    fine = run(Adaptive("dopri5", 1e-10, 1e-10)).x.q
    np.testing.assert_allclose([fine[name] for name in expected], list(expected.values()), rtol=1e-8)


def test_steps_are_those_of_the_field_alone(x64):
    solver = Adaptive("bosh3", 1e-4, 1e-6, max_steps=64)
    bare = solve(field, X0, THETA, solver=solver, t1=1.5, dense=True)
    both = solve(system(), system().start(X0), THETA, solver=solver, t1=1.5, dense=True)
    np.testing.assert_allclose(both.steps.h, bare.steps.h, rtol=1e-13)
    np.testing.assert_allclose(both.x.x["a"], bare.x["a"], rtol=1e-14)
    assert (int(both.n_accepted), int(both.nfe)) == (int(bare.n_accepted), int(bare.nfe))


@pytest.mark.parametrize("grid", ["uniform", pytest.param("adaptive", marks=pytest.mark.slow)])
def test_every_gradient_method_differentiates_quantities(x64, grid):
    coarse = {"uniform": FixedStep("bosh3", 6), "adaptive": Adaptive("bosh3", 1e-4, 1e-4, max_steps=40)}[grid]
    fine = {"uniform": FixedStep("rk4", 60), "adaptive": Adaptive("dopri5", 1e-9, 1e-9, max_steps=200)}[grid]

    def loss(theta, x0, solver, method):
        end = run(solver, method, theta, x0).x
        return 0.3 * end.q["kinetic"] + 0.2 * end.q["jacobian"] ** 2 + jnp.sum(end.x["a"] ** 2)

    @jax.jit
    def gradients(theta, x0):
        pairs = [(coarse, Direct()), (coarse, Checkpointed()), (coarse, ACA(3)), (coarse, ACA(None))]
        pairs += [(fine, ACA()), (fine, Backsolve())]
        return [jax.grad(loss, (0, 1))(theta, x0, *pair) for pair in pairs]

    *exact, expected, continuous = gradients(THETA, X0)
    for other in exact[1:]:
        assert_agree(other, exact[0])
    assert_agree(continuous, expected, 1e-5)


def test_hutchinson_estimate_is_right_on_average(x64):
    matrix = jax.random.normal(jax.random.key(1), (3, 3))

    @jax.jit
    @jax.vmap
    def estimate(key):
        linear = with_quantities(lambda t, x, a: a @ x, j=jacobian_frobenius(key))
        return solve(linear, linear.start(jnp.ones(3)), matrix, solver=FixedStep("euler", 1)).x.q["j"]

    values = estimate(jax.random.split(jax.random.key(2), 4000))
    assert abs(jnp.mean(values) - jnp.sum(matrix**2)) < 4 * jnp.std(values) / 4000**0.5


def measured(solver, method, theta=3.0, x0=2.0):
    decay = with_quantities(lambda t, x, k: -k * x, local_error=of_steps, stiffness=of_steps)
    return solve(decay, decay.start(x0), theta, solver=solver, gradient=method, dense=method is None)


def test_estimates_of_steps_are_sums_over_the_accepted_steps(x64):
    solver = Adaptive(Measured("dopri5"), 1e-3, 1e-3, first_step=1.0)
    solution = measured(solver, None)
    assert int(solution.n_rejected) > 0
    n = int(solution.n_accepted)
    x, total = 2.0, 0.0
    tableau = Measured("dopri5").scheme.tableau
    a, b = np.zeros((7, 7)), np.array([float(v) for v in tableau.b])
    for i, row in enumerate(tableau.a):
        a[i, :i] = [float(v) for v in row]
    for h in np.asarray(solution.steps.h[:n]):
        k = np.linalg.solve(np.eye(7) + 3 * h * a, np.full(7, -3 * x))
        total += h * abs(h * np.array([float(v) for v in tableau.b_error]) @ k)
        x += h * b @ k
    np.testing.assert_allclose(solution.x.x, x, rtol=1e-13)
    np.testing.assert_allclose(solution.x.q["local_error"], total, rtol=1e-10)
    # Both stages at one time see the same slope -3.
    np.testing.assert_allclose(solution.x.q["stiffness"], 3.0, rtol=1e-12)
    np.testing.assert_allclose(solution.dense(1.0).q["local_error"], total, rtol=1e-10)


def test_estimates_of_steps_have_one_gradient_and_the_continuous_adjoint_refuses(x64):
    solver = Adaptive(Measured("tsit5"), 1e-3, 1e-3, first_step=1.0, max_steps=16)

    def loss(k, x0, method):
        q = measured(solver, method, k, x0).x.q
        return q["local_error"] * 1e3 + q["stiffness"] ** 2

    methods = [Direct(), ACA(2)]
    exact = jax.jit(lambda k, x0: [jax.grad(loss, (0, 1))(k, x0, method) for method in methods])(3.0, 2.0)
    for other in exact[1:]:
        assert_agree(other, exact[0], 1e-10)
    with pytest.raises(ValueError, match=r"Backsolve\(\) with scheme 'Measured\(tsit5\)'.*go back over them"):
        jax.grad(loss)(3.0, 2.0, Backsolve())


def test_what_cannot_be_measured_is_refused_and_never_silently_zero(x64):
    assert int(measured(Adaptive("dopri5"), Direct()).result) != 0
    assert jnp.isnan(measured(FixedStep("rk4", 2), Direct()).x.q["stiffness"])
    with pytest.raises(ValueError, match="no two stages at one time"):
        measured(FixedStep(Measured("bosh3"), 2), Direct())
    with pytest.raises(ValueError, match=r"state that is a .*: expected that of with_quantities"):
        solve(lambda t, x, k: -x, 1.0, solver=FixedStep(Measured("dopri5"), 2))
    with pytest.raises(ValueError, match="at least one by name"):
        with_quantities(field)
