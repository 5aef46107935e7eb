"""Slopes and dips of errors that are known, and the convergence study of a problem with a known answer."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets import FixedStep, validity
from ode_nets.problems import pendulum

COUNTS = (4, 8, 16, 32, 64, 128, 256)


def test_slope_of_a_power_law_between_saturation_and_floor():
    h = 1 / np.array(COUNTS, float)
    slope = validity.fit_slope(h, 3 * h**4)
    assert slope.order == pytest.approx(4, abs=1e-9)
    assert (slope.first, slope.last) == (0, 6)
    bent = np.minimum(np.maximum(3 * h**2, 3 * h[5] ** 2), 3 * h[1] ** 2)
    slope = validity.fit_slope(h, bent)
    assert slope.order == pytest.approx(2, abs=1e-9)
    assert (slope.first, slope.last) == (1, 5)


@pytest.mark.parametrize("errors", [[1.0] * 7, [1, math.nan] * 3 + [1], [0.0] * 7, [1, 9, 0.1, 7, 0.3, 5, 0.2]])
def test_no_slope_where_nothing_is_straight(errors):
    assert math.isnan(validity.fit_slope(1 / np.array(COUNTS, float), errors).order)


def test_dip_at_the_training_step():
    dip = validity.find_dip((5, 10, 20, 40), (2.0, 0.01, 0.5, 0.7), trained=10)
    assert dip.detected
    assert (dip.at_half, dip.worst) == (pytest.approx(50), pytest.approx(70))
    assert not validity.find_dip((5, 10, 20), (2.0, 0.01, 0.011), trained=10).detected
    assert validity.find_dip((10, 20), (0.01, math.nan), trained=10).detected


def test_a_dip_into_rounding_is_none():
    assert validity.find_dip((5, 10, 20), (1e-3, 0.0, 2e-7), trained=10).detected
    dip = validity.find_dip((5, 10, 20), (1e-3, 0.0, 2e-7), trained=10, floor=1e-6)
    assert (dip.detected, dip.error, dip.worst) == (False, 0.0, 1.0)
    assert not validity.find_dip((10, 20), (0.0, 0.0), trained=10).detected
    assert validity.find_dip((10, 20), (0.0, math.nan), trained=10, floor=1e-6).detected
    out = jnp.full((3, 4), 2.0)
    assert validity.rounding(out) == pytest.approx(64 * 2.0**-23 * 4)
    assert validity.rounding(out, np.full((3, 4), np.inf)) == validity.rounding(out)


@pytest.mark.usefixtures("x64")
def test_numerical_pendulum_converges_with_the_orders():
    x0 = jnp.array([[pendulum.START, 0.0]])
    subject = validity.of_field(pendulum.field, pendulum.GRAVITY, x0, FixedStep("rk4", 64))
    schemes, counts = ("euler", "midpoint", "rk4"), (32, 64, 128, 256, 512)
    study = validity.convergence(subject.run, schemes, counts, truth=pendulum.solution(1.0)[None])
    orders = [study.slopes[scheme].order for scheme in schemes]
    np.testing.assert_allclose(orders, [1, 2, 4], atol=0.1)
    own = validity.convergence(subject.run, schemes, counts)
    np.testing.assert_allclose([own.slopes[scheme].order for scheme in schemes], [1, 2, 4], atol=0.1)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: validity.fit_slope([1, 2], [1, 1]), "falling"),
        (lambda: validity.fit_slope([2, 1], [1]), r"errors=<int64\[1\]>.* n=2 as in h="),
        (lambda: validity.find_dip((1, 2), (1, 1), 3), "training step count 3"),
        (lambda: validity.find_dip((1, 2), (1, 1), 2), "finer ones"),
        (lambda: validity.convergence(lambda s: jnp.ones((1, 1)), (), (1,)), "at least one"),
        (lambda: validity.convergence(lambda s: jnp.ones((1, 1)), ("euler",), (1,), truth=jnp.ones(3)), "truth"),
    ],
)
def test_bad_arguments_are_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()
