"""Augmented neural ODEs of images: one ODE block on the pixels, and channels of zeros beside them."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ode_nets.arguments import Count, FloatName, Natural, checked
from ode_nets.fields import convolution
from ode_nets.fields.initializers import fan_out_normal
from ode_nets.gradients import ACA, GradientMethod
from ode_nets.integrate import Adaptive
from ode_nets.nn.layers import Images, Logits
from ode_nets.nn.ode_block import OdeBlock
from ode_nets.weights import Basis, Evolution, PiecewiseConstant

PyTree = Any


@dataclasses.dataclass(frozen=True)
class ThreeConvolutions:
    """A unit of convolutions of extent 1, 3 and 1 with biases, ReLU between them (Dupont et al. 2019, app. C).

    Args:
      channels: of the state.
      filters: between the convolutions.
      dtype: what they compute in; `None` for that of their inputs.
    """

    channels: int
    filters: int
    dtype: FloatName | None = None

    def init(self, key: jax.Array) -> PyTree:
        """Kernels `[extent, extent, inputs, outputs]` and biases `[outputs]`, float32."""
        c, f = self.channels, self.filters
        shapes = ((1, 1, c, f), (3, 3, f, f), (1, 1, f, c))
        return {
            f"conv{i}": {"kernel": fan_out_normal(jax.random.fold_in(key, i), shape), "bias": jnp.zeros(shape[-1])}
            for i, shape in enumerate(shapes, 1)
        }

    def init_stats(self) -> PyTree:
        """None: nothing is normalized."""
        return {}

    def apply(self, params: PyTree, x: jax.Array, t: Any = 0.0, stats: PyTree = None) -> tuple[jax.Array, PyTree]:
        """The right-hand side, `[batch, height, width, channels]` like `x`, and no statistics."""
        y = x
        for i in (1, 2, 3):
            layer = params[f"conv{i}"]
            y = convolution(y if i == 1 else jax.nn.relu(y), layer["kernel"], dtype=self.dtype) + layer["bias"]
        return y.astype(x.dtype), {}


@checked
class AugmentedNet(nn.Module):
    """Zeros beside the image, one ODE block, a linear head on all of its last state (Dupont et al. 2019, sec. 5).

        dx/dt = f(x, theta(t)),  x(0) = [image, 0]           (Augmented Neural ODEs, sec. 4)

    In the channels that are added trajectories can pass each other, which those of an ODE on the image alone cannot.

    Attributes:
      n_classes: length of the output.
      augment: channels of zeros; 0 for the plain neural ODE of the paper.
      filters: of the right-hand side, see `ThreeConvolutions`.
      basis: of theta(t).
      solver: of the block.
      gradient: of the block.
      dtype: what convolutions compute in, e.g. `"bfloat16"`; `None` for that of their inputs.
      evolution: how the kernels evolve in depth (ANODEV2); `None` for kernels in `basis`.
      quantities: what the block integrates in training, see `OdeBlock`.

    Example:
        >>> net = AugmentedNet(augment=2, filters=8)
        >>> logits, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), jnp.ones((4, 8, 8, 1)))
        >>> logits.shape, variables["params"]["head"]["kernel"].shape
        ((4, 10), (192, 10))
    """

    n_classes: Count = 10
    augment: Natural = 5
    filters: Count = 64
    basis: Basis = PiecewiseConstant(1)
    solver: Any = Adaptive("dopri5", 1e-3, 1e-3)
    gradient: GradientMethod = ACA()
    dtype: FloatName | None = None
    evolution: Evolution | None = None
    quantities: tuple[str, ...] = ()

    @checked
    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Logits:
        """Logits of `images`, of one size."""
        x = OdeBlock(
            unit=ThreeConvolutions(images.shape[-1] + self.augment, self.filters, self.dtype),
            basis=self.basis,
            solver=self.solver,
            gradient=self.gradient,
            evolution=self.evolution,
            augment=self.augment,
            keep_augmented=True,
            quantities=self.quantities,
            name="block1",
        )(images, train=train)
        return nn.Dense(self.n_classes, name="head")(x.reshape(len(x), -1))
