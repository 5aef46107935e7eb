"""Three bodies: known orbits of two, what is conserved, the input of models, gradients of masses, what is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import brentq

from ode_nets import ACA, Adaptive, Backsolve, Coupled, Direct, Naive, Reversible, solve
from ode_nets.problems import three_bodies
from ode_nets.problems.three_bodies import GRAVITY, PUBLISHED, UNEQUAL, Start

pytestmark = pytest.mark.usefixtures("x64")
arrays = lambda start: [jnp.asarray(leaf) for leaf in start]


def ellipse(t, a, e, gm):
    """Kepler's orbit of the distance between two bodies, from the pericentre."""
    mean = np.sqrt(gm / a**3) * t
    anomaly = brentq(lambda u: u - e * np.sin(u) - mean, mean - 1, mean + 1, xtol=1e-15)
    return np.array([a * (np.cos(anomaly) - e), a * np.sqrt(1 - e**2) * np.sin(anomaly), 0.0])


@pytest.mark.parametrize("e", [0.0, 0.6])
def test_two_bodies_move_on_keplers_ellipses(e):
    masses, a = np.array([1.3, 0.4]), 0.5
    gm = GRAVITY * masses.sum()
    speed = np.sqrt(gm / a * (1 + e) / (1 - e))
    share = np.array([masses[1], -masses[0]])[:, None] / masses.sum()
    start = Start(share * [a * (1 - e), 0.0, 0.0], share * [0.0, speed, 0.0], masses)
    ts = np.linspace(0.0, 1.5, 9)
    found = three_bodies.truth(start, ts)
    expected = np.stack([share * ellipse(t, a, e, gm) for t in ts])
    np.testing.assert_allclose(found.r, expected, atol=1e-8)
    np.testing.assert_allclose(found.closest, a * (1 - e), rtol=1e-3)
    assert found.escaping == ()


def test_a_body_without_mass_disturbs_nobody_and_falls_like_any():
    r, v, _ = arrays(PUBLISHED)
    alone = three_bodies.acceleration(r[:2], jnp.array([1.1, 0.7]))
    third = three_bodies.acceleration(r, jnp.array([1.1, 0.7, 0.0]))
    np.testing.assert_allclose(third[:2], alone, rtol=1e-14)
    apart = r[2] - r[:2]
    pull = np.sum(np.array([[1.1], [0.7]]) * apart / np.linalg.norm(apart, axis=1, keepdims=True) ** 3, axis=0)
    np.testing.assert_allclose(third[2], -GRAVITY * pull, rtol=1e-14)
    slope = three_bodies.field(0.0, (r, v), jnp.array([1.1, 0.7, 0.0]))
    np.testing.assert_array_equal(slope[0], v)
    np.testing.assert_array_equal(slope[1], third)


@pytest.mark.parametrize("start", [PUBLISHED, UNEQUAL], ids=["published", "unequal"])
def test_truth_is_that_of_an_independent_solver_and_conserves_what_it_should(start):
    ts = np.linspace(0.0, 2.0, 9)
    found = three_bodies.truth(start, ts)
    masses = np.array(start.masses)

    def slope(t, x):
        r, v = x.reshape(2, 3, 3)
        d = r - r[:, None]
        cubes = np.linalg.norm(d, axis=-1) ** 3 + np.eye(3)
        return np.ravel([v, GRAVITY * np.einsum("j,ijc->ic", masses, d / cubes[..., None])])

    states = solve_ivp(slope, (0, 2), np.ravel(start[:2]), "DOP853", t_eval=ts, rtol=1e-13, atol=1e-13).y
    np.testing.assert_allclose(found.r, states[:9].T.reshape(-1, 3, 3), atol=1e-8)
    assert found.energy_drift < 1e-9
    assert found.momentum_drift < 1e-13
    spin = three_bodies.angular_momentum(found.r, found.v, masses)
    np.testing.assert_allclose(spin, jnp.broadcast_to(spin[0], spin.shape), atol=1e-9)
    assert found.remarks == []
    assert 0.05 < found.closest < 0.054


def test_energy_is_what_pulls():
    r, _, masses = arrays(UNEQUAL)
    slope = jax.grad(lambda r: three_bodies.energies(r, r, masses)[1])(r)
    np.testing.assert_allclose(-slope / masses[:, None], three_bodies.acceleration(r, masses), rtol=1e-12)


def test_one_linear_layer_of_the_augmented_input_holds_the_law():
    r = jax.random.normal(jax.random.key(0), (5, 3, 3))
    masses = np.array(UNEQUAL.masses)
    inputs = three_bodies.augmented(r)
    assert inputs.shape == (5, 81)
    kernel = np.zeros((3, 27, 3, 3))
    for i in range(3):
        for k in range(2):
            # After r_i come, of each other body, d and its quotients by three powers of |d|.
            kernel[i, 3 + 12 * k + 9 : 3 + 12 * k + 12, i] = -GRAVITY * masses[(i + k + 1) % 3] * np.eye(3)
    predicted = inputs @ kernel.reshape(81, 9)
    np.testing.assert_allclose(predicted.reshape(5, 3, 3), three_bodies.acceleration(r, masses), rtol=1e-10)


def of_masses(masses, gradient=None, scheme="dopri5"):
    """A function of where three bodies are on a short way."""
    r, v, _ = arrays(PUBLISHED)
    solver = Adaptive(scheme, 1e-9, 1e-9, max_steps=32)
    ts = jnp.array([0.05, 0.1])
    solution = solve(three_bodies.field, (r, v), masses, solver=solver, gradient=gradient, t1=0.1, ts=ts)
    return jnp.sum(solution.x[0] ** 2)


