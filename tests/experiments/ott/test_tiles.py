"""Ott's field in tiles is his field, and so is what is trained and tested with it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agreement import assert_agree
from experiments.ott.programs import accuracies, begin, training
from experiments.ott.tasks import TASKS, ConvField
from experiments.ott.tiles import as_computed, field, transformed
from ode_nets import FixedStep, uniform_layer

CPU = pytest.mark.skipif(jax.default_backend() != "cpu", reason="tiles are for CPUs")


@pytest.mark.parametrize(("height", "width", "inputs"), [(8, 8, 1), (5, 7, 3)])
def test_value_and_gradients_are_those_of_three_convolutions(x64, height, width, inputs):
    # Biases that are not zero tell the zeros beyond the image from ReLU of the bias; 5 x 7 fills no whole tiles.
    plain = ConvField(inputs, 6, layer=uniform_layer)
    theta = plain.init(jax.random.key(0))
    x, y = jax.random.normal(jax.random.key(1), (2, 2, height, width, inputs))

    def both(f):
        value, pull = jax.vjp(f, x, theta)
        return value, pull(y)

    tiled = jax.jit(lambda: both(lambda x, theta: field(0.0, x, transformed(theta))))()
    assert_agree(tiled, jax.jit(lambda: both(lambda x, theta: plain(0.0, x, theta)))(), 1e-12)


@CPU
def test_images_are_computed_in_tiles_and_nothing_else():
    for name, task in TASKS.items():
        params = jax.eval_shape(task.init, jax.random.key(0))["field"]
        used = jax.eval_shape(lambda p, task=task: as_computed(task.field, p)[1], params)
        assert isinstance(used, dict) == (name in ("mnist", "cifar10"))
    plain = ConvField(1, 2, tiled=False)
    assert as_computed(plain, ()) == (plain, ())


@CPU
@pytest.mark.slow
def test_training_in_tiles_is_training_to_rounding(x64):
    params, correct = [], []
    x, y = jax.random.uniform(jax.random.key(0), (40, 12, 12, 1)), np.arange(40) % 10
    for tiled in (True, False):
        plain = ConvField(1, 8, tiled=tiled)
        task = dataclasses.replace(TASKS["mnist"], shape=(12, 12, 1), field=plain, batch_size=8, test_chunk=20)
        step = training(task, "euler", 4, own=False, many=5)
        state = step(begin(task, jax.random.split(jax.random.key(1), 2)), x, y, 3)
        params.append(state["params"])
        correct.append([accuracies(task, state["params"], (x, y), FixedStep(s, 3)) for s in ("euler", "midpoint")])
    # In float32 ReLU that flips by rounding is seen after some ten iterations.
    assert_agree(*params, 1e-10)
    assert correct[0] == correct[1]
    assert jnp.shape(params[0]["head"]["bias"]) == (2, 10)
