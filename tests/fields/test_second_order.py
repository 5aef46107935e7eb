"""Equations of second order: both forms of the state, their solutions and gradients, and what is refused."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets import ACA, Adaptive, Direct, FixedStep, SecondOrder, solve
from ode_nets.problems import pendulum, van_der_pol


class Phase(NamedTuple):
    r: object
    v: object


spring = SecondOrder(lambda t, r, v, k: jax.tree.map(lambda r: -k * r, r))


def test_a_spring_swings_as_a_cosine_and_its_gradient_is_exact(x64):
    def end(k):
        solver = Adaptive("dopri5", 1e-11, 1e-11)
        return solve(spring, ({"a": 1.0}, {"a": 0.0}), k, solver=solver, gradient=ACA()).x[0]["a"]

    value, slope = jax.value_and_grad(end)(2.0)
    w = np.sqrt(2.0)
    np.testing.assert_allclose([value, slope], [np.cos(w), -np.sin(w) / (2 * w)], rtol=1e-9)


def test_a_pair_and_one_array_are_the_same_state(x64):
    r, v = jnp.array([1.0, -0.5]), jnp.array([0.0, 2.0])
    solver = FixedStep("rk4", 5)
    pair = solve(spring, (r, v), 2.0, solver=solver, gradient=Direct()).x
    whole = solve(spring, jnp.concatenate([r, v]), 2.0, solver=solver, gradient=Direct()).x
    np.testing.assert_array_equal(jnp.concatenate(pair), whole)
    named = solve(spring, Phase(r, v), 2.0, solver=solver, gradient=Direct()).x
    assert isinstance(named, Phase)
    np.testing.assert_array_equal(jnp.concatenate(named), whole)


def test_problems_of_second_order_are_their_equations_for_stacks_of_states():
    x = jax.random.normal(jax.random.key(0), (3, 4, 2))
    a, b = x[..., 0], x[..., 1]
    np.testing.assert_allclose(pendulum.field(0.0, x, -2.0), jnp.stack([b, -2.0 * jnp.sin(a)], -1), rtol=1e-6)
    expected = jnp.stack([b, (0.15 - a**2) * b - a], -1)
    np.testing.assert_allclose(van_der_pol.field(0.0, x, 0.15), expected, rtol=1e-6)


@pytest.mark.parametrize("x", [jnp.zeros(3), jnp.zeros(()), (jnp.zeros(1),) * 3])
def test_what_is_no_pair_of_positions_and_velocities_is_refused(x):
    with pytest.raises(ValueError, match=r"expected a pair \(r, v\), or one array"):
        spring(0.0, x, 1.0)


def test_fields_are_values():
    assert SecondOrder(pendulum.energy) == SecondOrder(pendulum.energy)
    assert hash(SecondOrder(pendulum.energy)) == hash(SecondOrder(pendulum.energy))
