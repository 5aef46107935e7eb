"""A small net whose variables all matter, for the tests of what becomes of it; and one as a user writes it."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ode_nets.gradients import Direct, GradientMethod
from ode_nets.integrate import FixedStep
from ode_nets.nn import ContinuousNet, OdeBlock
from ode_nets.weights import Basis, PiecewiseConstant

IMAGES = np.random.default_rng(0).normal(size=(6, 4, 4, 1))


def model(basis, n_steps=2, widths=(2,), dtype=None):
    """A net and variables of which none is at its initial value: skip-init would hide the blocks."""
    net = ContinuousNet(n_classes=3, widths=widths, basis=basis, solver=FixedStep("rk4", n_steps), gradient=Direct())
    variables = jax.eval_shape(net.init, jax.random.key(0), jnp.asarray(IMAGES, dtype))
    rng = np.random.default_rng(2)

    def leaf(path, shape):
        values = rng.normal(size=shape.shape) * 0.7
        # The parameters of every interval differ, and no variance is small or negative.
        return jnp.asarray(1 + values**2 if "var" in str(path[-1]) else values, dtype)

    return net, jax.tree_util.tree_map_with_path(leaf, variables)


def logits(net, variables):
    return jax.jit(net.apply)(variables, IMAGES)


class Unit(nn.Module):
    @nn.compact
    def __call__(self, x, t):
        return nn.Dense(x.shape[-1])(nn.tanh(nn.Dense(4)(x) + t))


class Own(nn.Module):
    """A network of the user's own, with all that is exchanged."""

    n_classes: int
    width: int = 4
    basis: Basis = PiecewiseConstant(2)
    solver: Any = FixedStep("midpoint", 2)
    gradient: GradientMethod = Direct()

    @nn.compact
    def __call__(self, images):
        x = nn.Dense(self.width)(images.reshape(images.shape[0], -1))
        x = OdeBlock(Unit(), self.basis, self.solver, self.gradient, name="block")(x)
        return nn.Dense(self.n_classes)(x)


class Plain(nn.Module):
    """One without ODE blocks."""

    n_classes: int

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Dropout(0.1, deterministic=not train)(images.reshape(images.shape[0], -1))
        return nn.Dense(self.n_classes)(x)


def make(n_classes, width=4):
    return Own(n_classes, width)


def fails(n_classes):
    raise KeyError("not mine")


def returns_the_class(n_classes):
    return Own


def has_a_list(n_classes):
    return Own(n_classes, width=[4])


def always_three(n_classes):
    return Own(3)
