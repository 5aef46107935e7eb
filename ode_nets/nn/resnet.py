"""The pre-activation ResNet that an Euler ContinuousNet is, unrolled, in plain Flax."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from ode_nets.arguments import Count, Fraction01, Natural, Variables, Widths, checked
from ode_nets.integrate import FixedStep
from ode_nets.nn.continuous_net import ContinuousNet
from ode_nets.nn.layers import Images, Logits
from ode_nets.nn.roles import COEFFICIENTS
from ode_nets.weights import PiecewiseConstant

PyTree = Any


class PreActivationUnit(nn.Module):
    """bn, relu, conv3x3, bn, relu, conv3x3, times a skip-init scalar where asked (ContinuousNet eq. 29)."""

    channels: int
    stride: int = 1
    skip_init: bool = True
    momentum: float = 0.9
    axis_name: Any = None  # of flax, whose annotation knows a single name

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """The residual of `x`, `[batch, height / stride, width / stride, channels]`."""
        for i, stride in ((1, self.stride), (2, 1)):
            norm = nn.BatchNorm(not train, momentum=self.momentum, axis_name=self.axis_name, name=f"bn{i}")
            conv = nn.Conv(self.channels, (3, 3), stride, kernel_init=_he_fan_out, name=f"conv{i}")
            x = conv(nn.relu(norm(x)))
        return x * self.param("skip", nn.initializers.zeros, ()) if self.skip_init else x


@checked
class ResNet(nn.Module):
    """A pre-activation ResNet without bottlenecks: the discrete twin of `ContinuousNet`.

    Written with `flax.linen` layers and an unrolled loop, so that it shares nothing with the ODE blocks that
    it is compared with.

    Attributes:
      n_classes, widths, skip_init, final_norm, momentum, axis_name: as in `ContinuousNet`.
      n_units: residual units a block, beside the downsampling unit before each block but the first.

    Example:
        >>> net = ResNet(widths=(8,), n_units=2)
        >>> variables = jax.eval_shape(net.init, jax.random.key(0), jnp.ones((2, 16, 16, 3)))
        >>> sorted(variables["params"])
        ['block1_unit0', 'block1_unit1', 'head', 'stem', 'stem_bn']
    """

    n_classes: Count = 10
    widths: Widths = (16, 32, 64)
    n_units: Natural = 32
    skip_init: bool = True
    final_norm: bool = False
    momentum: Fraction01 = 0.9
    axis_name: Any = None  # of flax, whose annotation knows a single name

    @checked
    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Logits:
        """Logits of `images`, of any size."""
        x = nn.Conv(self.widths[0], (3, 3), use_bias=False, kernel_init=_he_fan_out, name="stem")(images)
        norm = nn.BatchNorm(not train, momentum=self.momentum, axis_name=self.axis_name, name="stem_bn")
        x = nn.relu(norm(x))
        for i, width in enumerate(self.widths, start=1):
            if i > 1:
                down = nn.Conv(width, (1, 1), 2, use_bias=False, kernel_init=_he_fan_out, name=f"shortcut{i - 1}")
                unit = PreActivationUnit(width, 2, False, self.momentum, self.axis_name, name=f"stitch{i - 1}")
                x = down(x) + unit(x, train=train)
            for k in range(self.n_units):
                name = f"block{i}_unit{k}"
                unit = PreActivationUnit(width, 1, self.skip_init, self.momentum, self.axis_name, name=name)
                x = x + unit(x, train=train)
        if self.final_norm:
            norm = nn.BatchNorm(not train, momentum=self.momentum, axis_name=self.axis_name, name="norm")
            x = nn.relu(norm(x))
        return nn.Dense(self.n_classes, name="head")(x.mean((1, 2)))


_he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


@checked
def as_resnet(net: ContinuousNet, variables: Variables) -> tuple[ResNet, PyTree]:
    """The ResNet that an Euler ContinuousNet with M = N_t and epsilon = N_t is, with its variables.

    Raises:
      ValueError: if `net` is no ResNet: another scheme, basis, epsilon, order, stitch scale or dtype, or kernels
        that evolve.

    Example:
        >>> net = ContinuousNet(widths=(8,), basis=PiecewiseConstant(2), solver=FixedStep("euler", 2), epsilon=2)
        >>> variables = jax.eval_shape(net.init, jax.random.key(0), jnp.ones((1, 8, 8, 3)))
        >>> unrolled = jax.eval_shape(lambda variables: as_resnet(net, variables)[1], variables)
        >>> n_parameters(unrolled) == n_parameters(variables)
        True
    """
    m = net.basis.n_basis
    wanted = {
        "solver": FixedStep("euler", m),
        "basis": PiecewiseConstant(m),
        "epsilon": m,
        "order": "bn-relu-conv",
        "stitch_scale": 1,
        "dtype": None,
        "evolution": None,
    }
    for name, value in wanted.items():
        if getattr(net, name) != value:
            raise ValueError(f"{name}={getattr(net, name)!r}: only {name}={value!r} makes this net a ResNet")

    def convert(collection: PyTree) -> PyTree:
        out: dict[str, Any] = {}
        for name, tree in collection.items():
            if name == "stem":
                out["stem_bn"] = tree["bn"]
                if "kernel" in tree:
                    out["stem"] = {"kernel": tree["kernel"]}
            elif name.startswith("stitch"):
                out[name] = tree["unit"]
                if "shortcut" in tree:
                    out[name.replace("stitch", "shortcut")] = {"kernel": tree["shortcut"]}
            elif name.startswith("block"):
                for k in range(m):
                    out[f"{name}_unit{k}"] = jax.tree.map(lambda leaf, k=k: leaf[k], tree[COEFFICIENTS])
            else:
                out[name] = tree
        return out

    twin = ResNet(net.n_classes, net.widths, m, net.skip_init, net.final_norm, net.momentum, net.axis_name)
    return twin, {name: convert(variables[name]) for name in ("params", "batch_stats")}
