"""A small net whose variables all matter, for the tests of what becomes of it."""

import jax
import jax.numpy as jnp
import numpy as np

from ode_nets.gradients import Direct
from ode_nets.integrate import FixedStep
from ode_nets.nn import ContinuousNet

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
