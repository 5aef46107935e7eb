"""The networks of ANODEV2: residual networks whose last block of each layer is an ODE with evolving weights."""

from __future__ import annotations

from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from ode_nets.arguments import Count, FloatName, Fraction01, checked
from ode_nets.axes import AxisName
from ode_nets.fields import ResidualUnit
from ode_nets.gradients import Checkpointed, GradientMethod
from ode_nets.integrate import FixedStep
from ode_nets.nn.layers import ConvNorm, Images, Logits, alone, fold
from ode_nets.nn.ode_block import OdeBlock
from ode_nets.nn.roles import weight_roles
from ode_nets.weights import (
    RDA,
    Basis,
    Evolution,
    FlowStep,
    PiecewiseConstant,
    Still,
    WeightField,
    configuration_1,
    configuration_2,
)

PyTree = Any
Network = Literal["alexnet", "resnet4", "resnet10"]
Form = Literal["baseline", "neural_ode", "configuration_1", "configuration_2"]


class Layer(nn.Module):
    """y = R(x): a unit applied once, with parameters and running statistics of its own.

    `[batch, height, width, inputs]` to `[batch, height / stride, width / stride, channels]`.
    """

    unit: ResidualUnit
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Features of a batch."""
        params = self.param("unit", self.unit.init)
        stats = self.variable("batch_stats", "unit", self.unit.init_stats)
        y, used = alone(self, self.unit).apply(params, x, stats=None if train else stats.value)
        if train and not self.is_initializing():
            stats.value = fold(stats.value, used, self.momentum)
        return y


@checked
class ANODEV2(nn.Module):
    """AlexNet, ResNet-4 or ResNet-10 with ODE blocks (ANODEV2 app. B, tables 5 and 6).

        alexnet:   conv5x5 64, pool 2, block 5x5 64, pool 2, dense 384, 192
        resnet4:   conv3x3 16, block 3x3 16, pool 8, dense
        resnet10:  conv3x3 16, residual 16, block 16, residual 32 stride 2, block 32, pool 8, dense

    Every convolution is followed by batch norm and ReLU; the block of AlexNet has one, the others two. A
    block is z(1) of dz/dt = f(z, theta(t)); the residual network is one Euler step of it, `baseline`. Batch
    norms and biases have values of their own in each interval of `basis`; kernels follow `evolution`.
    `anodev2_net` has the paper's four forms of each network.

    Attributes:
      network: which of the three.
      n_classes: length of the output.
      basis: of all parameters of a block but its kernels, or of those too without an evolution.
      solver: of every block.
      evolution: of the kernels of every block.
      gradient: of every block; the default recomputes a block from its input (ANODE), as the paper does.
      momentum: of all running batch statistics.
      dtype: what convolutions compute in, e.g. `"bfloat16"`.
      axis_name: of all batch norms in training, see `batch_norm`.

    Example:
        >>> net = ANODEV2("resnet4", basis=PiecewiseConstant(2), solver=FixedStep("euler", 2))
        >>> logits, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), jnp.ones((2, 32, 32, 3)))
        >>> logits.shape, variables["params"]["block1"]["coefficients"]["conv1"]["kernel"].shape
        ((2, 10), (2, 3, 3, 16, 16))
    """

    network: Network = "resnet4"
    n_classes: Count = 10
    basis: Basis = PiecewiseConstant(1)
    solver: Any = FixedStep("euler", 1)
    evolution: Evolution | None = None
    gradient: GradientMethod = Checkpointed("block")
    momentum: Fraction01 = 0.9
    dtype: FloatName | None = None
    axis_name: AxisName = None

    @checked
    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Logits:
        """Logits of `images`.

        With `train`, batch norms use the batch's statistics and `batch_stats` must be mutable.
        """
        smallest = 16 if self.network == "resnet10" else 8
        if min(images.shape[1:3]) < smallest:
            raise ValueError(
                f"images have shape {images.shape}: {self.network} pools them and needs at least "
                f"{smallest}x{smallest} pixels"
            )
        features = self._alexnet if self.network == "alexnet" else self._resnet
        return nn.Dense(self.n_classes, name="head")(features(images, train))

    def _alexnet(self, x: jax.Array, train: bool) -> jax.Array:
        unit = self._unit(64, kernel_size=5, n_convolutions=1, bias=True)
        stem = self._unit(64, kernel_size=5, n_convolutions=1, bias=True, in_channels=x.shape[-1])
        x = Layer(stem, self.momentum, name="stem")(x, train=train)
        x = self._block(unit, "block1")(_pool(x, 2), train=train)
        x = _pool(x, 2).reshape(x.shape[0], -1)
        for i, width in enumerate((384, 192), start=1):
            x = jax.nn.relu(nn.Dense(width, name=f"dense{i}")(x))
        return x

    def _resnet(self, x: jax.Array, train: bool) -> jax.Array:
        stem = self._unit(16, n_convolutions=1, in_channels=x.shape[-1])
        x = Layer(stem, self.momentum, name="stem")(x, train=train)
        if self.network == "resnet4":
            x = self._block(self._unit(16), "block1")(x, train=train)
        else:
            x = x + Layer(self._unit(16), self.momentum, name="residual1")(x, train=train)
            x = self._block(self._unit(16), "block1")(x, train=train)
            down = ConvNorm(32, self.momentum, self.dtype, 1, 2, self.axis_name, name="shortcut2")
            wider = Layer(self._unit(32, in_channels=16, stride=2), self.momentum, name="residual2")
            x = down(x, train=train) + wider(x, train=train)
            x = self._block(self._unit(32), "block2")(x, train=train)
        return _pool(x, 8).reshape(x.shape[0], -1)

    def _unit(self, width: int, *, bias: bool = False, **changes: Any) -> ResidualUnit:
        shared: dict[str, Any] = {"order": "conv-bn-relu", "dtype": self.dtype, "axis_name": self.axis_name}
        return ResidualUnit(width, skip_init=False, bias=bias, **shared, **changes)

    def _block(self, unit: ResidualUnit, name: str) -> OdeBlock:
        return OdeBlock(
            unit,
            self.basis,
            self.solver,
            self.gradient,
            momentum=self.momentum,
            evolution=self.evolution,
            name=name,
        )


@checked
def anodev2_net(network: Network, form: Form, q: WeightField = RDA(), **changes: Any) -> ANODEV2:  # noqa: B008
    """One of the paper's twelve networks (ANODEV2 tables 1 to 4).

        baseline:         one Euler step, the residual network
        neural_ode:       two Euler steps with the same kernels, q = 0 (sec. 4)
        configuration_1:  five Euler steps, each with kernels of their own time
        configuration_2:  two Euler steps, with the kernels before and after ten steps of theirs

    Args:
      network: `"alexnet"`, `"resnet4"` or `"resnet10"`.
      form: one of the four above.
      q: of the two configurations.
      **changes: attributes of `ANODEV2` to set otherwise.

    Returns:
      The network. Parameters: baselines 1,756,682, 7,706 and 44,186, as the paper's; what batch norms of
      further steps and p add is ours, within 3 % of the paper's table 3. tau, v and rho are shared by the
      filters of one output channel, since one set a tensor would fall short of that table.

    Raises:
      ValueError: for an unknown network or form.

    Example:
        >>> net = anodev2_net("resnet4", "configuration_2")
        >>> net.solver, net.evolution.solver
        (FixedStep(euler, 2), FlowStep(n_steps=10))
        >>> baseline = anodev2_net("resnet4", "baseline")
        >>> n_parameters(jax.eval_shape(baseline.init, jax.random.key(0), jnp.ones((1, 32, 32, 3))))
        7706
    """
    if form not in get_args(Form) or network not in get_args(Network):
        raise ValueError(
            f"network={network!r}, form={form!r}: expected one of {', '.join(get_args(Network))} and one of "
            f"{', '.join(get_args(Form))}"
        )
    n_steps, evolution = {
        "baseline": (1, None),
        "neural_ode": (2, Evolution(Still(), FlowStep(1), PiecewiseConstant(1))),
        "configuration_1": (5, configuration_1(q, 5)),
        "configuration_2": (2, configuration_2(q, 2, 10)),
    }[form]
    settings: dict[str, Any] = {
        "basis": PiecewiseConstant(n_steps),
        "solver": FixedStep("euler", n_steps),
        "evolution": evolution,
    }
    return ANODEV2(network, **(settings | changes))


@checked
def regularization(params: PyTree, w0: float = 0.0, p: float = 0.0) -> jax.Array:
    """The regularization of evolving weights, over every block of a network.

        R(w_0, p) = w0 / 2 |w_0|^2 + p / 2 |p|^2             (ANODEV2 eq. 3, 5a: R is left open there)

    Args:
      params: `variables["params"]` of any network with evolved weights, or a pytree with weight functions
        `Evolved` in it.
      w0, p: weights of the two terms, at least 0.

    Returns:
      A scalar to add to the loss; 0 where nothing evolves.

    Raises:
      ValueError: for a weight below 0.

    Example:
        >>> block = {"evolved": {"w0": {"kernel": jnp.ones(4)}, "p": {"tau": jnp.ones(1)}}}
        >>> params = {"block1": block, "head": jnp.ones(3)}
        >>> float(regularization(params, w0=0.5))  # 0.5 / 2 * 4
        1.0
    """
    for name, factor in (("w0", w0), ("p", p)):
        if not isinstance(factor, jax.Array) and not factor >= 0:
            raise ValueError(f"{name}={factor}: expected at least 0")
    total, factors = jnp.zeros(()), {"w0": w0, "p": p}
    for leaf, role in zip(jax.tree.leaves(params), jax.tree.leaves(weight_roles(params)), strict=True):
        if role in factors:
            total = total + factors[role] / 2 * jnp.sum(jnp.square(leaf))
    return total


def _pool(x: jax.Array, size: int) -> jax.Array:
    return nn.max_pool(x, (size, size), (size, size))
