"""From a config to a network."""

from __future__ import annotations

import flax.linen as nn

from experiments.config import Config
from ode_nets.gradients import Checkpointed, Direct, GradientMethod
from ode_nets.integrate import FixedStep
from ode_nets.nn import ContinuousNet, ResNet
from ode_nets.weights import Basis, Chebyshev, Fourier, Legendre, PiecewiseConstant, PiecewiseLinear

BASES: dict[str, type[Basis]] = {
    "piecewise_constant": PiecewiseConstant,
    "piecewise_linear": PiecewiseLinear,
    "legendre": Legendre,
    "chebyshev": Chebyshev,
    "fourier": Fourier,
}
GRADIENTS: dict[str, GradientMethod] = {
    "direct": Direct(),
    "checkpointed_step": Checkpointed("step"),
    "checkpointed_block": Checkpointed("block"),
}


def build(config: Config, n_classes: int, level: int = 0) -> nn.Module:
    """The network of a config after `level` refinements: M and N_t doubled that often."""
    basis, n_steps = BASES[config.basis](config.n_basis), config.n_steps * 2**level
    for _ in range(level):
        basis = basis.refined(2)
    if config.architecture == "resnet":
        return ResNet(n_classes, config.widths, n_steps, config.skip_init)
    return ContinuousNet(
        n_classes=n_classes,
        widths=config.widths,
        basis=basis,
        solver=FixedStep(config.scheme, n_steps),
        gradient=GRADIENTS[config.gradient],
        epsilon=config.epsilon,
        order=config.order,
        skip_init=config.skip_init,
        dtype=config.compute_dtype,
    )
