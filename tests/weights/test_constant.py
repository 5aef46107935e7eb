"""Weights that do not depend on time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ode_nets.weights import Constant

THETA = {"w": jnp.arange(6.0).reshape(2, 3), "s": jnp.float32(2.0)}


def same(left, right):
    return jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype and np.array_equal(a, b), left, right))


@pytest.mark.parametrize("n_sections", [1, 4])
def test_theta_is_the_same_at_every_time_and_stage(n_sections):
    weights = Constant(THETA)
    assert same(weights.at(0.3), THETA)
    assert same(weights.at(-5.0, side=-1), THETA)
    assert same(weights.at_node(jnp.int32(2), jnp.int32(4), jnp.int32(1), jnp.int32(2)), THETA)
    assert weights.n_sections(8) == 1
    sections = weights.sections(n_sections)
    assert sections.theta["w"].shape == (n_sections, 2, 3)
    assert same(jax.tree.map(lambda leaf: leaf[-1], sections).at_node(jnp.int32(3), 8, 1, 2), THETA)


def test_constant_is_a_pytree_whose_gradient_is_a_constant():
    gradient = jax.grad(lambda weights: jnp.sum(weights.at(0.5)["w"] ** 2))(Constant(THETA, domain=(0, 2)))
    assert isinstance(gradient, Constant)
    assert gradient.domain == (0.0, 2.0)
    assert same(gradient.theta, {"w": 2 * THETA["w"], "s": jnp.float32(0.0)})


def test_domain_must_have_a_length():
    with pytest.raises(ValueError, match=r"domain=\(1.0, 1.0\): expected \(t0, t1\) with t0 < t1"):
        Constant(THETA, domain=(1.0, 1.0))
