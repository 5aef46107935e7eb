"""NODE18, an image network of ordinary residual blocks and ODE blocks in turn, and its twin ResNet18."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from ode_nets.arguments import Count, FloatName, Fraction01, Natural, Widths, checked
from ode_nets.axes import AxisName
from ode_nets.fields import ResidualUnit
from ode_nets.gradients import ACA, GradientMethod
from ode_nets.integrate import Adaptive
from ode_nets.nn.layers import ConvNorm, Images, Logits, Stem
from ode_nets.nn.ode_block import OdeBlock
from ode_nets.tableaus import get_tableau
from ode_nets.weights import Evolution, PiecewiseConstant

Block = Callable[..., nn.Module]


class BasicBlock(nn.Module):
    """The block of ResNet18: two convolutions and a shortcut.

        y = relu(bn(conv(relu(bn(conv(x))))) + shortcut(x))

    The shortcut is the identity, or a 1x1 convolution with batch norm where the shape changes.

    `[batch, height, width, inputs]` to `[batch, height / stride, width / stride, channels]`.
    """

    channels: int
    stride: int = 1
    momentum: float = 0.9
    dtype: str | None = None
    axis_name: AxisName = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Features after one discrete block."""

        def layer(name: str, kernel_size: int = 3, stride: int = 1) -> nn.Module:
            return ConvNorm(self.channels, self.momentum, self.dtype, kernel_size, stride, self.axis_name, name=name)

        y = jax.nn.relu(layer("layer1", stride=self.stride)(x, train=train))
        y = layer("layer2")(y, train=train)
        if x.shape != y.shape:
            x = layer("shortcut", kernel_size=1, stride=self.stride)(x, train=train)
        return jax.nn.relu(x + y)


@checked
class NODE18(nn.Module):
    """Stem, stages of one `BasicBlock` and one ODE block each, mean over space, linear head (ACA sec. 4.2).

        x(1) of dx/dt = relu(bn(conv(relu(bn(conv(x)))))), x(0) = x          (ACA eq. 31)

    The right-hand side has no bias, no shortcut and does not read t; theta is constant in depth, which is what
    `PiecewiseConstant(1)` means. At the default widths and blocks there are 11,173,962 parameters, exactly as
    many as in `ResNet18`.

    In training, batch norm takes mean and variance over the global batch, and the step sizes follow the error
    of the state of the whole global batch, however many devices it lies on: both are plain reductions inside
    jit, and reductions by name in a `jax.shard_map` (`axis_name` here and of the solver). Running statistics take
    in the accepted steps alone, once a call, under every gradient method.

    Attributes:
      n_classes: length of the output.
      widths: channels of each stage; every stage but the first halves the image.
      n_blocks: ODE blocks of each stage.
      solver: of every ODE block; `net.clone(solver=...)` on the same variables is a solver swap.
      gradient: of every ODE block.
      momentum: of all running batch statistics.
      dtype: what convolutions compute in, e.g. `"bfloat16"`; parameters, state, time and step control are
        float32 all the same.
      evolution: how the kernels of every ODE block evolve in depth (ANODEV2); `None` for constant ones.
      quantities: what every ODE block integrates in training, see `OdeBlock`.
      axis_name: of all batch norms in training, see `batch_norm`.

    ODE blocks are the modules `ode<stage>_<number>`, and the collection `solution`, where mutable, has their
    counts and result codes.

    Example:
        >>> net = NODE18(widths=(8, 16))
        >>> net.solver, net.gradient
        (Adaptive(heun_euler, rtol=0.01, atol=0.01), ACA(checkpoints='auto'))
        >>> variables = jax.eval_shape(net.init, jax.random.key(0), jnp.ones((2, 16, 16, 3)))
        >>> sorted(variables["params"])
        ['basic1_0', 'basic2_0', 'head', 'ode1_1', 'ode2_1', 'stem']
    """

    n_classes: Count = 10
    widths: Widths = (64, 128, 256, 512)
    n_blocks: Natural = 1
    solver: Any = Adaptive(get_tableau("heun_euler"), rtol=1e-2, atol=1e-2)
    gradient: GradientMethod = ACA()
    momentum: Fraction01 = 0.9
    dtype: FloatName | None = None
    evolution: Evolution | None = None
    quantities: tuple[str, ...] = ()
    axis_name: AxisName = None

    @checked
    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Logits:
        """Logits of `images`, of any size."""

        def block(width: int, name: str) -> nn.Module:
            return OdeBlock(
                unit=ResidualUnit(
                    width, order="conv-bn-relu", skip_init=False, bias=False, dtype=self.dtype, axis_name=self.axis_name
                ),
                basis=PiecewiseConstant(1),
                solver=self.solver,
                gradient=self.gradient,
                momentum=self.momentum,
                evolution=self.evolution,
                quantities=self.quantities,
                name=f"ode{name}",
            )

        return _logits(self, block, images, train)


@checked
class ResNet18(nn.Module):
    """The discrete twin of `NODE18`: each ODE block is one more `BasicBlock`.

    Attributes: as in `NODE18`, where `n_blocks` counts the blocks of each stage after its first.

    Example:
        >>> variables = jax.eval_shape(ResNet18().init, jax.random.key(0), jnp.ones((2, 32, 32, 3)))
        >>> n_parameters(variables)
        11173962
    """

    n_classes: Count = 10
    widths: Widths = (64, 128, 256, 512)
    n_blocks: Natural = 1
    momentum: Fraction01 = 0.9
    dtype: FloatName | None = None
    axis_name: AxisName = None

    @checked
    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Logits:
        """Logits of `images`, of any size."""

        def block(width: int, name: str) -> nn.Module:
            return BasicBlock(width, 1, self.momentum, self.dtype, self.axis_name, name=f"basic{name}")

        return _logits(self, block, images, train)


def _logits(net: NODE18 | ResNet18, block: Block, images: jax.Array, train: bool) -> jax.Array:
    """The frame that both networks share; to be called inside their compact method."""
    x = Stem(net.widths[0], net.momentum, net.dtype, axis_name=net.axis_name, name="stem")(images, train=train)
    for stage, width in enumerate(net.widths, start=1):
        stride = 1 if stage == 1 else 2
        first = BasicBlock(width, stride, net.momentum, net.dtype, net.axis_name, name=f"basic{stage}_0")
        x = first(x, train=train)
        for number in range(1, net.n_blocks + 1):
            x = block(width, f"{stage}_{number}")(x, train=train)
    return nn.Dense(net.n_classes, name="head")(x.mean((1, 2)))
