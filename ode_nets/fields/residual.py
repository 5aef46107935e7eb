"""Convolutional residual units: the right-hand sides of image networks, as pure init/apply pairs."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ode_nets.arguments import Count, FloatName, checked
from ode_nets.axes import AxisName
from ode_nets.fields.convolution import convolution
from ode_nets.fields.initializers import fan_out_normal
from ode_nets.fields.normalization import batch_norm, init_batch_norm, init_statistics

PyTree = Any
Order = Literal["bn-relu-conv", "conv-bn-relu", "conv-relu-bn"]


@dataclasses.dataclass(frozen=True)
@checked
class ResidualUnit:
    """Convolutions with batch norm, two by default: R(x, theta) of a residual network.

        bn-relu-conv:  R = s * conv(relu(bn(conv(relu(bn(x))))))   (pre-activation; ContinuousNet eq. 29)
        conv-bn-relu:  R = s * relu(bn(conv(relu(bn(conv(x))))))   (post-activation; ACA, the field of NODE18)
        conv-relu-bn:  R = s * bn(relu(conv(bn(relu(conv(x))))))   (ContinuousNet, its published code)

    Args:
      channels: channels of the output, and of the input unless `in_channels` says otherwise.
      in_channels: channels of the input, for a unit that changes the shape.
      stride: of the first convolution.
      order: what happens around each convolution, one of the three above.
      skip_init: multiply by a scalar s that starts at zero (ContinuousNet A.2); without it s = 1.
      bias: whether convolutions have a bias.
      time_aware: append t as one more input channel to each convolution (the lecture's f([x, t])).
      kernel_size: extent of every convolution.
      dtype: what convolutions compute in, e.g. `"bfloat16"`; parameters and the result stay as they are.
      n_convolutions: how many there are, e.g. 1 for ANODEV2's AlexNet.
      axis_name: of the batch norms in training, see `batch_norm`.

    Raises:
      ValueError: for sizes below 1 or an unknown order.

    Example:
        >>> unit = ResidualUnit(4, order="conv-bn-relu")
        >>> dx, statistics = unit.apply(unit.init(jax.random.key(0)), jnp.ones((2, 8, 8, 4)))
        >>> dx.shape, sorted(statistics)
        ((2, 8, 8, 4), ['bn1', 'bn2'])
    """

    channels: Count
    in_channels: Count | None = None
    stride: Count = 1
    order: Order = "bn-relu-conv"
    skip_init: bool = True
    bias: bool = True
    time_aware: bool = False
    kernel_size: Count = 3
    dtype: FloatName | None = None
    n_convolutions: Count = 2
    axis_name: AxisName = None

    @property
    def _inputs(self) -> tuple[int, ...]:
        """Channels that each convolution reads."""
        return (self.in_channels or self.channels, *[self.channels] * (self.n_convolutions - 1))

    @property
    def _widths(self) -> tuple[int, ...]:
        """Channels that each batch norm sees."""
        return self._inputs if self.order == "bn-relu-conv" else (self.channels,) * self.n_convolutions

    def init(self, key: jax.Array) -> PyTree:
        """Parameters: He fan-out convolutions, zero biases, unit batch norms, s = 0; float32."""
        params: dict[str, Any] = {}
        keys = jax.random.split(key, self.n_convolutions)
        for i, (key_i, n_in) in enumerate(zip(keys, self._inputs, strict=True), start=1):
            size = (self.kernel_size, self.kernel_size, n_in + self.time_aware, self.channels)
            params[f"conv{i}"] = {"kernel": fan_out_normal(key_i, size)}
            if self.bias:
                params[f"conv{i}"]["bias"] = jnp.zeros(self.channels)
            params[f"bn{i}"] = init_batch_norm(self._widths[i - 1])
        if self.skip_init:
            params["skip"] = jnp.zeros(())
        return params

    def init_stats(self) -> PyTree:
        """Running statistics of every batch norm before any data."""
        return {f"bn{i}": init_statistics(width) for i, width in enumerate(self._widths, start=1)}

    def apply(self, params: PyTree, x: jax.Array, t: Any = 0.0, stats: PyTree = None) -> tuple[jax.Array, PyTree]:
        """R(x, theta).

        Args:
          params: like `init`'s.
          x: `[batch, height, width, in_channels]`.
          t: depth-time, read only if `time_aware`.
          stats: running statistics like `init_stats`'s for evaluation; `None` in training.

        Returns:
          `[batch, height / stride, width / stride, channels]`, and the statistics that each batch norm used.
        """
        used = {}

        def norm(i: int, x: jax.Array) -> jax.Array:
            running = None if stats is None else stats[f"bn{i}"]
            y, used[f"bn{i}"] = batch_norm(x, params[f"bn{i}"], running, self.axis_name)
            return y

        def conv(i: int, x: jax.Array) -> jax.Array:
            if self.time_aware:
                x = jnp.concatenate([x, jnp.full_like(x[..., :1], t)], axis=-1)
            stride = self.stride if i == 1 else 1
            y = convolution(x, params[f"conv{i}"]["kernel"], strides=stride, dtype=self.dtype)
            return y + params[f"conv{i}"]["bias"].astype(y.dtype) if self.bias else y

        layers = {"bn": norm, "conv": conv, "relu": lambda i, x: jax.nn.relu(x)}
        for i in range(1, self.n_convolutions + 1):
            for layer in self.order.split("-"):
                x = layers[layer](i, x)
        return (x * params["skip"].astype(x.dtype) if self.skip_init else x), used
