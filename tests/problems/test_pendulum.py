"""The pendulum's elliptic solution is that of scipy, of an independent solver, and conserves energy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import ellipj, ellipkm1

from ode_nets.problems import pendulum


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("k", [0.0, 0.3, 0.9, 0.9999])
def test_elliptic_functions_are_scipys(k):
    u = np.linspace(-9, 9, 61)
    *ours, quarter = pendulum.elliptic(jnp.asarray(u), jnp.asarray(k))
    for value, expected in zip(ours, ellipj(u, k**2)[:3], strict=True):
        np.testing.assert_allclose(value, expected, atol=2e-14)
    # ellipk(k**2) has lost the digits of 1 - k**2.
    np.testing.assert_allclose(quarter, ellipkm1((1 - k) * (1 + k)), rtol=1e-14)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("rho0", "g"), [(pendulum.START, pendulum.GRAVITY), (-0.4, -2.0), (0.0, -9.81)])
def test_solution_solves_the_equation(rho0, g):
    t = np.linspace(0, 4, 9)
    slope = lambda t, x: np.asarray([x[1], g * np.sin(x[0])])
    expected = solve_ivp(slope, (0, 4), [rho0, 0.0], "DOP853", t_eval=t, rtol=1e-13, atol=1e-13).y.T
    np.testing.assert_allclose(pendulum.solution(t, rho0, g), expected, atol=1e-10)


@pytest.mark.usefixtures("x64")
def test_solution_conserves_energy_and_has_its_period():
    t = jnp.linspace(-3, 5, 33)
    x = pendulum.solution(t)
    np.testing.assert_allclose(pendulum.energy(x), pendulum.energy(pendulum.solution(0.0)), rtol=1e-12)
    np.testing.assert_allclose(pendulum.solution(t + pendulum.period()), x, atol=1e-11)
    np.testing.assert_allclose(pendulum.field(0.0, x), jax.jvp(pendulum.solution, (t,), (jnp.ones(33),))[1], atol=1e-11)


@pytest.mark.usefixtures("x64")
def test_pairs_are_states_and_their_successors():
    x, y = pendulum.pairs(5, 0.1)
    np.testing.assert_array_equal(y[:-1], x[1:])
    np.testing.assert_allclose(x, pendulum.solution(jnp.arange(5) * 0.1))
    a, b = (pendulum.pairs(4, 0.2, key=jax.random.key(seed))[0] for seed in (0, 1))
    assert not np.allclose(a, b)
    np.testing.assert_allclose(pendulum.energy(a), pendulum.energy(x[0]), rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: pendulum.pairs(0, 0.1), "n=0"),
        (lambda: pendulum.pairs(3, 0.0), "dt=0"),
        (lambda: pendulum.solution(1.0, np.pi), "rho0="),
        (lambda: pendulum.solution(1.0, 1.0, 9.81), r"g=9\.81"),
        (lambda: pendulum.period(4.0), "rho0=4"),
    ],
)
def test_bad_arguments_are_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.usefixtures("x64")
def test_periods_keep_their_digits_up_to_the_top():
    for rho0 in (3.0, 3.14, 3.1415):
        exact = 4 * ellipkm1(np.cos(rho0 / 2) ** 2) / np.sqrt(9.81)
        np.testing.assert_allclose(pendulum.period(rho0), exact, rtol=1e-14)