@pytest.fixture(scope="module")
def finite_differences():
    with jax.enable_x64(True):
        masses, h = jnp.array(PUBLISHED.masses), 1e-4
        value = jax.jit(of_masses)
        return [(value(masses + h * e) - value(masses - h * e)) / (2 * h) for e in np.eye(3)]


@pytest.mark.parametrize(
    ("gradient", "scheme"),
    [
        (ACA(), "dopri5"),
        (Direct(), "dopri5"),
        (Backsolve(), "dopri5"),
        pytest.param(Naive(), "dopri5", marks=pytest.mark.slow),
        pytest.param(Reversible(), Coupled("dopri5"), marks=pytest.mark.slow),
    ],
    ids=lambda value: type(value).__name__,
)
def test_gradients_of_masses_are_finite_differences(gradient, scheme, finite_differences):
    slope = jax.jit(jax.grad(lambda masses: of_masses(masses, gradient, scheme)))(jnp.array(PUBLISHED.masses))
    np.testing.assert_allclose(slope, finite_differences, rtol=1e-5)


def test_random_starts_repeat_by_key_are_bound_at_rest_and_apart():
    for seed in range(5):
        start = three_bodies.random_start(jax.random.key(seed), virial=0.3)
        kinetic, potential = three_bodies.energies(*start)
        np.testing.assert_allclose(kinetic, -0.3 * potential, rtol=1e-12)
        np.testing.assert_allclose(three_bodies.momentum(start.v, start.masses), 0.0, atol=1e-12)
        assert float(jnp.linalg.norm(three_bodies.differences(start.r), axis=-1).min()) >= 0.3
        assert len(set(start.masses.tolist())) == 3
    again = three_bodies.random_start(jax.random.key(4), virial=0.3)
    np.testing.assert_array_equal(again.r, start.r)
    assert not np.array_equal(three_bodies.random_start(jax.random.key(5)).r, start.r)
    assert three_bodies.random_start(jax.random.key(0), (1.0, 2.0, 3.0, 4.0)).r.shape == (4, 3)


def test_encounters_and_escapes_are_named():
    met = three_bodies.truth(three_bodies.random_start(jax.random.key(1)), np.linspace(0.0, 1.2, 9))
    assert met.remarks == [f"bodies 1 and 3 meet at a distance of {met.closest:.2g} at {met.closest_time:.4g}"]
    assert met.pair == (0, 2)
    assert met.closest < 0.01
    assert 1.0 < met.closest_time < 1.2
    leaving = PUBLISHED._replace(v=((0.0, 0.0, 0.0), (20.0, 0.0, 0.0), (0.0, 0.0, 0.0)))
    thrown = three_bodies.truth(leaving, np.linspace(0.0, 0.1, 9))
    assert thrown.escaping == (1,)
    assert thrown.remarks[-1] == "body 2 escapes"
    returning = PUBLISHED._replace(v=((0.0, 0.0, 0.0), (2.0, 0.0, 0.0), (0.0, 0.0, 0.0)))
    assert three_bodies.truth(returning, np.linspace(0.0, 0.1, 9)).escaping == ()


@pytest.mark.parametrize(
    ("start", "ts", "tolerance", "match"),
    [
        (PUBLISHED, [1.0], 1e-5, "tolerance=1e-05: expected a number above 0 and at most 1e-7"),
        (PUBLISHED._replace(masses=(1.0, -1.0, 1.0)), [1.0], 1e-8, "finite numbers above 0"),
        (PUBLISHED._replace(masses=(1.0, 1.0)), [1.0], 1e-8, "as 2 masses say"),
        (PUBLISHED._replace(r=np.zeros((3, 3))), [1.0], 1e-8, "expected bodies at different places"),
        (PUBLISHED._replace(v=np.full((3, 3), np.nan)), [1.0], 1e-8, "expected finite numbers"),
        (PUBLISHED, [1.0, 0.5], 1e-8, "rising from at least 0"),
        (PUBLISHED, [-1.0, 0.5], 1e-8, "rising from at least 0"),
        (PUBLISHED, [0.0], 1e-8, "rising from at least 0 to more than 0"),
        (PUBLISHED, [], 1e-8, "rising from at least 0"),
    ],
)
def test_bad_input_is_named(start, ts, tolerance, match):
    with pytest.raises(ValueError, match=match):
        three_bodies.truth(start, ts, tolerance=tolerance)


@pytest.mark.parametrize(
    ("settings", "match"), [({"virial": 1.0}, "fly apart"), ({"apart": 1.0}, "apart=1"), ({"apart": 0.99}, "lower it")]
)
def test_random_starts_refuse_by_name(settings, match):
    with pytest.raises(ValueError, match=match):
        three_bodies.random_start(jax.random.key(0), np.ones(6), **settings)


def test_truth_is_told_in_float64_alone_and_a_collision_is_no_truth():
    with jax.enable_x64(False), pytest.raises(ValueError, match=r"under jax\.enable_x64"):
        three_bodies.truth(PUBLISHED, [1.0])
    falling = Start([[0.0, 0.0, 0.0], [0.1, 0.0, 0.0]], np.zeros((2, 3)), [1.0, 1.0])
    with pytest.raises(RuntimeError, match="STEP_UNDERFLOW"):
        three_bodies.truth(falling, [1.0])
