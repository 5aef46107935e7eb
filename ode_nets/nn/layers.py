"""Layers between the ODE blocks: stem, stitch, and the folding of batch statistics."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ode_nets.arguments import Rule
from ode_nets.axes import AxisName
from ode_nets.fields import ResidualUnit, batch_norm, convolution
from ode_nets.fields.initializers import fan_out_normal
from ode_nets.fields.normalization import init_batch_norm, init_statistics

PyTree = Any
Images = Annotated[
    Float[Array, "batch height width channels"],
    Rule("floating-point images [batch, height, width, channels]; scale uint8 images first"),
]
Logits = Float[Array, "batch n_classes"]


def fold(running: PyTree, batch: PyTree, momentum: float, seen: jax.Array | bool = True) -> PyTree:
    """Running statistics after one more batch.

        running <- momentum * running + (1 - momentum) * batch, where seen

    Args:
      running, batch: pytrees of one structure; leaves `[...]`.
      momentum: weight of the past, in [0, 1).
      seen: boolean, broadcast against the leading axes of each leaf; entries not seen stay as they are.
    """

    def leaf(old: jax.Array, new: jax.Array) -> jax.Array:
        mask = jnp.reshape(jnp.asarray(seen), jnp.shape(seen) + (1,) * (old.ndim - jnp.ndim(seen)))
        return jnp.where(mask, momentum * old + (1 - momentum) * new.astype(old.dtype), old)

    return jax.tree.map(leaf, running, batch)


class Norm(nn.Module):
    """Batch normalization, with running statistics in evaluation; `[..., channels]` to the same."""

    momentum: float = 0.9
    axis_name: AxisName = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Normalized features."""
        channels = x.shape[-1]
        params = {name: self.param(name, lambda key, v=value: v) for name, value in init_batch_norm(channels).items()}
        stats = {
            name: self.variable("batch_stats", name, lambda v=value: v)
            for name, value in init_statistics(channels).items()
        }
        running = None if train else {name: stat.value for name, stat in stats.items()}
        y, used = batch_norm(x, params, running, None if self.is_initializing() else self.axis_name)
        if train and not self.is_initializing():
            for name, stat in stats.items():
                stat.value = fold(stat.value, used[name], self.momentum)
        return y


def alone(module: nn.Module, part: Any) -> Any:
    """A unit or a solver as a module has it: without its mesh axis while variables are made, where there is none."""
    named = getattr(part, "axis_name", None) is not None
    return dataclasses.replace(part, axis_name=None) if named and module.is_initializing() else part


class ConvNorm(nn.Module):
    """bn(conv(x)), the convolution without bias.

    `[batch, height, width, inputs]` to `[batch, height / stride, width / stride, channels]`.
    """

    channels: int
    momentum: float = 0.9
    dtype: str | None = None
    kernel_size: int = 3
    stride: int = 1
    axis_name: AxisName = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Normalized features."""
        size = (self.kernel_size, self.kernel_size, x.shape[-1], self.channels)
        kernel = self.param("kernel", fan_out_normal, size)
        y = convolution(x, kernel, strides=self.stride, dtype=self.dtype)
        return Norm(self.momentum, self.axis_name, name="bn")(y, train=train)


class Stem(ConvNorm):
    """The first layer of an image network: relu(bn(conv3x3(x))).

    `[batch, height, width, inputs]` to `[batch, height, width, channels]`.
    """

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Features of a batch of images."""
        return jax.nn.relu(super().__call__(x, train=train))


class Stitch(nn.Module):
    """The discrete unit between two ODE blocks, which halves the image and widens it.

        y = downsample(x) + scale * R(x)                     (ContinuousNet eq. 28)

    `downsample` is a 1x1 convolution of stride 2 without bias. `scale` is the paper's eps_stitch. The text
    prints eps * T / dt; its published code has eps * dt, which makes a stitch one Euler step of an ODE
    block, and is what the models here use.

    `[batch, height, width, inputs]` to `[batch, height / 2, width / 2, unit.channels]`.
    """

    unit: ResidualUnit
    scale: float = 1.0
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """One downsampling residual step."""
        params = self.param("unit", self.unit.init)
        shortcut = self.param("shortcut", fan_out_normal, (1, 1, x.shape[-1], self.unit.channels))
        stats = self.variable("batch_stats", "unit", self.unit.init_stats)
        residual, used = alone(self, self.unit).apply(params, x, stats=None if train else stats.value)
        if train and not self.is_initializing():
            stats.value = fold(stats.value, used, self.momentum)
        down = convolution(x, shortcut, strides=self.unit.stride, dtype=self.unit.dtype)
        return down + self.scale * residual
