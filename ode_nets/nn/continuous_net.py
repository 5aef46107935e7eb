"""ContinuousNet: three ODE blocks stitched into an image classifier."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from ode_nets.arguments import Count, Finite, FloatName, Fraction01, Widths, checked
from ode_nets.axes import AxisName
from ode_nets.fields import ResidualUnit
from ode_nets.fields.residual import Order
from ode_nets.gradients import Checkpointed, GradientMethod
from ode_nets.integrate import FixedStep
from ode_nets.nn.layers import Images, Logits, Norm, Stem, Stitch
from ode_nets.nn.ode_block import OdeBlock
from ode_nets.weights import Basis, Evolution, PiecewiseConstant


@checked
class ContinuousNet(nn.Module):
    """Stem, ODE blocks with a stitch between each two, mean over space, linear head (ContinuousNet fig. 6).

    A module is a description: `net.clone(solver=FixedStep("rk4_38", 6))` applied to the same variables is
    the paper's `ContinuousNet[RK4-3/8, 6][theta]`, and `remanifest.refine(net, variables)` gives a new
    description with transformed variables.

    Attributes:
      n_classes: length of the output.
      widths: channels of each block; one block a width.
      basis: of every block's theta(t).
      solver: of every block.
      gradient: of every block.
      epsilon: scale of the right-hand side (eq. 20). With Euler, M = N_t and epsilon = N_t, the network is a
        pre-activation ResNet.
      stitch_scale: the stitches' eps_stitch. It belongs to the model and not to a manifestation: no solver
        swap or refinement changes it. 1 is eps * dt both where the paper's refinement training starts
        (eps = N_t = 1) and where Euler equals the ResNet (eps = N_t).
      order, skip_init: of the units, see `ResidualUnit`.
      final_norm: normalize, and apply a ReLU, before the mean over space, as pre-activation ResNets do. The paper does
        not say, and its counts of parameters fit both; its code has it. Without it the scale of what the head sees is
        that of the last block's state.
      momentum: of all running batch statistics.
      dtype: what convolutions compute in, e.g. `"bfloat16"`; `None` for that of their inputs.
      evolution: how the kernels of every block evolve in depth (ANODEV2); `None` for kernels in `basis`.
      quantities: what every block integrates in training, see `OdeBlock`.
      axis_name: mesh axis of a `jax.shard_map` over which a batch is spread, for the statistics of all batch norms in
        training, see `batch_norm`; that of step sizes is the solver's.

    Example:
        >>> net = ContinuousNet(widths=(8,), basis=PiecewiseConstant(2), solver=FixedStep("rk4", 2))
        >>> logits, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), jnp.ones((2, 16, 16, 3)))
        >>> logits.shape
        (2, 10)
        >>> net.clone(solver=FixedStep("midpoint", 1)).solver  # another manifestation of the same variables
        FixedStep(midpoint, 1)
    """

    n_classes: Count = 10
    widths: Widths = (16, 32, 64)
    basis: Basis = PiecewiseConstant(32)
    solver: Any = FixedStep("rk4", 32)
    gradient: GradientMethod = Checkpointed()
    epsilon: Finite = 1.0
    stitch_scale: Finite = 1.0
    order: Order = "bn-relu-conv"
    skip_init: bool = True
    final_norm: bool = False
    momentum: Fraction01 = 0.9
    dtype: FloatName | None = None
    evolution: Evolution | None = None
    quantities: tuple[str, ...] = ()
    axis_name: AxisName = None

    @checked
    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Logits:
        """Logits of `images`, of any size.

        With `train`, batch norms use the batch's statistics and `batch_stats` must be mutable.
        """
        x = Stem(self.widths[0], self.momentum, self.dtype, axis_name=self.axis_name, name="stem")(images, train=train)
        for i, width in enumerate(self.widths):
            if i > 0:
                unit = self._unit(width, in_channels=self.widths[i - 1], stride=2, skip_init=False)
                x = Stitch(unit, self.stitch_scale, self.momentum, name=f"stitch{i}")(x, train=train)
            block = OdeBlock(
                unit=self._unit(width, skip_init=self.skip_init),
                basis=self.basis,
                solver=self.solver,
                gradient=self.gradient,
                epsilon=self.epsilon,
                momentum=self.momentum,
                evolution=self.evolution,
                quantities=self.quantities,
                name=f"block{i + 1}",
            )
            x = block(x, train=train)
        if self.final_norm:
            x = jax.nn.relu(Norm(self.momentum, self.axis_name, name="norm")(x, train=train))
        return nn.Dense(self.n_classes, name="head")(x.mean((1, 2)))

    def _unit(self, width: int, **changes: Any) -> ResidualUnit:
        return ResidualUnit(width, order=self.order, dtype=self.dtype, axis_name=self.axis_name, **changes)


def WideContinuousNet(**changes: Any) -> ContinuousNet:  # noqa: N802 - it reads as the model's name
    """The paper's wide model for CIFAR-100: widths 64-128-256, M = N_t = 8, RK4-classic, 100 classes.

    Args:
      **changes: attributes of `ContinuousNet` to set otherwise.

    Example:
        >>> net = WideContinuousNet(n_classes=10)
        >>> net.widths, net.solver, net.n_classes
        ((64, 128, 256), FixedStep(rk4, 8), 10)
    """
    defaults: dict[str, Any] = {
        "n_classes": 100,
        "widths": (64, 128, 256),
        "basis": PiecewiseConstant(8),
        "solver": FixedStep("rk4", 8),
    }
    return ContinuousNet(**(defaults | changes))
