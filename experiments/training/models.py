"""From a config to a network."""

from __future__ import annotations

import flax.linen as nn

from experiments.training.config import Config
from ode_nets.gradients import ACA, Backsolve, Checkpointed, Direct, GradientMethod
from ode_nets.integrate import Adaptive, FixedStep
from ode_nets.nn import ANODEV2, NODE18, ContinuousNet, ResNet, ResNet18
from ode_nets.tableaus import get_tableau
from ode_nets.weights import (
    RDA,
    Basis,
    Chebyshev,
    Evolution,
    FlowStep,
    Fourier,
    Legendre,
    PiecewiseConstant,
    PiecewiseLinear,
    Still,
    configuration_1,
    configuration_2,
)

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
    "aca": ACA(),
    "backsolve": Backsolve(),
}


def evolution(config: Config) -> Evolution | None:
    """How the kernels of each block evolve, at every level of refinement."""
    n_steps = config.evolution_steps or config.n_steps
    match config.evolution:
        case "still":
            return Evolution(Still(), FlowStep(1), PiecewiseConstant(1))
        case "configuration_1":
            return configuration_1(RDA(), n_steps)
        case "configuration_2":
            return configuration_2(RDA(), n_steps, 10 * (n_steps - 1))
    return None


def build(config: Config, n_classes: int, level: int = 0) -> nn.Module:
    """The network of a config after `level` refinements: M and N_t doubled that often."""
    basis, n_steps = BASES[config.basis](config.n_basis), config.n_steps * 2**level
    for _ in range(level):
        basis = basis.refined(2)
    solver: Adaptive | FixedStep = FixedStep(get_tableau(config.scheme), n_steps)
    if config.rtol is not None:
        atol = config.rtol if config.atol is None else config.atol
        solver = Adaptive(get_tableau(config.scheme), config.rtol, atol, max_steps=config.max_steps)
    gradient, dtype = GRADIENTS[config.gradient], config.compute_dtype
    if config.architecture == "resnet":
        return ResNet(n_classes, config.widths, n_steps, config.skip_init)
    if config.architecture == "resnet18":
        return ResNet18(n_classes, config.widths, config.n_blocks, dtype=dtype)
    if config.architecture == "node18":
        return NODE18(
            n_classes, config.widths, config.n_blocks, solver, gradient, dtype=dtype, evolution=evolution(config)
        )
    if config.architecture in ("alexnet", "resnet4", "resnet10"):
        return ANODEV2(
            config.architecture, n_classes, basis, solver, evolution(config), gradient, dtype=dtype
        )
    return ContinuousNet(
        n_classes=n_classes,
        widths=config.widths,
        basis=basis,
        solver=solver,
        gradient=gradient,
        epsilon=config.epsilon,
        order=config.order,
        skip_init=config.skip_init,
        dtype=dtype,
        evolution=evolution(config),
    )
