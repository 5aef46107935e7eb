"""Regularizers of training: how they are written, and what they add to the objective."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training import models, optimizers, regularize, steps
from experiments.training.config import Config
from experiments.training.models import ContinuousNetSettings, ResNet18Settings
from ode_nets import Adaptive, ContinuousNet, PiecewiseConstant, ResNet18


def test_weights_are_read_by_name():
    assert regularize.weights_of(()) == {}
    found = regularize.weights_of(("kinetic=0.01", "stiffness=2"))
    assert found == {"kinetic_energy": 0.01, "stiffness": 2.0}


@pytest.mark.parametrize("entries", [["speed=1"], ["kinetic"], ["kinetic=0"], ["kinetic=nan"], ["kinetic=1"] * 2])
def test_what_is_no_weight_is_refused_with_what_is(entries):
    with pytest.raises(ValueError, match=r"regularize='.*': expected, once each, kinetic, jacobian, local_error, st"):
        Config(regularize=tuple(entries))


def test_networks_that_integrate_nothing_are_refused():
    with pytest.raises(ValueError, match=r"regularize=.*none for a resnet18, which integrates nothing"):
        Config(model=ResNet18Settings(), regularize=("kinetic=1",))
    with pytest.raises(ValueError, match="a ResNet18 integrates nothing"):
        regularize.measured(ResNet18(), {"kinetic_energy": 1.0})


def test_penalties_are_weighted_means_over_blocks_and_change_no_step():
    solver = Adaptive("heun_euler", 1e-1, 1e-1, max_steps=8)
    net = ContinuousNet(n_classes=3, widths=(2,), basis=PiecewiseConstant(1), solver=solver, skip_init=False)
    weights = {"kinetic_energy": 0.5, "jacobian_frobenius": 0.1, "local_error": 2.0}
    images = jax.random.normal(jax.random.key(0), (4, 6, 6, 1))
    variables = jax.jit(net.init)(jax.random.key(1), images)
    variables = {name: variables[name] for name in ("params", "batch_stats")}
    collections = ["batch_stats", "solution", "quantities"]

    @jax.jit
    def both():
        bare = net.apply(variables, images, train=True, mutable=collections)
        rngs = {"quantities": jax.random.key(2)}
        full = regularize.measured(net, weights).apply(variables, images, train=True, mutable=collections, rngs=rngs)
        return bare, full, regularize.penalty(weights, full[1])

    bare, (logits, changed), total = both()
    np.testing.assert_allclose(logits, bare[0], rtol=1e-5, atol=1e-6)
    quantities = changed.pop("quantities")
    counts = lambda found: [(block["n_accepted"], block["n_rejected"]) for block in found["solution"].values()]
    assert counts(changed) == counts(bare[1])
    assert set(quantities) == {"block1"}
    assert all(float(value) > 0 for block in quantities.values() for value in block.values())
    expected = sum(weights[name] * value for block in quantities.values() for name, value in block.items())
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert regularize.penalty({}, bare[1]) == 0


@pytest.mark.slow
def test_a_training_step_follows_the_penalty():
    model = ContinuousNetSettings(widths=(2,), scheme="heun", n_steps=2, skip_init=False)
    config = Config(model=model, batch_size=4, limit=4, learning_rate=1e-4, regularize=("kinetic=100",))
    net, optimizer = models.build(config, 3), optimizers.make_optimizer(config, 1)
    images = jax.random.randint(jax.random.key(0), (4, 8, 8, 1), 0, 255).astype(jnp.uint8)
    data = (images, jnp.arange(4) % 3, jnp.arange(4)[None], (jnp.zeros(1), jnp.ones(1)), 0)
    state = steps.init_state(net, optimizer, jnp.zeros((1, 8, 8, 1)), 0)

    def energy(params):
        variables = {"params": params, "batch_stats": state["batch_stats"]}
        measured = regularize.measured(net, {"kinetic_energy": 1.0})
        x = images.astype(jnp.float32) / 255
        changed = measured.apply(variables, x, train=True, mutable=["batch_stats", "quantities", "solution"])[1]
        return float(regularize.penalty({"kinetic_energy": 1.0}, changed))

    before, start = energy(state["params"]), jax.tree.map(jnp.copy, state)
    after, metrics = steps.train_step(config, net, optimizer, start, *data)
    assert int(metrics["bad_step"]) == 0
    assert energy(after["params"]) < before
