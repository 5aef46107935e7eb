"""Augmented neural ODEs: the paper's counts of parameters, their Euler step in plain Flax, swaps and refinement."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from agreement import relative
from ode_nets import AugmentedNet, Direct, FixedStep, PiecewiseConstant, refine
from ode_nets.remanifest import n_parameters


@pytest.mark.parametrize(
    ("shape", "augment", "filters", "expected"),
    [
        ((28, 28, 1), 0, 92, 84_395),
        ((28, 28, 1), 5, 64, 84_816),
        ((32, 32, 3), 0, 125, 172_358),
        ((32, 32, 3), 10, 64, 171_799),
    ],
)
def test_published_parameter_counts(shape, augment, filters, expected):
    net = AugmentedNet(augment=augment, filters=filters)
    variables = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, *shape))))
    assert n_parameters(variables) == expected


def test_an_euler_step_is_a_residual_unit_and_a_refined_net_computes_the_same(x64):
    images = jax.random.normal(jax.random.key(1), (3, 4, 4, 2))
    net = AugmentedNet(3, 2, 5, PiecewiseConstant(1), FixedStep("euler", 1), Direct())
    variables = net.init(jax.random.key(0), images)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64) + 0.1, variables["params"])
    logits = net.apply({**variables, "params": params}, images)

    x = jnp.pad(images, ((0, 0), (0, 0), (0, 0), (0, 2)))
    y = x
    for i, (size, features) in enumerate(((1, 5), (3, 5), (1, 4)), 1):
        layer = jax.tree.map(lambda leaf: leaf[0], params["block1"]["coefficients"][f"conv{i}"])
        y = nn.Conv(features, (size, size), param_dtype=jnp.float64).apply({"params": layer}, y)
        y = nn.relu(y) if i < 3 else y
    expected = (x + y).reshape(3, -1) @ params["head"]["kernel"] + params["head"]["bias"]
    assert relative(logits, expected) < 1e-12

    deeper, finer = refine(net, {**variables, "params": params})
    assert relative(deeper.clone(solver=net.solver).apply(finer, images), logits) < 1e-12
