"""Named configs are the settings of the papers, as far as counts and names can say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.aca.node18_swap import ADAPTIVE, FIXED
from experiments.configs import CONFIGS
from experiments.training.models import Node18Settings, ResNetSettings, build
from ode_nets import ACA, FixedStep, n_parameters
from ode_nets.nn import as_resnet


def net_at_the_end(name, n_classes):
    config = CONFIGS[name]
    return build(config, n_classes, config.level(config.epochs))


def count(net):
    return n_parameters(jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))))


@pytest.mark.parametrize(
    ("name", "n_classes", "expected"),
    [("cifar10", 10, 3_191_578), ("cifar10_euler", 10, 3_191_578), ("cifar100_wide", 100, 13_584_700)],
)
def test_networks_of_the_paper_end_with_its_parameters(name, n_classes, expected):
    assert CONFIGS[name].epochs == 160
    assert count(net_at_the_end(name, n_classes)) == expected


@pytest.mark.parametrize(("under_euler", "twin"), [("cifar10_euler", "cifar10_resnet"), ("cifar100_wide_euler", None)])
def test_networks_under_euler_are_the_resnets_beside_them(under_euler, twin):
    net = net_at_the_end(under_euler, 10)
    variables = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    resnets = []
    jax.eval_shape(lambda v: resnets.append(as_resnet(net, v)[0]) or v, variables)
    twin = twin or under_euler.replace("_euler", "_resnet")
    assert isinstance(CONFIGS[twin].model, ResNetSettings)
    assert resnets[0] == net_at_the_end(twin, 10)


def test_refinement_ends_at_the_steps_of_the_twin():
    for refined, twin in (("cifar10", "cifar10_euler"), ("tiny_imagenet_midpoint", "tiny_imagenet_euler")):
        assert net_at_the_end(refined, 10).basis == net_at_the_end(twin, 10).basis
    assert net_at_the_end("fig11c", 100).solver.n_steps == net_at_the_end("fig11c_euler", 100).solver.n_steps == 16


def test_gradient_methods_and_the_step_of_node18_are_those_of_its_tables():
    models = {name: CONFIGS[f"node18_cifar10{name}"].model for name in ("", "_adjoint", "_naive", "_euler")}
    assert [model.gradient for model in models.values()] == ["aca", "backsolve", "naive", "aca"]
    assert [model.scheme for model in models.values()] == ["heun_euler", "dopri5", "dopri5", "euler"]
    assert models["_euler"].solver() == FixedStep("euler", 1)
    assert (FIXED["RK2"], ADAPTIVE["RK23"]) == ("midpoint", "bosh3")
    with pytest.raises(ValueError, match=r"model\.gradient='naive': expected another one without rtol"):
        Node18Settings(gradient="naive")


@pytest.mark.slow
def test_the_naive_method_trains_node18():
    net = Node18Settings(widths=(2,), scheme="heun_euler", rtol=0.1, gradient="naive", max_steps=16).build(3)
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    variables = net.init(jax.random.key(1), images)

    def loss(params, net):
        both = {"params": params, "batch_stats": variables["batch_stats"]}
        logits, _ = net.apply(both, images, train=True, mutable=["batch_stats", "solution"])
        return jnp.sum(jnp.sin(logits))

    naive, aca = (
        jax.jit(jax.grad(loss), static_argnums=1)(variables["params"], n) for n in (net, net.clone(gradient=ACA()))
    )
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(naive)]
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    # Its steps are functions of the weights: it is no other method under another name.
    assert not all(np.allclose(a, b, rtol=1e-5) for a, b in zip(leaves, jax.tree.leaves(aca), strict=True))
