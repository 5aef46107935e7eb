"""The problems are the equations they cite, and their known answers are those of an independent solver."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from ode_nets import ACA, Adaptive, solve
from ode_nets.problems import images, linear, van_der_pol

FINE = Adaptive("dopri5", rtol=1e-11, atol=1e-12)


def by_scipy(field, x0, theta, t1):
    """The state at t1 by an integrator that shares nothing with ours."""
    shape = np.shape(x0)
    compiled = jax.jit(lambda x: field(0.0, x.reshape(shape), theta).ravel())
    slope = lambda t, x: np.asarray(compiled(x))
    return solve_ivp(slope, (0, t1), np.ravel(x0), "DOP853", rtol=1e-12, atol=1e-12).y[:, -1].reshape(shape)


@pytest.mark.usefixtures("x64")
def test_linear_solution_and_gradient():
    z0, k, t1 = jnp.array([1.5, -0.4]), jnp.array([-0.7, 0.3]), 2.0
    np.testing.assert_allclose(linear.solution(t1, z0, k), by_scipy(linear.field, z0, k, t1), rtol=1e-11)
    exact = jax.grad(lambda z0, k: linear.loss(linear.solution(t1, z0, k)), (0, 1))(z0, k)
    for given, derived in zip(linear.gradient(t1, z0, k), exact, strict=True):
        np.testing.assert_allclose(given, derived, rtol=1e-14)


@pytest.mark.usefixtures("x64")
def test_linear_gradient_of_a_solve():
    z0, k, t1 = jnp.array([1.5, -0.4]), jnp.array(-0.7), 2.0

    def loss(z0, k):
        return linear.loss(solve(linear.field, z0, k, solver=FINE, gradient=ACA(), t1=t1).x)

    d_z0, d_k = jax.grad(loss, (0, 1))(z0, k)
    expected_z0, expected_k = linear.gradient(t1, z0, k)
    np.testing.assert_allclose(d_z0, expected_z0, rtol=1e-9)
    np.testing.assert_allclose(d_k, expected_k.sum(), rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_van_der_pol_energy_and_solution():
    y, mu = jax.random.normal(jax.random.key(0), (5, 2)), 0.15
    slopes = van_der_pol.field(0.0, y, mu)
    np.testing.assert_allclose(jnp.sum(y * slopes, -1), van_der_pol.power(y, mu), rtol=1e-12)
    start = jnp.array(van_der_pol.START)
    ours = solve(van_der_pol.field, start, van_der_pol.MU, solver=FINE, gradient=ACA(), t1=5.0).x
    np.testing.assert_allclose(ours, by_scipy(van_der_pol.field, start, van_der_pol.MU, 5.0), rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_van_der_pol_contracts_areas_as_its_divergence_says():
    start, mu, t1 = jnp.array(van_der_pol.START), van_der_pol.MU, 3.0

    def with_area(t, state, mu):
        y, _ = state
        return van_der_pol.field(t, y, mu), van_der_pol.divergence(y, mu)

    def end(y0):
        return solve(with_area, (y0, jnp.zeros(())), mu, solver=FINE, gradient=ACA(), t1=t1).x

    jacobian = jax.jacrev(lambda y0: end(y0)[0])(start)
    np.testing.assert_allclose(jnp.log(jnp.linalg.det(jacobian)), end(start)[1], rtol=1e-8)


@pytest.mark.usefixtures("x64")
def test_convolution_flow_there_and_back():
    key_x, key_kernel = jax.random.split(jax.random.key(1))
    x0 = jax.random.normal(key_x, (2, 5, 6, 2))
    kernel = jax.random.normal(key_kernel, (3, 3, 2, 2)) / 4
    there = images.solution(0.8, x0, kernel)
    np.testing.assert_allclose(there, by_scipy(images.field, x0, kernel, 0.8), atol=1e-9)
    np.testing.assert_allclose(images.solution(-0.8, there, kernel), x0, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_convolution_spectrum_diagonalizes_the_field():
    x = jax.random.normal(jax.random.key(2), (1, 4, 5, 3))
    kernel = jax.random.normal(jax.random.key(3), (3, 3, 3, 3))
    modes = jnp.einsum("bhwc,hwcd->bhwd", jnp.fft.fft2(x, axes=(1, 2)), images.spectrum(kernel, 4, 5))
    np.testing.assert_allclose(jnp.fft.fft2(images.field(0.0, x, kernel), axes=(1, 2)), modes, atol=1e-12)


def test_random_kernel_moves_every_channel_alike_and_makes_it_grow():
    kernel = images.random_kernel(jax.random.key(4), channels=3)
    x = jax.random.normal(jax.random.key(5), (1, 6, 5, 1))
    slopes = images.field(0.0, jnp.repeat(x, 3, axis=3), kernel)
    alone = images.field(0.0, x, kernel[:, :, :1, :1])
    np.testing.assert_allclose(slopes, jnp.repeat(alone, 3, axis=3), atol=1e-6)
    rates = jnp.linalg.eigvals(images.spectrum(kernel, 6, 5)).real
    np.testing.assert_allclose(rates.max(), kernel[..., 0, 0].sum(), rtol=1e-6)


@pytest.mark.parametrize(("size", "channels"), [(2, 3), (0, 3), (3, 0)])
def test_random_kernel_refuses_by_name(size, channels):
    with pytest.raises(ValueError, match=f"size={size}|channels={channels}"):
        images.random_kernel(jax.random.key(0), channels, size)


def test_kernels_of_even_size_have_no_middle():
    kernel = jnp.ones((2, 2, 1, 1))
    for use in (lambda: images.field(0.0, jnp.ones((1, 8, 8, 1)), kernel), lambda: images.spectrum(kernel, 8, 8)):
        with pytest.raises(ValueError, match=r"expected .* of odd size"):
            use()
