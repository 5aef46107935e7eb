"""Landscapes: exact minima, friction that takes energy, labels that are minima, and faults by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets.problems import landscape
from ode_nets.problems.landscape import POTENTIAL, Polynomial

WELLS = Polynomial((1, -2, 1, -2, 0.3), ((4, 0), (2, 0), (0, 4), (0, 2), (1, 0)))
"""(x^2 - 1)^2 + (y^2 - 1)^2 + 0.3 x, up to a constant: four wells."""


def test_the_potential_is_that_of_the_paper():
    x = np.linspace(-1, 2, 7)
    expected = 0.2 * x * (x - 2) * (x - 0.5) * (x + 1) * (x + 0.6) * (x - 1.6)
    np.testing.assert_allclose(POTENTIAL(x[:, None]), expected, atol=1e-12)
    np.testing.assert_allclose(landscape.minima(POTENTIAL)[:, 0], [-0.850, 0.269, 1.839], atol=6e-4)


def test_minima_in_two_dimensions_are_stationary_and_complete():
    found = landscape.minima(WELLS)
    assert found.shape == (4, 2)
    np.testing.assert_allclose(found[:, 1], [-1, 1, -1, 1], atol=1e-8)
    np.testing.assert_allclose(4 * found[:, 0] ** 3 - 4 * found[:, 0] + 0.3, 0, atol=1e-8)


def test_minima_do_not_depend_on_the_units_of_length_or_height():
    found = landscape.minima(POTENTIAL)
    wide = landscape.minima(Polynomial.from_roots((0, 200, 50, -100, -60, 160)))
    np.testing.assert_allclose(wide, 100 * found, rtol=1e-9)
    for scale in (1e-9, 1e9):
        low = Polynomial.from_roots((0.0, 2.0, 0.5, -1.0, -0.6, 1.6), 0.2 * scale)
        np.testing.assert_allclose(landscape.minima(low), found, rtol=1e-9)
        flat = Polynomial(tuple(scale * c for c in WELLS.coefficients), WELLS.exponents)
        np.testing.assert_allclose(landscape.minima(flat), landscape.minima(WELLS), atol=1e-9)
    far = landscape.minima(Polynomial((1e-10, -1), ((4,), (2,))))
    np.testing.assert_allclose(far[:, 0], np.array([-1, 1]) * 0.5e10**0.5, rtol=1e-12)
    np.testing.assert_allclose(landscape.minima(Polynomial((1.0,), ((2,),))), [[0.0]], atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_gradient_and_friction():
    x = jax.random.normal(jax.random.key(0), (5, 2))
    np.testing.assert_allclose(WELLS.gradient(x), jax.vmap(jax.grad(WELLS))(x), rtol=1e-12)
    state = jax.random.normal(jax.random.key(1), (5, 4))
    energy = lambda s: WELLS(s[..., :2]) + jnp.sum(s[..., 2:] ** 2, -1) / 2
    slope = landscape.field(0.0, state, (WELLS, 0.3))
    power = jax.jvp(energy, (state,), (slope,))[1]
    np.testing.assert_allclose(power, -0.3 * jnp.sum(state[:, 2:] ** 2, -1), rtol=1e-12)


@pytest.mark.parametrize(("potential", "n_minima"), [(POTENTIAL, 3), (WELLS, 4)])
def test_particles_rest_at_the_minimum_of_their_label(potential, n_minima):
    start, labels = landscape.generate(jax.random.key(0), 40, potential, gamma=0.5, h=0.05)
    d = potential.dimension
    assert start.shape == (40, 2 * d)
    assert set(np.asarray(labels)) == set(range(n_minima))
    places = landscape.minima(potential)
    rest = landscape.simulate(potential, places, start, gamma=0.5, h=0.025)
    np.testing.assert_array_equal(rest.label, labels)
    assert bool(rest.at_rest.all())
    np.testing.assert_allclose(rest.x, places[np.asarray(labels)], atol=0.02)


@pytest.mark.parametrize(
    ("potential", "match"),
    [
        (Polynomial((1,), ((3,),)), "unbounded below"),
        (Polynomial((1, -1), ((4, 0), (0, 2))), "unbounded below"),
        (Polynomial((1, 1, -5), ((4, 0), (0, 4), (2, 2))), "unbounded below"),
        (Polynomial((2,), ((0,),)), "does not confine"),
        (Polynomial((1,), ((2, 0),)), "does not confine"),
        (Polynomial((1,), ((4,),)), "no minimum with"),
        (Polynomial.from_roots((1, 1, 1, 1)), "no minimum with"),
        (Polynomial((-1e-10, 1), ((4,), (2,))), "unbounded below"),
        (Polynomial((1, 1e-12, 1), ((2, 0), (0, 3), (0, 2))), "unbounded below"),
    ],
)
def test_potentials_without_an_end_are_named(potential, match):
    with pytest.raises(ValueError, match=match):
        landscape.generate(jax.random.key(0), 3, potential)


SMALL = Polynomial.from_roots([4e-4 * root for root in (0.0, 2.0, 0.5, -1.0, -0.6, 1.6)], 0.2 * 4e-4**-4)
"""The paper's landscape in units of length that are 2500 times as large, with the same motions."""


def test_labels_do_not_depend_on_the_unit_of_length():
    """Given `speed` and `reach` in it."""
    ranges = {"x_range": (-4e-4, 8e-4), "v_range": (-8e-4, 8e-4)}
    small = landscape.generate(jax.random.key(0), 40, SMALL, **ranges, speed=4e-7, reach=8e-6)[1]
    np.testing.assert_array_equal(small, landscape.generate(jax.random.key(0), 40)[1])


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: Polynomial((1,), ((),)), "dimension 0"),
        (lambda: Polynomial((), ()), "0 coefficients"),
        (lambda: Polynomial((1,), ((-1,),)), "at least 0"),
        (lambda: Polynomial((1,), ((2.5,),)), "exponents=.*integer"),
        (lambda: landscape.generate(jax.random.key(0), 2, SMALL), "reach=0.02: expected at most 0.000224, half"),
        (lambda: landscape.generate(jax.random.key(0), 0), "n=0"),
        (lambda: landscape.generate(jax.random.key(0), 2, gamma=0.0), "gamma=0"),
        (lambda: landscape.generate(jax.random.key(0), 2, x_range=(1, 1)), "x_range"),
        (lambda: landscape.generate(jax.random.key(0), 2, t_max=1.0), "2 of 2 particles have not come to rest"),
        (lambda: landscape.generate(jax.random.key(0), 2, h=20.0, t_max=4000.0), "ran away"),
    ],
)
def test_bad_arguments_are_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_a_particle_that_runs_away_leaves_the_others_alone():
    places = landscape.minima(landscape.POTENTIAL)
    some = jax.random.uniform(jax.random.key(0), (8, 2), minval=jnp.array([-1.0, -2.0]), maxval=jnp.array([2.0, 2.0]))
    run = jax.jit(lambda state: landscape.simulate(landscape.POTENTIAL, places, state))
    alone, beside = run(some), run(jnp.concatenate([some, jnp.array([[50.0, 0.0]])]))
    assert alone.at_rest.all()
    assert beside.at_rest.tolist() == [True] * 8 + [False]
    np.testing.assert_array_equal(beside.label[:-1], alone.label)
